"""From prediction records to the report of many suites: scores, intervals, conventions, the paper's row beside."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.metrics.intervals import interval, mean, paired
from ts_lightning.metrics.protocols import PROTOCOLS, Protocol, Record, has_truth, protocol_of

PAPER_ROWS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "paper_rows.json").read_text())
_NO_TRUTH = "no: none of its records has a truth of this kind"


def by_suite(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records grouped by suite, in order of appearance."""
    suites: dict[str, list[Record]] = {}
    for record in records:
        suites.setdefault(record["suite"], []).append(record)
    return suites


def paper_row(suite: str) -> dict[str, Any]:
    """The rule of a suite (`protocol`, or the `tool` that scores it) and the paper's values.

    A suite with box noise (`vizwiz_noise_0.1`) has the rule of the one without, and no value: the papers have a plot.
    """
    name, noise, _ = suite.partition("_noise_")
    row = PAPER_ROWS.get(name, {})
    return {k: v for k, v in row.items() if k in ("protocol", "tool")} if noise else row


def score_suites(
    records: Sequence[Record],
    protocols: Mapping[str, str] | None = None,
    completeness: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """One entry a suite: protocol, main figure with its 95% interval, all figures, convention, paper row.

    The protocol of a suite is the given one, else the one of the paper's suite of that name, else what fits its truth.
    A suite that another tool scores, or without a truth, has an entry that says so. Suites of one box are also split by
    subtask. `completeness` says of a suite whether answers are missing. ValueError for an unknown protocol, and for
    records without what theirs needs.
    """
    result = {}
    for suite, group in by_suite(records).items():
        row, given = paper_row(suite), (protocols or {}).get(suite)
        if given is None and "tool" in row:
            one = _unscored(group, "-", row, f"by {row['tool']}")
        else:
            name = given or row.get("protocol") or protocol_of(group)
            one = _unscored(group, "-", row, _NO_TRUTH) if name is None else _scored(suite, group, name, row)
        if completeness and suite in completeness:
            one["convention"]["completeness"] = completeness[suite]
        result[suite] = one
    return result


def _scored(suite: str, group: Sequence[Record], name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    if name not in PROTOCOLS:
        raise ValueError(f"protocol of {suite}: seen {name!r}, expected one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    scored = [r for r in group if has_truth(r, name)]
    if not scored:
        return _unscored(group, name, row, _NO_TRUTH)
    _check(scored, name)
    try:
        figures, values = protocol.score(scored), protocol.values(scored)
    except ModuleNotFoundError as error:  # the other suites of the report don't need the package
        return _unscored(group, name, row, f"no: {error}")
    declared = {k: group[0][k] for k in ("prompt", "codec", "frame") if group[0].get(k)}
    return {
        "protocol": name,
        "questions": len(scored),
        "not_scored": len(group) - len(scored),
        "main": protocol.main,
        "score": figures[protocol.main],
        "interval": interval(values, strata=_strata(scored, protocol)) if values else None,
        "figures": figures,
        "convention": {**protocol.convention, **declared},
        "paper": _values(row),
        "subtasks": _subtasks(scored, protocol) if values else {},
    }


def _unscored(group: Sequence[Record], protocol: str, row: Mapping[str, Any], scored: str) -> dict[str, Any]:
    """The entry of a suite without a score: the paper's first figure stands in its row."""
    return {
        "protocol": protocol,
        "questions": 0,
        "not_scored": len(group),
        "main": next(iter(_values(row)), "-"),
        "score": float("nan"),
        "interval": None,
        "figures": {},
        "convention": {"scored": scored},
        "paper": _values(row),
        "subtasks": {},
    }


def judged_entry(entry: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a suite with its judge's score, figures of each group, and instruction in place of none."""
    told = {"judge": result["judge"], "instruction": result["prompt"], "sha256": result["prompt_sha256"]}
    figures = {name: result[name] for name in ("score", "unread_verdicts")} | {"by_category": result["by_group"]}
    rest = {k: v for k, v in entry["convention"].items() if k != "scored"}
    asked = {"questions": result["questions"], "not_scored": 0, "protocol": "judge", "main": "score"}
    return {**entry, **asked, "score": result["score"], "figures": figures, "convention": {**told, **rest}}


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("protocol", "tool")}


def _check(records: Sequence[Record], name: str) -> None:
    for record in records:
        for path in PROTOCOLS[name].needs:
            part, _, key = path.rpartition(".")
            holder = record.get(part) or {} if part else record
            if key not in holder or (holder[key] is None and key != "box"):  # an unparsed box is None
                raise ValueError(
                    f"suite {record['suite']}: {record['key']}: seen no {path}, the protocol {name} expects it"
                )


def _strata(records: Sequence[Record], protocol: Protocol) -> list[str] | None:
    return None if protocol.stratum is None else [protocol.stratum(record) for record in records]


def _subtasks(records: Sequence[Record], protocol: Protocol) -> dict[str, dict[str, float]]:
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
        row = paper_row(suite)
        name = None if "tool" in row else row.get("protocol") or protocol_of(first[suite])
        keys = [] if name is None else [key for key in left if has_truth(left[key], name)]
        if name is None or not keys:
            continue
        protocol, runs = PROTOCOLS[name], [[run[key] for key in keys] for run in (left, right)]
        for run in runs:
            _check(run, name)
        values, strata = [protocol.values(run) for run in runs], _strata(runs[0], protocol)
        if not values[0]:
            continue
        flips = {
            "gained": [k for k, x, y in zip(keys, *values, strict=True) if x < 0.5 <= y],
            "lost": [k for k, x, y in zip(keys, *values, strict=True) if y < 0.5 <= x],
        }
        result[suite] = {
            "protocol": name,
            "main": protocol.main,
            "a": mean(values[0], strata),
            "b": mean(values[1], strata),
            **paired(values[0], values[1], strata=strata)._asdict(),
            **flips,
        }
    return result
