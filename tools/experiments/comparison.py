"""TWIST beside its baselines at equal cost: what was learned, what was forgotten, and what routing changes."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.experiments.fit_once import fit_once
from ts_lightning.cli.main_job import SUITES, validate
from ts_lightning.data import ShardSource, index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.models import PlainVLM, TaskRouter
from ts_lightning.models.task_router_training import confusion
from ts_lightning.runs.load import load
from ts_lightning.training import SFT, BaseModule

FORCED, ROUTED = "given", "auto"
MEASURES = ("grounding/miou", "grounding/acc50", "understanding/accuracy")


def compare(configs: Sequence[Path], shards: Path, out: Path, steps: int, overrides: Sequence[str] = ()) -> str:
    """Fit every configuration for `steps` on the same shards, score the base and each, forced and routed.

    Restartable: a finished run is not trained again, one that was stopped goes on from its last checkpoint. Writes
    `comparison.json` and `comparison.md` into `out`, and returns the table.
    """
    suites = {name: ShardSource(str(shards / f"val_{name}-*.tar")) for name in SUITES}
    data = [f"--data.init_args.train.shards={shards}/train-*.tar"]
    data += [f"--data.init_args.val.{name}.shards={source.shards}" for name, source in suites.items()]
    options = ["--trainer.limit_val_batches=0", *data, *overrides]
    runs = {config.stem: fit_once(config, out / config.stem, options, steps) for config in configs}
    modules = {name: load(run["checkpoint"]) for name, run in runs.items()}
    backbone = next(iter(modules.values())).vlm.backbone
    base = SFT(PlainVLM(type(backbone)(**backbone.init_args), train=["*"]))
    base.max_new_tokens = max(module.max_new_tokens for module in modules.values())
    rows: list[dict[str, Any]] = [{"run": "base", **scores(base, suites)}]
    for name, module in modules.items():
        trained = sum(p.numel() for p in module.vlm.parameters() if p.requires_grad)
        rows.append({"run": name, "trained": trained, **runs[name], **scores(module, suites)})
    result = {"rows": rows, "router": confusions(TaskRouter.load(), suites)}
    (out / "comparison.json").write_text(json.dumps(result, indent=1) + "\n")
    table = as_table(result)
    (out / "comparison.md").write_text(table + "\n")
    return table


def scores(module: BaseModule, suites: Mapping[str, ShardSource]) -> dict[str, dict[str, float]]:
    """Figures of the suites with the records' own tasks (`forced`) and with those of the task router (`routed`)."""
    found = {}
    for name, policy in (("forced", FORCED), ("routed", ROUTED)):
        module.answer_as(policy)
        found[name] = {k.removeprefix("val/"): v for k, v in validate(module, suites).items()}
    module.answer_as(FORCED)
    return found


def confusions(router: TaskRouter, suites: Mapping[str, ShardSource]) -> dict[str, dict[str, int]]:
    """`true task -> chosen task` counts of every suite's questions."""
    found = {}
    for name, source in suites.items():
        reader = ShardReader(manifest := index_shards(source.shards))
        samples = [reader.read(i) for i in range(manifest.num_samples)]
        counts: Counter[tuple[str, str]] = confusion(router, [(s.turns[-2].text, s.task) for s in samples])[0]
        found[name] = {f"{true} -> {chosen}": n for (true, chosen), n in sorted(counts.items())}
    return found


def as_table(result: Mapping[str, Any]) -> str:
    """The comparison for people; understanding before is the base's."""
    before = result["rows"][0]["forced"]["understanding/accuracy"]
    lines: list[list[str]] = []
    for row in result["rows"]:
        forced, routed = row["forced"], row["routed"]
        cost = (
            [f"{row['trained']:,}", str(row["steps"]), f"{row['seconds']:.0f}"] if "trained" in row else ["0", "", ""]
        )
        figures = [forced[MEASURES[0]], forced[MEASURES[1]], before, forced[MEASURES[2]], routed[MEASURES[2]]]
        lines.append([row["run"], *cost, *(f"{v:.4f}" for v in (*figures, routed[MEASURES[0]]))])
    head = ["run", "trained", "steps", "seconds", "mIoU", "Acc@0.5", "understanding before", "after, forced"]
    table = _markdown([[*head, "after, routed", "mIoU, routed"], *lines])
    routes = [[suite, choice, str(n)] for suite, counts in result["router"].items() for choice, n in counts.items()]
    return f"{table}\n\n{_markdown([['suite', 'task -> routed to', 'questions'], *routes])}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
