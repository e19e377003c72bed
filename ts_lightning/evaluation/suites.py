"""From prediction records to the report of many suites: scores, intervals, conventions, the paper's row beside."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.evaluation.intervals import interval, paired
from ts_lightning.evaluation.protocols import PROTOCOLS, Record, protocol_of

PAPER_ROWS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "paper_rows.json").read_text())


def by_suite(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records grouped by suite, in order of appearance."""
    suites: dict[str, list[Record]] = {}
    for record in records:
        suites.setdefault(record["suite"], []).append(record)
    return suites


def score_suites(records: Sequence[Record], protocols: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """One entry a suite: protocol, main figure with its 95% interval, all figures, convention, paper row.

    The protocol of a suite is the given one, else the one of the paper's suite of that name, else what fits its truth.
    Suites of one box are also split by subtask. ValueError for an unknown protocol.
    """
    result = {}
    for suite, group in by_suite(records).items():
        name = (protocols or {}).get(suite) or PAPER_ROWS.get(suite, {}).get("protocol") or protocol_of(group)
        if name not in PROTOCOLS:
            raise ValueError(f"protocol of {suite}: seen {name!r}, expected one of {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[name]
        scored = [r for r in group if _has_truth(r, name)]
        figures = protocol.score(scored)
        values = protocol.values(scored)
        declared = {k: group[0][k] for k in ("prompt", "codec", "frame") if group[0].get(k)}
        result[suite] = {
            "protocol": name,
            "questions": len(scored),
            "not_scored": len(group) - len(scored),
            "main": protocol.main,
            "score": figures[protocol.main],
            "interval": interval(values) if values else None,
            "figures": figures,
            "convention": {**protocol.convention, **declared},
            "paper": {k: v for k, v in PAPER_ROWS.get(suite, {}).items() if k != "protocol"},
            "subtasks": _subtasks(scored, protocol) if values else {},
        }
    return result


def _has_truth(record: Record, protocol: str) -> bool:
    boxed = protocol in ("localization", "rec", "phrases", "mig")
    truth = record["truth"]
    if protocol == "steps":
        return truth.get("steps") is not None
    return truth.get("box") is not None or bool(truth.get("boxes")) if boxed else bool(truth.get("answers"))


def _subtasks(records: Sequence[Record], protocol: Any) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.get("subtask") or "", []).append(record)
    if len(groups) < 2:
        return {}
    means = {name: protocol.values(group) for name, group in groups.items()}
    return {name: {"questions": len(v), protocol.main: sum(v) / len(v)} for name, v in sorted(means.items())}


def compare(a: Sequence[Record], b: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Run b against run a, for the suites of both: the difference, its interval, p, and the questions that flipped.

    ValueError where a suite asks other questions in the two.
    """
    first, second = by_suite(a), by_suite(b)
    result = {}
    for suite in [name for name in first if name in second]:
        left, right = ({r["key"]: r for r in group} for group in (first[suite], second[suite]))
        if left.keys() != right.keys():
            odd = sorted(left.keys() ^ right.keys())
            raise ValueError(f"suite {suite}: seen {odd[0]} in one run alone, expected the same questions in both")
        name = PAPER_ROWS.get(suite, {}).get("protocol") or protocol_of(first[suite])
        keys = [key for key in left if _has_truth(left[key], name)]
        values = [PROTOCOLS[name].values([run[key] for key in keys]) for run in (left, right)]
        if not values[0]:
            continue
        flips = {
            "gained": [k for k, x, y in zip(keys, *values, strict=True) if x < 0.5 <= y],
            "lost": [k for k, x, y in zip(keys, *values, strict=True) if y < 0.5 <= x],
        }
        means = [sum(v) / len(v) for v in values]
        result[suite] = {
            "protocol": name,
            "main": PROTOCOLS[name].main,
            "a": means[0],
            "b": means[1],
            **paired(values[0], values[1])._asdict(),
            **flips,
        }
    return result
