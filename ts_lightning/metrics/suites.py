"""From records to the scores of many suites, the papers' rows beside them, and two runs compared."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ts_lightning.metrics.intervals import RESAMPLES, interval, mean, paired
from ts_lightning.metrics.protocols import Protocol, default_protocols, make_default, make_protocol, plain
from ts_lightning.metrics.record import Record, distinct_keys

PaperRow = Mapping[str, list[tuple[float, str]]]  # figure: values and where they are printed, the compared one first
PAPER_ROWS: dict[str, PaperRow] = json.loads((Path(__file__).parent / "paper_rows.json").read_text())
Prepare = Callable[[Protocol], None]


class SuiteMetrics:
    """The protocols of every suite while it is answered, made when its first question comes.

    A suite whose records name no protocol is scored by `default_protocols`.
    """

    def __init__(self) -> None:
        self.protocols: dict[tuple[str, str], Protocol] = {}

    def reset(self) -> None:
        """Forget all questions."""
        self.protocols.clear()

    def update(self, suite: str, records: Sequence[Record]) -> None:
        """Add answered questions of a suite; none where a rank's batch was padding alone."""
        if not records:
            return
        named = any(record.protocol for record in records)
        for name in [*protocol_names(records), *([] if named else ["counted"])]:
            self._protocol(suite, name, records).update(records)

    def _protocol(self, suite: str, name: str, records: Sequence[Record]) -> Protocol:
        if (suite, name) not in self.protocols:
            self.protocols[suite, name] = _protocol_of(name, records[0])
        return self.protocols[suite, name]

    def compute(self, device: torch.device) -> dict[str, float]:
        """`<suite>[/<subtask>]/<figure>` of all ranks' questions together; what is NaN is left out.

        Every rank has to call it: the protocols synchronise, in the same order everywhere.
        """
        known = {key: (p.reading, p.annotations) for key, p in self.protocols.items()}
        if distributed.is_available() and distributed.is_initialized():
            gathered: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, known)
            known = {key: rule for part in gathered for key, rule in part.items()}
        results: dict[str, float] = {}
        for (suite, name), (reading, annotations) in sorted(known.items()):
            if (suite, name) not in self.protocols:
                self.protocols[suite, name] = make_protocol(name, reading, annotations)
            figures = self.protocols[suite, name].to(device).compute()
            if name != "counted" and (suite, "counted") in known:  # which says it of all questions together
                figures = _without_cut_off(figures)
            parts = {suite: figures} | {f"{suite}/{sub}": one for sub, one in figures.get("subtasks", {}).items()}
            for prefix, one in parts.items():
                results |= {f"{prefix}/{key}": value for key, value in plain(one).items() if value == value}
        return results


def _without_cut_off(figures: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: _without_cut_off(one) for name, one in figures.get("subtasks", {}).items()}
    return {k: v for k, v in figures.items() if k != "cut_off"} | ({"subtasks": parts} if parts else {})


def protocol_names(records: Sequence[Record]) -> list[str]:
    """The protocol that the records name, else those of their truth."""
    named = [record.protocol for record in records if record.protocol]
    return list(dict.fromkeys(named)) if named else default_protocols(records)


def _protocol_of(name: str, record: Record) -> Protocol:
    """The protocol with what the suite of the record says of it."""
    make = make_protocol if record.protocol else make_default
    return make(name, record.reading, record.annotations)


def _entries(suite: str, records: Sequence[Record]) -> dict[str, Protocol]:
    """What scores a suite by its name in a report: the suite's own, with the protocol behind it where several do."""
    names = protocol_names(records)
    return {suite if len(names) == 1 else f"{suite} ({name})": _protocol_of(name, records[0]) for name in names}


