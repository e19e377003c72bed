"""TWIST & SCOUT's tables: skill, retention, components, experts, data."""

from functools import reduce
from pathlib import Path
from random import Random
from typing import Any

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import SHARDS, Row, World, over
from ts_lightning.data.sample import Sample
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.shards import (
    NEW,
    grounding_samples,
    training_samples,
    understanding_samples,
    write_toy_shards,
)

TRAIN = f"{SHARDS}/train-*.tar"
NEGATIVE, STEPS = "negative", "cot"
NOISE = 0.3  # of the side; IoU of such a box with the true one is about 0.65


def render(folder: Path, share: float) -> None:
    """The toy world's training shards, understanding records to replay, grounding records with boxes that are off.

    And suites about scenes of the "test" split: the toy run's steps and rate were chosen by the "val" ones.
    """
    total, val = max(16, int(32000 * share)), max(8, int(400 * share))
    stamp, wanted = folder / "papers.txt", f"train {total} test {val}\n"
    if write_toy_shards(folder, total, val) or not stamp.is_file() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)  # what a killed run leaves is not what was asked for
        write_shards(understanding_samples("train", max(16, total // 8)), folder, "replay", 2000)
        write_shards(map(noisy, training_samples(total)), folder, "noisy", 2000)
        write_shards(grounding_samples("test", val, ("localization", "rec")), folder, "test_known", 2000)
        write_shards(grounding_samples("test", val, ("no_color",), domain=NEW), folder, "test_new", 2000)
        write_shards(grounding_samples("test", val // 2, ("scout", "negative")), folder, "test_steps", 2000)
        write_shards(understanding_samples("test", val), folder, "test_understanding", 2000)
        stamp.write_text(wanted)


def noisy(sample: Sample) -> Sample:
    """The sample with each edge of its boxes moved by up to NOISE of the side, drawn from its key."""
    random = Random(sample.key)
    for region in sample.regions:
        if region.box is not None:
            x1, y1, x2, y2 = region.box
            moved = [
                v + random.uniform(-NOISE, NOISE) * s for v, s in zip(region.box, (x2 - x1, y2 - y1) * 2, strict=True)
            ]
            x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in moved)
            region.box = (x1, y1, x2, y2)
    return sample


WORLD = World(
    render,
    {
        "known": ("test_known-*.tar", "rec"),
        "new": ("test_new-*.tar", "rec"),
        "steps": ("test_steps-*.tar", "steps"),
        "understanding": ("test_understanding-*.tar", "answers"),
    },
)


def vlm(**options: Any) -> dict[str, Any]:
    return {"model": {"init_args": {"vlm": {"init_args": options}}}}


def rate(lr: float) -> dict[str, Any]:
    return {"model": {"init_args": {"optimizer": {"init_args": {"lr": lr}}}}}


def train(**options: Any) -> dict[str, Any]:
    """These options of the source of the training records."""
    return {"data": {"init_args": {"train": options}}}


def run(name: str, config: str, *changes: Any, paper: str = "") -> Row:
    """A row of a configuration with these overlays on it."""
    return Row(name, config, reduce(over, changes, {}), paper=paper)


TWIST = run("TWIST", "fit/toy_twist.yaml")
FEWEST = run("1/32 of the records", TWIST.config, train(max_samples=1000), paper="PVOC mIoU 0.21 (64k)")
BASE = Row("base")
WORDS = Row("base, asked in words", ask={"words": True})
# the rates' search: small experts do better so than with alpha at ten times their rate
SLOW = {"model": {"init_args": {"alpha_lr_factor": 1.0}}}
SMALL = run("small TWIST, rank 8", "fit/toy_twist.yaml", vlm(expert_rank=8), rate(1e-2), SLOW)
LORA = run("LoRA, as many parameters", "fit/lora_toy_equal.yaml")
LORA_128 = run("LoRA, rank 128", "fit/lora_toy_r128.yaml")
DORA = run("DoRA, as many parameters", "fit/lora_toy_equal.yaml", vlm(dora=True))
FULL = run("full tuning on grounding", "fit/toy_full.yaml")
REPLAY = f"{SHARDS}/replay-*.tar"
MIXED = {"train": None, "mix": {"grounding": {"shards": TRAIN}, "understanding": {"shards": REPLAY}}}
JOINT = run("full tuning on both (replay)", "fit/toy_full.yaml", {"data": {"init_args": MIXED}})
ALONE = run("full tuning on understanding", "fit/toy_full.yaml", train(shards=REPLAY))

SKILL = {"known/acc50": "known objects, Acc@0.5", "new/acc50": "new objects, Acc@0.5"}
STEPPED = {"steps/step_recall": "boxes of steps found", "steps/rejection_rate": "rejections"}
KEPT = {"understanding/accuracy": "understanding"}


def again(row: Row, name: str, paper: str) -> Row:
    """The row with another name and the figure of another table; its run is the same."""
    return Row(name, row.config, row.changes, row.after, row.ask, paper, row.reason)


def asked(row: Row, name: str, paper: str, **ask: Any) -> Row:
    """The same run, asked otherwise."""
    return Row(name, row.config, row.changes, row.after, ask, paper)


def cited(row: Row, paper: str) -> Row:
    return again(row, row.name, paper)


TABLES = (
    Table(
        "1",
        "TWIST & SCOUT, Table 1: localization, TWIST against LoRA",
        WORLD,
        SKILL | {"known/miou": "known, mIoU", "new/miou": "new, mIoU"} | STEPPED | KEPT,
        (
            BASE,
            WORDS,
            cited(TWIST, "COCO mIoU 0.66"),
            SMALL,
            cited(LORA, "COCO mIoU 0.36 (no rank stated)"),
            LORA_128,
            DORA,
        ),
        (
            Finding("TWIST finds known objects better than LoRA", LORA.name, TWIST.name, "known"),
            Finding("TWIST finds new objects better than LoRA", LORA.name, TWIST.name, "new"),
            Finding("TWIST keeps what LoRA forgets", LORA.name, TWIST.name, "understanding"),
            Finding(
                "TWIST is right where the base is",
                BASE.name,
                TWIST.name,
                "understanding",
                True,
            ),
            Finding("small experts are right where the base is", BASE.name, SMALL.name, "understanding", True),
            Finding("full experts find new objects better than small ones", SMALL.name, TWIST.name, "new"),
        ),
    ),
    Table(
        "3",
        "TWIST & SCOUT, Tables 3 and 5: what is retained",
        WORLD,
        KEPT | SKILL | STEPPED,
        (
            cited(BASE, "GQA 61.4"),
            cited(TWIST, "GQA 61.4, GIC AP 15.0"),
            SMALL,
            LORA,
            cited(ALONE, "GQA 61.4, GIC AP 0"),
            cited(JOINT, "GQA 53.1, GIC AP 8.1"),
            cited(FULL, "GQA 0, GIC AP 10.7"),
        ),
        (
            Finding("full tuning on grounding costs understanding", FULL.name, BASE.name, "understanding"),
            Finding("replay keeps more of it", FULL.name, JOINT.name, "understanding"),
            Finding("and less than the base has", JOINT.name, BASE.name, "understanding"),
            Finding("replay costs grounding in as many steps: known objects", JOINT.name, FULL.name, "known"),
            Finding("replay costs grounding in as many steps: new objects", JOINT.name, FULL.name, "new"),
            Finding(
                "TWIST is right where the base is",
                BASE.name,
                TWIST.name,
                "understanding",
                True,
            ),
        ),
        "All rows take as many steps. With replay each step has half as many grounding questions: the run has not "
        "begun to find objects by its end, and what more steps would give it is not shown here.",
    ),
    Table(
        "4",
        "TWIST & SCOUT, Table 4: components, and alpha",
        WORLD,
        SKILL | STEPPED | KEPT | {"alpha": "alpha"},
        (
            run(
                "neither",
                "fit/toy_full.yaml",
                train(exclude_tags=[STEPS, NEGATIVE]),
                paper="RefCOCO 84.8, COCO AP 9.6",
            ),
            run("twin", "fit/toy_twist.yaml", train(exclude_tags=[STEPS, NEGATIVE]), paper="85.6, 11.4"),
            run(
                "twin, step data",
                "fit/toy_twist.yaml",
                {"model": {"init_args": {"step_loss": "sum"}}},
                paper="86.9, 13.7",
            ),
            again(TWIST, "twin, step data, step loss", "87.2, 15.0; alpha 0.31"),
            asked(TWIST, "the same, alpha 0 when asked", "AP 0", alpha=0.0),
        ),
        (
            Finding("the twin helps grounding: known objects", "neither", "twin", "known"),
            Finding("the twin helps grounding: new objects", "neither", "twin", "new"),
            Finding("step data help: known objects", "twin", "twin, step data", "known"),
            Finding("step data help: new objects", "twin", "twin, step data", "new"),
            Finding("step data help: step answers", "twin", "twin, step data", "steps"),
            Finding("the step loss helps: known objects", "twin, step data", "twin, step data, step loss", "known"),
            Finding("the step loss helps: step answers", "twin, step data", "twin, step data, step loss", "steps"),
            Finding(
                "without the understanding side (alpha 0) grounding is lost",
                "the same, alpha 0 when asked",
                "twin, step data, step loss",
                "known",
            ),
        ),
    ),
    Table(
        "7",
        "TWIST & SCOUT, Table 7: number of grounding experts",
        WORLD,
        SKILL | KEPT,
        (
            run("1 expert", "fit/toy_twist.yaml", vlm(num_experts=1), paper="RefCOCO test-A 79.8"),
            again(TWIST, "2 experts", "90.2"),
            run("4 experts", "fit/toy_twist.yaml", vlm(num_experts=4), paper="90.3"),
        ),
        (
            Finding("two experts find known objects better than one", "1 expert", "2 experts", "known"),
            Finding("two experts find new objects better than one", "1 expert", "2 experts", "new"),
            Finding("four find new objects better than two", "2 experts", "4 experts", "new"),
        ),
    ),
    Table(
        "10",
        "TWIST & SCOUT, Table 10: amount of data (nested)",
        WORLD,
        SKILL | STEPPED,
        (
            FEWEST,
            run("1/8", TWIST.config, train(max_samples=4000), paper="0.59 (256k)"),
            run("3/8", TWIST.config, train(max_samples=12000), paper="0.69 (1M)"),
            again(TWIST, "all", "0.69 (3M)"),
        ),
        (
            Finding("more data, better: 1/32 to 1/8, new objects", "1/32 of the records", "1/8", "new"),
            Finding("more data, better: 1/8 to 3/8, new objects", "1/8", "3/8", "new"),
            Finding("it still grows from 3/8 to all", "3/8", "all", "new"),
        ),
    ),
    Table(
        "9",
        "TWIST & SCOUT, Table 9: noisy boxes",
        WORLD,
        SKILL,
        (
            run(
                "noisy boxes",
                TWIST.config,
                train(shards=f"{SHARDS}/noisy-*.tar"),
                paper="AP 9.2 (VG)",
            ),
            again(TWIST, "clean boxes", "AP 15.0 (SCOUT)"),
        ),
        (Finding("noisy boxes cost known objects", "noisy boxes", "clean boxes", "known"),),
    ),
    Table(
        "A.2",
        "TWIST & SCOUT, Table A.2: negative questions",
        WORLD,
        SKILL | STEPPED,
        (
            run("without negatives", TWIST.config, train(exclude_tags=[NEGATIVE]), paper="AP 13.8"),
            again(TWIST, "with negatives", "AP 15.0"),
        ),
        (
            Finding("negatives help known objects", "without negatives", "with negatives", "known"),
            Finding("negatives help new objects", "without negatives", "with negatives", "new"),
            Finding(
                "negatives help answers in steps, a third of them rejections",
                "without negatives",
                "with negatives",
                "steps",
            ),
        ),
    ),
    Table(
        "router",
        "TWIST & SCOUT, eq. 9: the router picks the task",
        WORLD,
        SKILL | STEPPED | KEPT,
        (
            again(TWIST, "the records' own task", ""),
            asked(TWIST, "the router's", "99.98% routed rightly", task="auto"),
        ),
        (
            Finding("routing leaves understanding", "the records' own task", "the router's", "understanding", True),
            Finding("routing leaves known objects", "the records' own task", "the router's", "known", True),
        ),
    ),
)
