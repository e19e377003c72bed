"""What a user can get wrong is one line on standard error that names it, and exit status 2."""

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.data.write import write_shards
from ts_lightning.runs.ask import encoded
from ts_lightning.runs.load import load


@pytest.fixture(autouse=True)
def _no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TS_LIGHTNING_DEBUG", raising=False)


@pytest.fixture(scope="module")
def checkpoint(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fit")
    config = tiny.config(shards, root)
    config["trainer"]["max_steps"] = 1
    assert main(["fit", "-c", tiny.save(config, root / "given.yaml")]) == 0
    (path,) = (root / "checkpoints").glob("*.ckpt")
    return path


def error(capsys: pytest.CaptureFixture, *args: str) -> str:
    capsys.readouterr()
    assert main(list(args)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ts-lightning: error: ")
    return lines[0]


def fit_error(capsys: pytest.CaptureFixture, shards: str, root: Path, *args: str) -> str:
    return error(capsys, "fit", "-c", tiny.save(tiny.config(shards, root / "run"), root / "given.yaml"), *args)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--data.init_args.train.shards", "none/x-*.tar"], ["none/x-*.tar", "no such shard"]),
        (["--data.init_args.suites", "[nosuch]"], ["data.suites", "'nosuch'", "['toy']"]),
        (["--data.init_args.global_batch_size", "5"], ["data.global_batch_size", "seen 5", "multiple of"]),
        (["--data.init_args.nope", "1"], ["data", "'nope'"]),
        (["--model.init_args.nope", "1"], ["model", "'nope'"]),
        (["--model.init_args.vlm.init_args.every", "x"], ["every", "int", "x"]),
        (["--model.init_args.vlm.init_args.alpha_init", "1.0"], ["alpha_init", "1.0"]),
        (["--model.init_args.step_loss", "mean"], ["step_loss", "'mean'", "step_mean"]),
        (["--trainer.nope", "1"], ["--trainer.nope"]),
        (["--model", "os.system"], ["os.system", "not allowed", "ts_lightning"]),
        (["--model.init_args.optimizer", "subprocess.Popen"], ["subprocess.Popen", "not allowed"]),
        (["-c", "no.yaml"], ["no.yaml"]),
        (["--ckpt_path", "no.ckpt"], ["no.ckpt", "no such file"]),
        (["--ckpt_path", "https://no.net/x.ckpt"], ["--ckpt_path: seen the URL https://no.net/x.ckpt"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_arguments(
    args: list[str], parts: list[str], shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    message = fit_error(capsys, shards, tmp_path, *args)
    assert all(part in message for part in parts), message


def test_unknown_key_in_a_file(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    extra = tiny.save({"modle": {"class_path": "x.Y"}}, tmp_path / "extra.yaml")
    assert "modle" in fit_error(capsys, shards, tmp_path, "-c", extra)


PLUGIN = {"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"}
STRATEGY = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"ckpt_path": "no.ckpt"}, ["ckpt_path: seen 'no.ckpt' in a configuration", "--ckpt_path on the command line"]),
        ({"weights_only": False}, ["weights_only"]),
        ({"trainer": {"plugins": [PLUGIN]}}, ["AsyncCheckpointIO' is not allowed"]),
        ({"trainer": {"strategy": STRATEGY}}, ["ModelParallelStrategy' is not allowed"]),
    ],
    ids=["ckpt_path", "weights_only", "plugins", "strategy"],
)
def test_how_checkpoints_are_read_is_not_for_a_file_to_say(
    extra: dict[str, Any], parts: list[str], shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    message = fit_error(capsys, shards, tmp_path, "-c", tiny.save(extra, tmp_path / "extra.yaml"))
    assert all(part in message for part in parts), message


def test_unknown_codec(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    codec = "--model.init_args.vlm.init_args.backbone.init_args.codec"
    message = fit_error(capsys, shards, tmp_path, codec, "nosuch")
    assert "nosuch" in message
    assert "scout" in message


def spoiled(folder: Path, change: Callable[[dict[str, Any]], None] | None = None, drop: str = "") -> str:
    """A shard of two records whose second has a changed JSON, or lacks the members that end in `drop`."""
    path = Path(tiny.write(folder / "good", ["rec", "rec"]).replace("*", "000000"))
    (folder / "bad").mkdir()
    with tarfile.open(path) as old, tarfile.open(folder / "bad" / "train-000000.tar", "w") as new:
        for member in old.getmembers():
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.startswith("0001") and drop and member.name.endswith(drop):
                continue
            if member.name == "0001.json" and change:
                record = json.loads(data)
                change(record)
                data = json.dumps(record).encode()
            (folder / "member").write_bytes(data)
            new.add(folder / "member", member.name)
    return str(folder / "bad" / "*.tar")


@pytest.mark.parametrize("box", [[float("nan"), 0.1, 0.2, 0.3], [0.5, 0.1, 0.2, 0.3], [0.1, 0.1, 1.5, 0.3]])
def test_bad_box(box: list[float], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def change(record: dict[str, Any]) -> None:
        record["regions"][0]["box"] = box

    sizes = ["--data.init_args.global_batch_size", "2"]
    message = fit_error(capsys, spoiled(tmp_path, change), tmp_path, *sizes)
    assert "train-000000.tar:0001" in message
    assert "regions[0].box" in message


def test_record_without_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--data.init_args.global_batch_size", "2"]
    message = fit_error(capsys, spoiled(tmp_path, drop=".jpg"), tmp_path, *sizes)
    assert "train-000000.tar" in message
    assert "0001" in message
    assert "image" in message


@pytest.mark.parametrize("size", [0, 700, 2048])
def test_truncated_shard(size: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = Path(tiny.write(tmp_path, ["rec"] * 4).replace("*", "000000"))
    path.write_bytes(path.read_bytes()[:size])
    assert str(path) in fit_error(capsys, str(path), tmp_path)


def test_checkpoint_of_another_class(
    checkpoint: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.config(shards, tmp_path, tiny.PLAIN)
    given = tiny.save(config, tmp_path / "given.yaml")
    message = error(capsys, "fit", "-c", given, "--ckpt_path", str(checkpoint))
    assert "StepwiseSFT" in message
    assert "SFT" in message
    assert "init_from" in message


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_checkpoint_on_another_base(command: str, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    seed = ["--model.init_args.vlm.init_args.backbone.init_args.seed", "1"]
    assert "sha256" in error(capsys, command, "--ckpt_path", str(checkpoint), *seed)


def test_checkpoint_of_other_shapes(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    message = error(
        capsys, "validate", "--ckpt_path", str(checkpoint), "--model.init_args.vlm.init_args.num_experts", "3"
    )
    assert "checkpoint" in message
    assert "weight" in message


@pytest.mark.parametrize("keep", [0, 10, 5000, -1])
@pytest.mark.parametrize("with_sidecar", [True, False])
def test_truncated_checkpoint(
    keep: int, with_sidecar: bool, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(checkpoint.read_bytes()[:keep])
    if with_sidecar:
        shutil.copy(checkpoint.with_name(checkpoint.name + ".sha256"), tmp_path / "cut.ckpt.sha256")
    message = error(capsys, "validate", "--ckpt_path", str(path))
    assert str(path) in message
    assert "truncated" in message


def test_output_folder_that_is_a_file(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "taken").write_text("")
    assert "taken" in fit_error(capsys, shards, tmp_path, "--trainer.default_root_dir", str(tmp_path / "taken"))


def test_no_model_and_no_checkpoint(capsys: pytest.CaptureFixture) -> None:
    assert "validate.model" in error(capsys, "validate")


@pytest.mark.parametrize("fraction", [0.2, 0.0])
def test_one_bad_picture_over_three_epochs(
    fraction: float, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    """Of eight records the third has a picture that no decoder reads: the run counts it once, or ends by its name."""
    folder = tmp_path / "shards"
    broken = replace(tiny.sample(2, "rec"), image_bytes=[b"\xff\xd8\xff<html>no picture</html>"])
    shard = write_shards([broken if i == 2 else tiny.sample(i, "rec") for i in range(8)], folder, "train")[0]
    config = tiny.config(str(shard), tmp_path / "run")
    config["trainer"] |= {"max_steps": -1, "max_epochs": 3}
    config["data"]["init_args"] |= {"max_bad_fraction": fraction, "val": {}}
    status = main(["fit", "-c", tiny.save(config, tmp_path / "given.yaml")])
    where = f"{shard}:0002: image: seen 26 bytes"
    if fraction == 0.0:
        assert status == 2
        assert f"1 bad records, expected at most 0 (max_bad_fraction 0.0 of 8): {where}" in capsys.readouterr().err
        return
    assert status == 0
    assert [line.split(" (")[0] for line in caplog.messages if "bad record" in line] == [f"bad record {where}"]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = {row["step"] for row in rows if any("loss" in name for name in row)}
    assert steps == set(range(6)), rows  # two steps of four records in each epoch


def test_a_checkpoint_that_somebody_changed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, path = torch.load(checkpoint, weights_only=True), str(tmp_path / "x.ckpt")
    for change, said in (
        ({"state_dict": {"vlm.x": "text"}}, "state_dict: vlm.x: seen str, expected a tensor"),
        ({"state_dict": [1]}, "state_dict: seen list, expected tensors by their names"),
        ({"base": None}, "base: seen NoneType, expected what the weights were trained on"),
    ):
        torch.save(whole | change, path)
        assert said in (message := error(capsys, "validate", "--ckpt_path", path))
        assert path in message
        with pytest.raises(ValueError, match=said) as refusal:
            load(path)
        assert path in str(refusal.value)
    torch.save(whole | {"loops": {}, "callbacks": "x", "optimizer_states": 1, "ShardDataModule": "x"}, path)
    load(path)  # what only training reads is not read
    assert main(["validate", "--ckpt_path", path, "--trainer.limit_val_batches", "1"]) == 0


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(tiny.jpeg((1, 2, 3))[:-40])
    with pytest.raises(ValueError, match=r"image: .*cut.jpg: seen \d+ bytes .* expected a whole jpg, png or webp"):
        encoded(tmp_path / "cut.jpg")