def by_suite(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records grouped by suite, in order of appearance."""
    suites: dict[str, list[Record]] = {}
    for record in records:
        suites.setdefault(record.suite, []).append(record)
    return suites


def paper_row(suite: str) -> PaperRow:
    """The papers' values of a suite by figure; of one with box noise (`vizwiz_noise_0.1`) none: they have a plot."""
    return {} if "_noise_" in suite else PAPER_ROWS.get(suite, {})


def score_suites(
    records: Sequence[Record],
    completeness: Mapping[str, str] | None = None,
    prepare: Prepare = lambda protocol: None,
) -> dict[str, dict[str, Any]]:
    """One entry a suite: protocol, main figure with its 95% interval, all figures, convention, papers' row.

    A suite's protocol is the one that its records name; of several `default_protocols` each has an entry,
    `SUITE (localization)`. A suite that can't be scored here has an entry that says why, and costs the others nothing.
    `completeness` says of a suite whether answers are missing; `prepare` sets a protocol's options. ValueError for an
    unknown protocol.
    """
    result = {}
    for suite, group in by_suite(records).items():
        protocols = _entries(suite, group)
        left = sum(not any(one.takes(record) for one in protocols.values()) for record in group)
        entries = {name: _scored(suite, group, protocol, left, prepare) for name, protocol in protocols.items()}
        for name, one in (entries or {suite: _unscored(suite, group, "-", _NO_TRUTH)}).items():
            if completeness and suite in completeness:
                one["convention"]["completeness"] = completeness[suite]
            result[name] = one
    return result


_NO_TRUTH = "none of its records has a truth of this kind"


def _scored(suite: str, group: Sequence[Record], protocol: Protocol, left: int, prepare: Prepare) -> dict[str, Any]:
    """The entry of one protocol; `left` records are no protocol's."""
    first = group[0]
    prepare(protocol)
    protocol.update(group)
    rows = protocol.rows()
    if not rows:
        return _unscored(suite, group, protocol.name, _NO_TRUTH)
    try:
        figures = dict(protocol.compute())
        _, values, strata, pictures = protocol.values(rows)
    except ModuleNotFoundError as error:  # the other suites of the report don't need the package
        return _unscored(suite, group, protocol.name, str(error))
    subtasks = figures.pop("subtasks", {})
    told = protocol.told() | {"codec": first.codec, "frame": first.frame_name}
    if values:
        told["95% interval"] = f"{RESAMPLES} resamples of {_resampled(values, pictures)}"
    return {
        "suite": suite,
        "protocol": protocol.name,
        "reading": protocol.reading,
        "questions": len(rows),
        "not_scored": left,
        "main": protocol.main,
        "score": figures.get(protocol.main, float("nan")),
        "interval": interval(values, strata=strata, clusters=pictures) if values else None,
        "figures": figures,
        "convention": told,
        "paper": dict(paper_row(suite)),
        "subtasks": subtasks,
    }


def _resampled(values: Sequence[float], pictures: Sequence[str] | None) -> str:
    """What an interval is over, and how many."""
    if pictures is None:
        return f"{len(values)} questions (their pictures are not known)"
    return f"{len({*pictures})} pictures with all their questions"


def _unscored(suite: str, group: Sequence[Record], protocol: str, why: str) -> dict[str, Any]:
    """The entry of a suite without a score: the papers' first figure stands in its row."""
    return {
        "suite": suite,
        "protocol": protocol,
        "reading": "-",
        "questions": 0,
        "not_scored": len(group),
        "main": next(iter(paper_row(suite)), "-"),
        "score": float("nan"),
        "interval": None,
        "figures": {},
        "convention": {"scored": f"no: {why}"},
        "paper": dict(paper_row(suite)),
        "subtasks": {},
    }


def judged_entry(entry: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a suite with its judge's score, figures of each group, and instruction in place of none."""
    reading = {"reading": result["reading"]}
    told = reading | {"judge": result["judge"], "prompt": result["prompt_kind"], "instruction": result["prompt"]}
    figures = {name: result[name] for name in ("score", "unread_verdicts")} | {"by_category": result["by_group"]}
    rest = {k: v for k, v in entry["convention"].items() if k not in ("scored", "reading")}
    rest["sha256"] = result["prompt_sha256"]
    return {**entry, **reading, "score": result["score"], "figures": figures, "convention": {**told, **rest}}


def compare(a: Sequence[Record], b: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Run b against run a by suite: the difference, its interval, p, what was resampled, the questions that flipped.

    Entries are named as those of `score_suites`; one that can't be compared has `why` alone. ValueError where a suite
    asks other questions in the two.
    """
    first, second = by_suite(distinct_keys(a)), by_suite(distinct_keys(b))
    result: dict[str, dict[str, Any]] = {}
    for suite in dict.fromkeys([*first, *second]):
        if suite not in first or suite not in second:
            result[suite] = {"why": "it is in one run alone"}
            continue
        names = {record.key for record in first[suite]}, {record.key for record in second[suite]}
        if odd := sorted(names[0] ^ names[1]):
            raise ValueError(f"suite {suite}: seen {odd[0]} in one run alone, expected the same questions in both")
        left, right = (_entries(suite, run[suite]) for run in (first, second))
        rules = [", ".join(f"{one.name} ({one.reading})" for one in run.values()) for run in (left, right)]
        if not left or rules[0] != rules[1]:
            result[suite] = {"why": f"scored by {rules[0]}, and by {rules[1]}" if left else _NO_TRUTH}
            continue
        for name in left:
            result[name] = _compared(left[name], first[suite], right[name], second[suite])
    return result


def _compared(one: Protocol, a: Sequence[Record], other: Protocol, b: Sequence[Record]) -> dict[str, Any]:
    """The paired test of a suite's questions, scored by `one` in run a and by `other`, which is alike, in run b."""
    one.update(a)
    other.update(b)
    try:
        keys, left, strata, pictures = one.values(one.rows())
        others, right, _, others_pictures = other.values(other.rows())
    except ModuleNotFoundError as error:
        return {"why": str(error)}
    if not left:
        return {"why": f"{one.name}: {one.main} is no mean over questions" if one.rows() else _NO_TRUTH}
    if keys != others:
        return {"why": "the two runs have other truths"}
    flips = {
        "gained": [k for k, x, y in zip(keys, left, right, strict=True) if x < 0.5 <= y],
        "lost": [k for k, x, y in zip(keys, left, right, strict=True) if y < 0.5 <= x],
    }
    sides = {"a": mean(left, strata), "b": mean(right, strata)}
    pictures = pictures or others_pictures  # one run's file may be of an earlier version
    test = paired(left, right, strata=strata, clusters=pictures)._asdict()
    resampled = {"resampled": _resampled(left, pictures)}
    return {"protocol": one.name, "main": one.main, **sides, **test, **resampled, **flips}
