"""The papers' tables in miniature as Markdown, each finding with its verdict, and their place in docs/papers.md."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.experiments.paper_rows import Bench, Row, World, by_name
from ts_lightning.metrics.intervals import paired

HOLDS, FAILS, UNSEEN, OPEN = "holds", "does not hold here", "can't be seen at this size", "not run yet"


@dataclass(frozen=True)
class Finding:
    """What a paper says of two of its rows, and the suite whose questions decide it here.

    more: the row that is said to be better, less: the other. same: both are said to answer the same questions rightly.
    less_suite: where the other row is asked the same questions in another suite.
    """

    claim: str
    less: str
    more: str
    suite: str
    same: bool = False
    less_suite: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper: its name for --table, its title, columns (figure -> heading), rows and findings."""

    name: str
    title: str
    world: World
    columns: Mapping[str, str]
    rows: Sequence[Row]
    findings: Sequence[Finding] = field(default_factory=tuple)
    note: str = ""


def markdown(table: Table, bench: Bench, seeds: Sequence[int]) -> str:
    """The table with every row: means over the seeds that are there, their range, or the reason why there is none."""
    lines = [["row", "seeds", *table.columns.values(), "the paper's", "trained", "minutes"]]
    lines.append(["---"] * len(lines[0]))
    for row in table.rows:
        kept = [line for seed in seeds if (line := bench.kept(table.world, row, seed))]
        cells = [cell(kept, name) for name in table.columns]
        if not kept:
            cells[0] = row.reason or OPEN
        minutes = [line["seconds"] / 60 for line in kept if "seconds" in line]
        trained = f"{kept[0]['trained']:,}" if kept and "trained" in kept[0] else ""
        spent = f"{statistics.mean(minutes):.1f}" if minutes else ""
        lines.append([row.name, str(len({line["seed"] for line in kept}) or ""), *cells, row.paper, trained, spent])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    verdicts = "\n".join(f"- {one.claim}: {verdict(table, one, bench, seeds)}" for one in table.findings)
    run = f"`python -m tools.experiments.papers --table {table.name}`"
    return "\n\n".join(part for part in (f"## {table.title}", table.note, run, text, verdicts) if part)


def cell(lines: Sequence[Mapping[str, Any]], figure: str) -> str:
    """The mean over seeds and, of several, their range."""
    values = [line["figures"][figure] for line in lines if figure in line["figures"]]
    if not values:
        return "-" if lines else ""
    if max(values) > 1:  # a count
        return f"{statistics.mean(values):.0f}"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(set(values)) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def verdict(table: Table, finding: Finding, bench: Bench, seeds: Sequence[int]) -> str:
    """`holds, +0.031 (+0.010 to +0.052; ...)`: the paired difference of questions, each the mean over its seeds.

    The interval is over questions; it does not cover what another seed would do.
    """
    less, more = (
        {seed: line for seed in seeds if (line := bench.kept(table.world, by_name(table.rows, name), seed))}
        for name in (finding.less, finding.more)
    )
    seen = [seed for seed in seeds if seed in less and seed in more]
    if not seen:
        return OPEN
    asked = (less, finding.less_suite or finding.suite), (more, finding.suite)
    a, b = ([one[seed]["right"][suite] for seed in seen] for one, suite in asked)
    found = paired(_shares(a), _shares(b))
    figures = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}; {len(a[0])} questions, seeds {seen})"
    if finding.same:
        return f"{HOLDS if a == b else FAILS}, {figures}"
    return f"{HOLDS if found.low > 0 else FAILS if found.high < 0 else UNSEEN}, {figures}"


def _shares(runs: Sequence[str]) -> list[float]:
    """For each question the share of runs that answer it rightly."""
    return [sum(map(int, digits)) / len(runs) for digits in zip(*runs, strict=True)]


def write_docs(path: Path, table: Table, text: str) -> None:
    """Put a table between its two markers in a page; ValueError where the page has none."""
    first, last = f"<!-- table {table.name} -->", f"<!-- end of table {table.name} -->"
    page = path.read_text()
    if first not in page or last not in page:
        raise ValueError(f"{path}: seen no {first} and {last}, expected both around the table's place")
    between = re.compile(re.escape(first) + ".*?" + re.escape(last), re.DOTALL)
    path.write_text(between.sub(lambda _: f"{first}\n{text}\n{last}", page))
