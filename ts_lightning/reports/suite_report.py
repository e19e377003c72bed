"""The report of many suites: report.json, report.md and report.html with galleries."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.foreign_text import markdown_text
from ts_lightning.metrics.protocols.boxes import iou_values, predicted_image
from ts_lightning.metrics.suites import Record, by_suite
from ts_lightning.reports.pictures import write_sheets

Scores = Mapping[str, Mapping[str, Any]]
_COLUMNS = ("suite", "protocol", "questions", "figure", "score", "95% interval", "paper", "unparsed", "ceiling mIoU")
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d8dee6 }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
h2 { margin-top: 2.5rem } .warn { background: #fff3cd; padding: .5rem .8rem; border-radius: 4px }
img { max-width: 100%; border: 1px solid #d8dee6 }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .1rem 1rem }
dt { color: #5b6875 } dd { margin: 0 } details { margin: .5rem 0 }
"""


def write_suite_report(
    scores: Scores, records: Sequence[Record], out: str | Path, codec: Codec | None, title: str = "Evaluation"
) -> Path:
    """Write the three files and, where shards and `codec` are at hand, the galleries; returns report.html."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(strict_json(scores), indent=1) + "\n")
    (out / "report.md").write_text(f"# {markdown_text(title)}\n\n{markdown(scores)}\n")
    galleries = {} if codec is None else write_galleries(records, out / "pictures", codec)
    page = _page(scores, title, {k: [p.relative_to(out) for p in v] for k, v in galleries.items()})
    (out / "report.html").write_text(page)
    return out / "report.html"


def write_galleries(records: Sequence[Record], folder: Path, codec: Codec, limit: int = 8) -> dict[str, list[Path]]:
    """Contact sheets of each box suite: the best, the worst, the unparsable, those on the wrong image."""
    galleries = {}
    for suite, group in by_suite(records).items():
        boxed = [r for r in group if r["truth"].get("box") is not None and Path(r.get("shard") or "").is_file()]
        if not boxed:
            continue
        order = [r for _, r in sorted(zip(iou_values(boxed), boxed, strict=True), key=lambda pair: pair[0])]
        parsed = [r for r in order if r["box"] is not None]
        elsewhere = [r for r in order if r["truth"].get("image") not in (None, predicted_image(r))]
        chosen = {
            "best": parsed[::-1],
            "worst": parsed,
            "unparsable": [r for r in order if r["box"] is None],
            "wrong image": elsewhere,
        }
        named = [{**r, "suite": f"{suite} {name}"} for name, some in chosen.items() for r in some[:limit]]
        galleries[suite] = write_sheets(named, folder, codec, limit)
    return galleries


def rows(scores: Scores) -> list[list[str]]:
    """The table's cells, a row a suite."""
    table = []
    for suite, one in scores.items():
        figures, paper = one["figures"], one["paper"].get(one["main"])
        low_high = "-" if one["interval"] is None else "{:.3f} to {:.3f}".format(*one["interval"])
        table.append(
            [
                *(suite, one["protocol"], str(one["questions"]), one["main"], number(one["score"]), low_high),
                "-" if paper is None else f"{paper[0]:g} ({paper[1]})",
                number(figures.get("unparsed", figures.get("unread"))),
                number(figures.get("ceiling_miou")),
            ]
        )
    return table


def markdown(scores: Scores) -> str:
    """The table, and under it the other figures and the convention of each suite."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows(scores)]
    for suite, one in scores.items():
        lines += ["", f"## {markdown_text(suite)}", ""]
        lines += [f"- {markdown_text(k)}: {markdown_text(v)}" for k, v in details(one).items()]
    return "\n".join(lines)


def details(one: Mapping[str, Any]) -> dict[str, str]:
    """Everything of a suite that has no column: convention, warning, further figures, subtasks."""
    out = dict(one["convention"])
    figures = {k: v for k, v in one["figures"].items() if isinstance(v, int | float) and k != one["main"]}
    if figures:
        out["figures"] = ", ".join(f"{k} {number(v)}" for k, v in figures.items() if v == v)
    for name, (value, source) in one["paper"].items():
        if name != one["main"]:
            out[f"paper's {name}"] = f"{value:g} ({source})"
    for name in ("by_task", "by_category"):
        for key, value in one["figures"].get(name, {}).items():
            cells = value.items() if isinstance(value, Mapping) else [("score", value)]
            out[key] = ", ".join(f"{k} {number(v)}" for k, v in cells)
    for key, value in one["subtasks"].items():
        out[key or "no subtask"] = ", ".join(f"{k} {number(v)}" for k, v in value.items())
    if warning := one["figures"].get("warning"):
        out["warning"] = warning
    if one["not_scored"]:
        why = "" if "scored" in one["convention"] else " without a truth of this kind"
        out["not scored"] = f"{one['not_scored']} records{why}"
    return out


def number(value: Any) -> str:
    """A figure as people read it: three decimals, whole numbers as they are, - for nothing."""
    if not isinstance(value, int | float) or value != value:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def strict_json(value: Any) -> Any:
    """The same nested values for strict JSON: NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(k): strict_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(scores: Scores, title: str, galleries: Mapping[str, Sequence[Path]]) -> str:
    text = html.escape
    head = "".join(f"<th>{text(c)}</th>" for c in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{text(c)}</td>" for c in row) + "</tr>" for row in rows(scores))
    parts = [f"<h1>{text(title)}</h1><table><tr>{head}</tr>{body}</table>"]
    for suite, one in scores.items():
        parts.append(f"<h2>{text(suite)}</h2>")
        about = details(one)
        if warning := about.pop("warning", None):
            parts.append(f'<p class="warn">{text(warning)}</p>')
        parts.append("<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in about.items()) + "</dl>")
        for path in galleries.get(suite, ()):
            source = text(path.as_posix(), quote=True)
            parts.append(f'<details open><summary>{text(path.stem)}</summary><img src="{source}" alt=""></details>')
    return f'<!doctype html><meta charset="utf-8"><title>{text(title)}</title><style>{_CSS}</style>{"".join(parts)}\n'
