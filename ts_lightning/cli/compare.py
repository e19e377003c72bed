"""`ts-lightning compare`."""

import json
from pathlib import Path
from typing import Any


def compare(*runs: Path, table: bool = False, out: Path | None = None) -> None:
    """Runs side by side: of two, the difference of each suite with a paired test, and the questions that flipped.

    Suites that have no such test are named with the reason.

        ts-lightning compare outputs/base outputs/tuned --out flips.json
        ts-lightning compare --table outputs/base outputs/twist outputs/lora      # any number: image understanding

    Args:
        runs: folders that `evaluate` wrote, or their predictions.jsonl (with --table: report.json)
        table: the understanding figures of any number of reports, in place of a paired test of two runs
        out: everything of the paired test as JSON, the flipped questions included
    """
    from ts_lightning.metrics.record import read_records
    from ts_lightning.metrics.suites import compare as paired
    from ts_lightning.metrics.understanding_table import understanding_table
    from ts_lightning.reports.json_file import write_json

    if table:
        reports = [path / "report.json" if path.is_dir() else path for path in runs]
        names = [path.resolve().parent.name for path in reports]
        if len({*names}) < len(names):  # outputs/base/eval, outputs/tuned/eval
            names = [str(path) for path in runs]
        print(understanding_table({name: read_report(path) for name, path in zip(names, reports, strict=True)}))
        return
    if len(runs) != 2:
        raise ValueError(f"compare: seen {len(runs)} runs, expected two, or --table")
    first, second = (path / "predictions.jsonl" if path.is_dir() else path for path in runs)
    result = paired(read_records(first), read_records(second))
    left = [f"{suite}: {one['why']}" for suite, one in result.items() if "why" in one]
    if len(left) == len(result):
        raise ValueError(f"{second}: seen no suite to compare with {first}, expected one ({'; '.join(left)})")
    print(f"{'suite':24}{'figure':>12}{'a':>9}{'b':>9}{'b - a':>9}   95% interval       p   gained  lost   resampled")
    for suite, one in result.items():
        if "why" in one:
            continue
        print(
            f"{suite:24}{one['main']:>12}{one['a']:>9.3f}{one['b']:>9.3f}{one['mean']:>+9.3f}   "
            f"{one['low']:+.3f} to {one['high']:+.3f}{one['p']:>8.3f}{len(one['gained']):>8}{len(one['lost']):>6}   "
            f"{one['resampled']}"
        )
    for line in left:
        print(f"not compared: {line}")
    if out is not None:
        write_json(out, result)


def read_report(path: Path) -> dict[str, Any]:
    """A report.json; ValueError for something else."""
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: seen no JSON ({error}), expected a report.json") from None
    if not isinstance(report, dict) or not all(isinstance(one, dict) and "figures" in one for one in report.values()):
        raise ValueError(f"{path}: seen something else, expected a report.json with the figures of each suite")
    return report
