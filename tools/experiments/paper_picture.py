"""What was learned against what was kept, one point a row: the picture at the top of the README."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from tools.experiments.paper_report import Table
from tools.experiments.paper_rows import Bench

SKILL, KEPT = "new/acc50", "understanding/accuracy"
COLORS = ("#0a4db3", "#1f9e89", "#d1495b", "#e08e45", "#8d6a9f", "#5c5c5c", "#4fb3ff", "#a0522d", "#7a8f00", "#e377c2")
MARKS = {"TWIST": "o", "LoRA": "s", "DoRA": "s", "full": "D"}  # by a word of the row's name


def draw(tables: Sequence[Table], bench: Bench, seeds: Sequence[int], out: Path) -> int:
    """Write the picture of every tuned row of the tables that has a run; the number of points."""
    rows = {bench.name(table.world, row): (table.world, row) for table in tables for row in table.rows if row.config}
    runs = {
        row.name: [line["figures"] for seed in seeds if (line := bench.kept(world, row, seed))]
        for world, row in rows.values()
    }
    runs = {name: lines for name, lines in runs.items() if lines}
    if not runs:
        return 0
    words = next((r for t in tables for r in t.rows if r.ask.get("words")), None)
    figure, axis = plt.subplots(figsize=(7.5, 4.2), constrained_layout=True)
    for number, (name, lines) in enumerate(runs.items()):
        kept, skill = ([line[figure_name] for line in lines] for figure_name in (KEPT, SKILL))
        color, mark = COLORS[number], next(mark for word, mark in MARKS.items() if word in name)
        axis.scatter(kept, skill, s=28, color=color, marker=mark, alpha=0.45)
        label = f"{name} ({len(lines)} seed{'s' if len(lines) > 1 else ''})"
        axis.scatter(sum(kept) / len(kept), sum(skill) / len(skill), s=100, color=color, marker=mark, label=label)
    if words and (line := bench.kept(tables[0].world, words, 0)):
        axis.axhline(line["figures"][SKILL], color="#888888", linestyle=":", label="base, asked in words")
    axis.set(xlabel="kept: understanding questions answered rightly", ylabel="learned: new objects, Acc@0.5")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return len(runs)
