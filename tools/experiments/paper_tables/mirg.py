"""MIRG-RL's tables: trajectories, GRPO after them, and the image reward, over two to six pictures."""

from pathlib import Path
from typing import Any

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import SHARDS, Row, World
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples
from ts_lightning.pipelines.toy_world.shards import write_multi_image_shards, write_toy_shards

STYLES = ("answer", "reasoning", "grounded")  # 600 trajectories of each, about the same questions


def render(folder: Path, share: float) -> None:
    """Boxes in one picture, trajectories of all forms, prompts, and held-out questions of the "test" split."""
    total, val = max(40, int(16000 * share)), max(20, int(1000 * share))
    write_toy_shards(folder, max(16, int(32000 * share)), max(8, int(400 * share)))
    write_multi_image_shards(folder, total, total, val)
    if not list(folder.glob("test_mirg-*.tar")):
        write_shards(multi_image_samples("test", 2 * val), folder, "test_mirg", 2000)
    for style in STYLES:
        if not list(folder.glob(f"mirg_{style}-*.tar")):
            write_shards(multi_image_samples("sft", max(40, int(600 * share)), style), folder, f"mirg_{style}", 2000)


PAPERS = ("format", "image", "object")


def rewards(*names: str, **more: Any) -> dict[str, Any]:
    """GRPO's callbacks of fit/toy_mirg_grpo.yaml with these rewards, or the paper's, and further arguments."""
    rollout: dict[str, Any] = {"num_generations": 8, "max_new_tokens": 72, "table_every": 1000} | more
    rollout |= {"rewards": {name: f"ts_lightning.rl.{name}_reward" for name in names or PAPERS}}
    kept = {"save_last": True, "enable_version_counter": False, "every_n_train_steps": 10, "save_top_k": 1}
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": kept},
        {"class_path": "ts_lightning.rl.RolloutCallback", "init_args": rollout},
    ]
    return {"trainer": {"callbacks": callbacks}}


def sft(name: str, files: str, paper: str) -> Row:
    train = {"data": {"init_args": {"train": {"shards": f"{SHARDS}/{files}-*.tar"}}}}
    return Row(name, "fit/toy_mirg_sft.yaml", train, BASE, paper=paper)


def grpo(name: str, after: Row, paper: str, *names: str) -> Row:
    return Row(name, "fit/toy_mirg_grpo.yaml", rewards(*names), after, paper=paper)


WORLD = World(render, {"pictures": ("test_mirg-*.tar", "rec")})
BASE = Row("base with boxes in one picture", "fit/toy_mirg_base.yaml", paper="29.04")
ANSWER = sft("+ SFT, answers alone", "mirg_answer", "50.96")
REASONING = sft("+ SFT, reasoning", "mirg_reasoning", "57.74")
GROUNDED = sft("+ SFT, reasoning and grounding", "mirg_grounded", "60.60")
RL = grpo("+ RL", BASE, "35.90")
ANSWER_RL = grpo("+ SFT, answers alone + RL", ANSWER, "55.55")
REASONING_RL = grpo("+ SFT, reasoning + RL", REASONING, "62.05")
GROUNDED_RL = grpo("+ SFT, reasoning and grounding + RL", GROUNDED, "64.82")
NO_IMAGE_RL = grpo("the last without the image reward", GROUNDED, "", "format", "object")

TABLES = (
    Table(
        "mirg-3",
        "MIRG-RL, Table 3: training data and methods",
        WORLD,
        {"pictures/acc50": "Acc@0.5", "pictures/miou": "mIoU", "pictures/unparsed": "unread"},
        (BASE, RL, ANSWER, ANSWER_RL, REASONING, REASONING_RL, GROUNDED, GROUNDED_RL, NO_IMAGE_RL),
        (
            Finding("RL alone helps the base", BASE.name, RL.name, "pictures"),
            Finding("SFT on answers alone helps more than RL alone", RL.name, ANSWER.name, "pictures"),
            Finding("reasoning helps over answers alone", ANSWER.name, REASONING.name, "pictures"),
            Finding("grounded reasoning helps over reasoning", REASONING.name, GROUNDED.name, "pictures"),
            Finding("RL helps after SFT", GROUNDED.name, GROUNDED_RL.name, "pictures"),
            Finding("the image reward helps", NO_IMAGE_RL.name, GROUNDED_RL.name, "pictures"),
        ),
        "Table 2 compares two bases (Qwen2-VL, Qwen2.5-VL), and there is one tiny base here. The paper's figures are "
        "MIG-Bench's average. RL is further training, too: SFT for as long stands in the table of GRPO beside SFT.",
    ),
)
