"""The report of many suites: report.json, report.md and report.html with galleries."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ts_lightning.grounding.boxes import iou
from ts_lightning.grounding.foreign_text import markdown_text
from ts_lightning.metrics.record import Record
from ts_lightning.metrics.suites import by_suite
from ts_lightning.reports.json_file import write_json
from ts_lightning.reports.pictures import write_sheets

Scores = Mapping[str, Mapping[str, Any]]
Words = Callable[[Any], str]
COLUMNS = ("suite", "rule", "questions", "figure", "score", "95% interval", "paper", "against it", "cut off")
# Sums and marks are printed as they are, and so is every whole number: a count; other figures in per cent as papers do.
NO_SHARE = frozenset(("perception", "cognition", "perception_ours", "cognition_ours", "score"))
_NUMBER = re.compile(r"-|[-+]?[\d.]+(?: to [-+]?[\d.]+)?(?: \((?:better|worse|equal)\))?", re.ASCII)
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d8dee6 }
.wide { overflow-x: auto } td.n { white-space: nowrap }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
.better { color: #0b6b2e; font-weight: 600 } .worse { color: #a3261c; font-weight: 600 } .main { font-weight: 600 }
h2 { margin-top: 2.5rem } .warn { background: #fff3cd; padding: .5rem .8rem; border-radius: 4px }
.figures { column-width: 15rem; column-gap: 2rem; max-width: 66rem }
.figures div { display: flex; justify-content: space-between; border-bottom: 1px solid #e9edf2; break-inside: avoid }
img { max-width: 100%; border: 1px solid #d8dee6 }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .1rem 1rem }
dt { color: #5b6875 } dd { margin: 0 } details { margin: .5rem 0 } pre { white-space: pre-wrap }
"""


class Against(NamedTuple):
    """A figure beside a paper's: `ours` and `theirs` as printed, `difference` in the same unit."""

    figure: str
    ours: str
    theirs: str
    source: str
    difference: float

    @property
    def verdict(self) -> str:
        return "better" if self.difference > 0 else "worse" if self.difference < 0 else "equal"

    @property
    def text(self) -> str:
        return f"{self.difference:+.1f} ({self.verdict})" if self.difference == self.difference else "-"


def write_suite_report(scores: Scores, records: Sequence[Record], out: str | Path, title: str = "Evaluation") -> Path:
    """Write the three files and, where shards are at hand, the galleries; returns report.html."""
    out = Path(out)
    write_json(out / "report.json", scores)
    (out / "report.md").write_text(f"# {markdown_text(title)}\n\n{markdown(scores)}\n")
    galleries = write_galleries(records, out / "pictures")
    # of the entries of one suite the first is of its boxes
    first = {one["suite"]: name for name, one in reversed([*scores.items()])}
    page = _page(scores, title, {first[k]: [p.relative_to(out) for p in v] for k, v in galleries.items()})
    (out / "report.html").write_text(page)
    return out / "report.html"


def write_galleries(records: Sequence[Record], folder: Path, limit: int = 8) -> dict[str, list[Path]]:
    """Contact sheets of each box suite: the best, the worst, the unparsable, those on the wrong picture."""
    galleries = {}
    for suite, group in by_suite(records).items():
        boxed = [r for r in group if r.truth.box is not None and Path(r.shard).is_file()]
        if not boxed:
            continue
        order = sorted(boxed, key=_overlap)
        parsed = [r for r in order if r.answer.box is not None]
        chosen = {
            "best": parsed[::-1],
            "worst": parsed,
            "unparsable": [r for r in order if r.answer.box is None],
            "wrong picture": [
                r for r in order if r.answer.image is not None and r.truth.image not in (None, r.answer.image)
            ],
        }
        named = [replace(r, suite=f"{suite} {name}") for name, some in chosen.items() for r in some[:limit]]
        galleries[suite] = write_sheets(named, folder, limit)
    return galleries


def _overlap(record: Record) -> float:
    box, true = record.answer.box, record.truth.box
    return 0.0 if box is None or true is None else iou(box, true)


def against(one: Mapping[str, Any]) -> list[Against]:
    """Every figure of a suite that papers print too, the main one first."""
    found = []
    for figure, values in one["paper"].items():
        ours = one["figures"].get(figure, float("nan"))
        for value, source in values:
            difference = (ours - value) * (1 if figure in NO_SHARE else 100)
            found.append(Against(figure, number(figure, ours), number(figure, value), source, difference))
    return sorted(found, key=lambda row: row.figure != one["main"])


def rows(scores: Scores) -> list[list[str]]:
    """The table's cells, a row a suite."""
    table = []
    for suite, one in scores.items():
        main = [row for row in against(one) if row.figure == one["main"]][:1]
        table.append(
            [
                suite,
                _rule(one),
                str(one["questions"]),
                one["main"],
                number(one["main"], one["score"]),
                _interval(one),
                f"{main[0].theirs} ({main[0].source})" if main else "-",
                main[0].text if main else "-",
                number("cut_off", one["figures"].get("cut_off")),
            ]
        )
    return table


def _rule(one: Mapping[str, Any]) -> str:
    """The protocol, and whose reading or whose prompt it is."""
    whose = one["convention"].get("prompt") or one["reading"]
    return one["protocol"] if whose in ("-", "lenient", one["protocol"]) else f"{one['protocol']}, {whose}"


