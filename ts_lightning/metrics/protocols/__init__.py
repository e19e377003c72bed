"""One class a kind of suite; a suite's YAML names it: `protocol: rec`."""

from collections.abc import Mapping, Sequence

from ts_lightning.metrics.protocols.base import Protocol, plain
from ts_lightning.metrics.protocols.boxes import REC, Localization, Phrases
from ts_lightning.metrics.protocols.captions import GIC, Captions, RegionClass
from ts_lightning.metrics.protocols.detection import Detection, MCBench
from ts_lightning.metrics.protocols.mig import MIG
from ts_lightning.metrics.protocols.referring import GroundingME, HumanRef, RefL4
from ts_lightning.metrics.protocols.steps import Steps
from ts_lightning.metrics.protocols.words import (
    MME,
    VQA,
    Answers,
    Choice,
    Circular,
    Contains,
    Counted,
    OpenEnded,
    YesNo,
)
from ts_lightning.metrics.record import Record

PROTOCOLS: Mapping[str, type[Protocol]] = {
    one.name: one
    for one in (
        *(Localization, REC, Phrases, GIC, MIG, Steps, RegionClass, Contains, VQA, Choice, Circular, YesNo, MME),
        *(OpenEnded, Captions, Answers, Counted, RefL4, GroundingME, HumanRef, Detection, MCBench),
    )
}

DEFAULTS = ("localization", "steps", "answers")

__all__ = ["DEFAULTS", "PROTOCOLS", "Protocol", "default_protocols", "make_default", "make_protocol", "plain"]


def make_protocol(name: str, reading: str | None = None, annotations: str | None = None) -> Protocol:
    """The protocol called `name`; ValueError for an unknown name or reading, or without the file that it needs."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: seen {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name](reading, annotations)


def make_default(name: str, reading: str | None = None, annotations: str | None = None) -> Protocol:
    """A protocol of a suite that names none: the suite's reading is for those of `DEFAULTS` that have it.

    ValueError for a reading that none of them has.
    """
    known = list(dict.fromkeys(one for default in DEFAULTS for one in PROTOCOLS[default].readings))
    if reading is not None and reading not in known:
        raise ValueError(f"reading: seen {reading!r}, expected one of {', '.join(known)}, or a protocol that has it")
    return make_protocol(name, reading if reading in PROTOCOLS[name].readings else None, annotations)


def default_protocols(records: Sequence[Record]) -> list[str]:
    """What scores questions whose suite names no protocol, by their truth alone.

    `localization` for one box, `steps` for step-by-step and invalid questions, `answers` for answers in words.
    Suites of benchmarks always name theirs.
    """
    return [name for name in DEFAULTS if any(PROTOCOLS[name]().takes(r) for r in records)]
