"""Wordings that no template of the task router's training made: people's own, and the questions of real files."""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from tools.experiments.task_router.training import Pair
from ts_lightning.pipelines.converters.files import plain_pickles

WRITTEN = Path("tests/fixtures/router_wordings.tsv")
BLIND = Path("tests/fixtures/router_blind.tsv")  # written after the shipped router; nothing was decided by them
MADE = ("hi", "explain the joke", "Suggest a title.", "What's in the box [120, 44, 310, 290]?")  # by a template too
DRAWN = {"refcoco": 64, "refcocos": 20, "mig_bench": 40, "pope": 80}  # pope has no more


def written(path: Path = WRITTEN) -> list[Pair]:
    """The (prompt, task) of a file of `task TAB prompt` lines."""
    lines = (line.split("\t", 1) for line in path.read_text().splitlines())
    return [(prompt, task) for task, prompt in lines]


def expressions(path: Path, even: bool) -> list[str]:
    """The expressions of the even or the odd rows of a RefCOCO split file (.pth), each once."""
    rows = plain_pickles(path, 4)[3]  # after what torch writes first
    return list(dict.fromkeys(row[3].strip() for row in rows[0 if even else 1 :: 2]))


def real(folder: Path) -> dict[str, list[Pair]]:
    """The (prompt, task) of each real file, each text once; of RefCOCO the odd rows that no even row repeats."""
    split = folder / "refcoco/unc_testA.pth"
    trained = {phrase.lower() for phrase in expressions(split, even=True)}
    refcocos = json.loads((folder / "refcocos/refcocos_test.json").read_text())
    mig = json.loads((folder / "mig_bench/MIG_data.json").read_text())
    pope = map(json.loads, (folder / "pope/coco_pope_random.json").read_text().splitlines())
    return {
        "refcoco": _once((p for p in expressions(split, even=False) if p.lower() not in trained), "grounding"),
        "refcocos": _once((row["normal_caption"] for row in refcocos), "grounding"),
        "refcocos, as asked": _once((row["problem"] for row in refcocos), "grounding"),
        "mig_bench": _once((row["question"] for row in mig), "grounding"),
        "pope": _once((row["text"] for row in pope), "understanding"),
    }


def unmade(sets: dict[str, list[Pair]], seed: int = 1) -> list[Pair]:
    """300 wordings that no template made: the written ones, and drawn ones of the real files."""
    random = Random(seed)
    picked = [pair for name, number in DRAWN.items() for pair in random.sample(sets[name], number)]
    return [*(pair for pair in written() if pair[0] not in MADE), *picked]


def blind(sets: dict[str, list[Pair]]) -> list[Pair]:
    """Wordings that came after the shipped router: 60 written ones, and drawn ones of the real files, none of `unmade`.

    All texts of POPE are among the 300.
    """
    asked = {pair for seed in (0, 1) for pair in unmade(sets, seed)}
    random = Random(2)
    fresh = {name: [pair for pair in sets[name] if pair not in asked] for name in DRAWN if name != "pope"}
    return [*written(BLIND), *(pair for name, some in fresh.items() for pair in random.sample(some, DRAWN[name]))]


def _once(prompts: Iterable[str], task: str) -> list[Pair]:
    return [(prompt, task) for prompt in dict.fromkeys(prompt.strip() for prompt in prompts)]
