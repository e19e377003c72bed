"""What a newcomer met and no other file shows; `newcomer.py` has the whole list."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.integration import tiny
from tests.integration.newcomer import ITEMS, ROOT
from tests.integration.test_fit import tiny_vlm
from tests.unit.rl.test_rewards import make_sample
from ts_lightning.cli import main
from ts_lightning.data.sample import SampleRegion
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.models import TaskRouter, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.rewards import object_reward
from ts_lightning.runs.export import write_checkpoint
from ts_lightning.training import StepwiseSFT


def test_every_item_is_shown_by_tests_that_are_there() -> None:
    assert list(ITEMS) == list(range(1, 12))
    for _, shown in ITEMS.values():
        for test in shown:
            file, _, function = test.partition("::")
            text = (ROOT / file).read_text()
            assert not function or re.search(rf"^def {function}\(", text, re.M), test


def test_item_3_answers_that_are_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(StepwiseSFT(tiny_vlm(), max_new_tokens=2), tmp_path / "x.ckpt")
    suites = json.dumps({"toy": {"shards": tiny.write(tmp_path, ["rec"] * 3)}})
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    assert main(["validate", "--ckpt_path", str(tmp_path / "x.ckpt"), "--data.init_args.val", suites, *root]) == 0
    assert "expected at most max_new_tokens 2: 3 of the first 3 can't be answered whole" in caplog.text
    assert re.search(r"val/toy/cut_off +1\.0000", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "scout"])
def test_item_4_a_reward_without_tags(name: str) -> None:
    box, codec = (0.25, 0.25, 0.75, 0.5), get_codec(name)
    sample = make_sample([SampleRegion(image=0, box=box)], images=1)
    text = codec.format([box], sample.sizes[0])
    assert "<answer>" not in text
    assert object_reward(Completion(text, [1], True, read_completion(text, codec, sample)), sample) == 1


def test_item_4_another_every_is_named(tmp_path: Path) -> None:
    write_checkpoint(StepwiseSFT(tiny_vlm()), tmp_path / "x.ckpt")
    torch.manual_seed(0)
    backbone = TinyBackbone(**tiny.BACKBONE["init_args"])
    with pytest.raises(ValueError, match=r"the options that it was trained with: every"):
        TwinExpertVLM(backbone, every=2, train_token_rows=["codec"], init_from=str(tmp_path / "x.ckpt"))


def test_item_5_questions_for_a_place() -> None:
    router = TaskRouter.load()
    asked = (
        "Where is the umbrella?",
        "where's the dog in this photo?",
        "Find the red car.",
        "Locate the laptop.",
        "point to the cat",
        "Show me the dog",
        "Where in the picture can I find the clock?",
        "What is the person holding? Show where.",
        "find the person on the left",
        "<ref>the dog</ref>",
    )
    assert [router(prompt) for prompt in asked] == ["grounding"] * len(asked)
