"""Scores under box noise, drawn (ChatSpot 5.1, Figure 5)."""

from pathlib import Path

from matplotlib.figure import Figure

from ts_lightning.metrics.robustness import Rows


def plot_noise(rows: Rows, path: str | Path) -> None:
    """Draw every suite's score by noise scale."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, row in rows.items():
        axis.plot(list(row), list(row.values()), marker="o", markersize=4, label=name)
    axis.set(xlabel="box noise (each edge moves by up to this share of its side)", ylabel="accuracy", ylim=(0, 1.02))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
