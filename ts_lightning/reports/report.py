"""The report of one tuning run: report.json, report.md, the one table that is printed, and curves.png."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ts_lightning.reports.json_file import write_json
from ts_lightning.runs.metrics_log import read_metrics

REQUIRED = (
    "base.miou",
    "base.acc50",
    "tuned.miou",
    "tuned.acc50",
    "understanding.before",
    "understanding.after",
    "certificate.passed",
    "seconds",
    "peak_rss_mb",
    "samples_per_second",
)
_COLUMNS = ("base", "base_in_words", "tuned")
_ROWS = (  # a row's name, where its figures are in the report's columns, what stands in brackets behind the name
    ("known objects, mIoU", "{}.miou", None),
    ("known objects, Acc@0.5", "{}.acc50", "tuned.rule"),
    ("no box could be read", "{}.unparsed", "tuned.parser"),
    ("new objects, mIoU", "new.{}.miou", None),
    ("new objects, Acc@0.5", "new.{}.acc50", None),
    ("boxes of steps found", "{}.steps.step_recall", None),
    ("invalid questions rejected", "{}.steps.rejection_rate", None),
    ("valid questions rejected", "{}.steps.false_rejection_rate", None),
)


def lookup(report: Mapping[str, Any], key: str) -> Any:
    """`report["base"]["miou"]` for "base.miou"; None where a part is missing."""
    value: Any = report
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def write_report(
    folder: str | Path, report: Mapping[str, Any], history: str | Path | None = None, title: str = "Quickstart"
) -> str:
    """Write report.json, report.md and, with `history` (a metrics.csv), curves.png; return the table for printing.

    report: nested plain values that hold at least the keys in `REQUIRED` ({"base": {"miou": ...}, ...}); shares are
    in [0, 1]. ValueError names a missing key. Pictures in `folder`/pictures are linked from report.md.
    """
    missing = [key for key in REQUIRED if lookup(report, key) is None]
    if missing:
        raise ValueError(f"report: seen no {', '.join(missing)}, expected {', '.join(REQUIRED)}")
    folder = Path(folder)
    write_json(folder / "report.json", report)
    text = table(report)
    parts = [f"# {title}", "```\n" + text + "\n```"]
    if history is not None:
        plot_curves(history, folder / "curves.png")
        parts.append("![loss, alpha and validation curves](curves.png)")
    parts += [f"![{path.stem}](pictures/{path.name})" for path in sorted((folder / "pictures").glob("*.png"))]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n")
    return text


def table(report: Mapping[str, Any]) -> str:
    """The table of a run in plain text: base and tuned side by side, then what was paid for it.

    With `base_in_words` a column between them: the base's own knowledge of the same places, asked for in words.
    """
    columns = [name for name in _COLUMNS if lookup(report, name) is not None]
    rows = [("", *(name.removeprefix("base_").replace("_", " ") for name in columns))]
    for label, where, note in _ROWS:
        values = [lookup(report, where.format(name)) for name in columns]
        if any(map(_is_number, values)):
            rows.append(
                (f"{label} ({lookup(report, note)})" if note and lookup(report, note) else label, *map(_share, values))
            )
    said = {name: lookup(report, f"understanding.{key}") for name, key in (("base", "before"), ("tuned", "after"))}
    rows.append(("understanding accuracy", *(_share(said.get(name)) for name in columns)))
    if _is_number(routed := lookup(report, "understanding.routed")):
        rows.append(
            ("understanding, task by the router", *(_share(routed if name == "tuned" else None) for name in columns))
        )
    wide = max(len(row[0]) for row in rows) + 2
    lines = ["".join([f"{name:<{wide}}", *(f"{value:>10}" for value in values)]).rstrip() for name, *values in rows]
    rule_line = "-" * max(map(len, lines))
    lines.insert(1, rule_line)
    minutes, seconds = divmod(round(report["seconds"]), 60)
    speed = report["samples_per_second"]
    below = (
        ("retention certificate", _certificate(report["certificate"])),
        ("time", f"{minutes} min {seconds} s"),
        ("training speed", f"{speed:.0f} samples/s" if _is_number(speed) else "too short to tell"),
        ("peak memory", f"{report['peak_rss_mb']:.0f} MB"),
    )
    return "\n".join([*lines, rule_line, *(f"{name:<{wide}}  {value}" for name, value in below)])


def plot_curves(history: str | Path, out: str | Path) -> None:
    """Draw loss, alpha and validation curves by step from a run's metrics.jsonl or metrics.csv."""
    columns = read_history(history)
    suites = [name for name in columns if name.startswith("val/") and name.count("/") == 2]
    panels = (
        ("training loss", [name for name in columns if name.removesuffix("_step") == "train/loss"]),
        ("alpha (1 = understanding only)", [name for name in columns if name.startswith("train/alpha")]),
        ("validation", [name for name in suites if name.endswith(("/miou", "/acc50", "/accuracy"))]),
    )
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            steps, values = zip(*columns[name], strict=True)
            if title == "training loss":
                axis.plot(steps, values, color="#b8c9e6", linewidth=0.8)
                axis.plot(steps, smooth(values), color="#0a4db3", label="smoothed")
                continue
            style = {"marker": "o", "markersize": 3, "linestyle": "-" if name.endswith("miou") else "--"}
            axis.plot(steps, values, label=name.split("/", 1)[1], **(style if title == "validation" else {}))
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.25)
        if 0 < len(names) <= 8:
            axis.legend(fontsize=8, frameon=False)
    figure.savefig(out, dpi=110)


def read_history(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Columns of a run's metrics as (step, value) pairs; what is not finite is left out (`runs.metrics_log`)."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(path):
        for name, value in row.items():
            if name not in ("step", "epoch") and math.isfinite(value):
                columns.setdefault(name, []).append((row["step"], float(value)))
    return columns


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a twentieth of the values, without the bias of its start."""
    weight = 1 - 1 / max(2.0, len(values) / 20)
    average, total, out = 0.0, 0.0, []
    for value in values:
        average, total = weight * average + (1 - weight) * value, weight * total + (1 - weight)
        out.append(average / total)
    return out


def _certificate(certificate: Mapping[str, Any]) -> str:
    verdict = "passed" if certificate["passed"] else "FAILED"
    if "tensors_compared" not in certificate:
        return verdict
    logits = certificate["logits"]
    equal = "bitwise equal" if logits["bitwise_equal"] else f"differ by up to {logits['max_abs_diff']:.2g}"
    same = certificate["tensors_compared"] - len(certificate["differing"])
    return f"{verdict}: {same} of {certificate['tensors_compared']} frozen tensors equal, logits {equal}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _share(value: Any) -> str:
    return f"{value:.3f}" if _is_number(value) else "-"
