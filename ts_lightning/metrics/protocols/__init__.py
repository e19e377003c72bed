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

__all__ = ["PROTOCOLS", "Protocol", "default_protocols", "make_protocol", "plain"]


def make_protocol(name: str, reading: str | None = None, annotations: str | None = None) -> Protocol:
    """The protocol called `name`; ValueError for an unknown name or reading, or without the file that it needs."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: seen {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name](reading, annotations)


def default_protocols(records: Sequence[Record]) -> list[str]:
    """What scores questions whose suite names no protocol, by their truth alone.

    `steps` for step-by-step and invalid questions, `localization` for one box, `answers` for answers in words.
    Suites of benchmarks always name theirs.
    """
    return [name for name in ("steps", "localization", "answers") if any(PROTOCOLS[name]().takes(r) for r in records)]
