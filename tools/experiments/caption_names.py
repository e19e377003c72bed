"""The picture of docs/evaluation.md: hand-made names of captions that go to a wrong class, by threshold.

python -m tools.experiments.caption_names
"""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ts_lightning.metrics.class_mapping import ClassMapper, sentence_embedder
from ts_lightning.metrics.gic import SYNONYMS

ROOT = Path(__file__).parents[2]
NAMES: dict[str, str | None] = json.loads((ROOT / "tests/fixtures/caption_names.json").read_text())


def mapping_accuracy(mapper: ClassMapper, names: Mapping[str, str | None]) -> dict[str, float]:
    """How many of the hand-made names went to their class (None: to no class).

    `accuracy` over the names that have a class, `kept_out` over those that have none.
    """
    found = [index for index, _ in mapper(list(names))]
    right = [
        (true is not None, (None if index is None else mapper.names[index]) == true)
        for index, true in zip(found, names.values(), strict=True)
    ]
    known, other = [ok for has, ok in right if has], [ok for has, ok in right if not has]
    return {
        "accuracy": sum(known) / len(known) if known else float("nan"),
        "kept_out": sum(other) / len(other) if other else float("nan"),
    }


def by_threshold(mapper: ClassMapper, names: Mapping[str, str | None]) -> dict[float, dict[str, float]]:
    """`mapping_accuracy` at thresholds from 0.2 to 0.95."""
    return {n / 100: mapping_accuracy(mapper.at(n / 100), names) for n in range(20, 96, 5)}


def main() -> None:
    found = by_threshold(ClassMapper(list(SYNONYMS), sentence_embedder(), SYNONYMS), NAMES)
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    labels = {"accuracy": "names of a class: wrong or lost", "kept_out": "names of none: given a class"}
    for key, label in labels.items():
        axis.plot(list(found), [1 - one[key] for one in found.values()], marker="o", markersize=4, label=label)
    axis.set(xlabel="threshold (cosine)", ylabel="share", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs/images/gic_threshold.png", dpi=110)


if __name__ == "__main__":
    main()
