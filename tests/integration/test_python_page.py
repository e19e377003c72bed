"""The page "From Python": its code and commands as they stand there, with few steps."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.integration import tiny
from tests.unit.models.hf_families import make_folder
from ts_lightning import cli

PAGE = Path(__file__).parents[2] / "docs/python.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def test_the_pages_code_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder("qwen3_vl", Path("checkpoints/Qwen3-VL-2B-Instruct"))
    for name in ("train", "val"):
        tiny.write(Path("data_shards/mine"), tiny.MIXED * 2, name)
    Path("kitchen.jpg").write_bytes(tiny.jpeg((9, 9, 9)))
    trained, unsaved = blocks("python")
    names: dict = {}
    exec(re.sub(r"max_steps=\d+", "max_steps=2", trained), names)
    assert names["trainer"].global_step == 2
    assert names["reply"].task == "grounding"
    [goes_on] = re.findall(r"`(fit\(module.*?\))`", PAGE.read_text())
    [later] = re.findall(r"^trainer = Trainer\(.*?^\)$", trained, re.M | re.S)
    exec(re.sub(r"max_steps=\d+", "max_steps=3", later) + f"\ntrainer.{goes_on}", names)
    assert names["trainer"].global_step == 3
    capsys.readouterr()
    [commands] = blocks("bash")
    for line in commands.replace("\\\n", "").splitlines():
        _, *words = shlex.split(line)
        assert cli.main(words) == 0, line
    assert "val/held_out/miou" in capsys.readouterr().out
    assert Path("runs/python/package/package.safetensors").is_file()
    exec(re.sub(r"max_steps=\d+", "max_steps=1", unsaved), names)
    assert isinstance(names["trainer"].optimizers[0], torch.optim.SGD)
    with pytest.raises(ValueError, match=r"functools\.partial of a class"):
        names["trainer"].save_checkpoint("function.ckpt")