def _interval(one: Mapping[str, Any]) -> str:
    if one["interval"] is None:
        return "-"
    return " to ".join(number(one["main"], value) for value in one["interval"])


def markdown(scores: Scores, text: Words = markdown_text) -> str:
    """The table, and under it for each suite the papers' figures, all figures a line each, and the convention.

    `text` writes names and cells: for a terminal `foreign_text.visible`.
    """
    lines = _table(text, COLUMNS, rows(scores))
    for suite, one in scores.items():
        lines += ["", f"## {text(suite)}", ""]
        if warning := one["figures"].get("warning"):
            lines += [f"**{text(warning)}**", ""]
        if others := against(one):
            lines += _table(text, ("figure", "ours", "paper", "against it"), _paper_rows(others))
        if cells := figures(one):
            lines += ["", *_table(text, ("figure", "value"), cells)]
        for head, body in group_tables(one):
            lines += ["", *_table(text, head, body)]
        lines += ["", *(f"- {text(k)}: {text(v)}" for k, v in about(one).items())]
    return "\n".join(lines)


def _table(text: Words, head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(text(name) for name in head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(text(cell) for cell in row) + " |" for row in body]


def _paper_rows(found: Sequence[Against]) -> list[list[str]]:
    return [[one.figure, one.ours, f"{one.theirs} ({one.source})", one.text] for one in found]


def figures(one: Mapping[str, Any]) -> list[list[str]]:
    """Name and value of every figure of a suite, the main one first."""
    known = {k: v for k, v in one["figures"].items() if isinstance(v, int | float) and v == v}
    names = sorted(known, key=lambda name: name != one["main"])
    return [[name, number(name, known[name])] for name in names]


def group_tables(one: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Head and rows of each table of a suite's groups: tasks or categories, else subtasks; classes."""
    unit = "score" if one["main"] in NO_SHARE else one["main"]
    groups: dict[str, dict[str, Mapping[str, Any]]] = {
        name: {key: value if isinstance(value, Mapping) else {unit: value} for key, value in group.items()}
        for name, group in one["figures"].items()
        if isinstance(group, Mapping) and group
    }
    if not {"by_task", "by_category"} & groups.keys() and len(one["subtasks"]) > 1:
        keep = (one["main"], "acc50", "miou", "accuracy", "unparsed", "unread", "cut_off")
        groups["subtasks"] = {
            key or "no subtask": {name: value[name] for name in keep if name in value}
            for key, value in one["subtasks"].items()
        }
    tables = []
    for parts in groups.values():
        names = list(dict.fromkeys(name for part in parts.values() for name in part))
        body = [[key, *(number(n, part.get(n)) for n in names)] for key, part in parts.items()]
        tables.append((["part", *names], body))
    return tables


def about(one: Mapping[str, Any]) -> dict[str, str]:
    """The convention of a suite, and what was not scored."""
    out = {key: str(value) for key, value in one["convention"].items()}
    if one["not_scored"]:
        why = "" if "scored" in one["convention"] else " without a truth of this kind"
        out["not scored"] = f"{one['not_scored']} records{why}"
    return out


def number(figure: str, value: Any) -> str:
    """A figure as papers print it: shares in per cent with one decimal, counts and sums as they are, - for nothing."""
    if not isinstance(value, int | float) or value != value:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if figure in NO_SHARE else f"{100 * value:.1f}"


def _page(scores: Scores, title: str, galleries: Mapping[str, Sequence[Path]]) -> str:
    text = html.escape
    parts = [f"<h1>{text(title)}</h1><p>Shares are in per cent.</p>", _html_table(COLUMNS, rows(scores))]
    for suite, one in scores.items():
        parts.append(f"<h2>{text(suite)}</h2>")
        if warning := one["figures"].get("warning"):
            parts.append(f'<p class="warn">{text(warning)}</p>')
        if others := against(one):
            parts.append(_html_table(("figure", "ours", "paper", "against it"), _paper_rows(others)))
        if cells := figures(one):
            lines = "".join(f"<div><span>{text(k)}</span><span>{text(v)}</span></div>" for k, v in cells)
            parts.append(f'<div class="figures">{lines}</div>')
        parts += [_html_table(head, body) for head, body in group_tables(one)]
        told = "".join(f"<dt>{text(k)}</dt><dd><pre>{text(v)}</pre></dd>" for k, v in about(one).items())
        parts.append(f"<details><summary>how it was scored</summary><dl>{told}</dl></details>")
        for path in galleries.get(suite, ()):
            source = text(path.as_posix(), quote=True)
            parts.append(f'<details open><summary>{text(path.stem)}</summary><img src="{source}" alt=""></details>')
    return f'<!doctype html><meta charset="utf-8"><title>{text(title)}</title><style>{_CSS}</style>{"".join(parts)}\n'


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ["".join(_cell(cell) for cell in row) for row in body]
    inside = f"<tr>{cells}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}"
    return f'<div class="wide"><table>{inside}</table></div>'


def _cell(cell: str) -> str:
    kind = next((name for name in ("better", "worse") if cell.endswith(f"({name})")), "")
    kind = f"n {kind}" if _NUMBER.fullmatch(cell) else kind
    return f'<td class="{kind}">{html.escape(cell)}</td>' if kind else f"<td>{html.escape(cell)}</td>"
