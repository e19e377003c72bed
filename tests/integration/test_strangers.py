"""What a stranger's configuration or checkpoint may try, through the command: nothing runs or is overwritten."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import tiny
from tests.reliability import hostile_places
from tests.unit.models.hf_families import make_folder
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.runs.load import load

INSTANTIATE = "lightning.pytorch.cli.instantiate_class"


@pytest.fixture
def hit(tmp_path: Path) -> Path:
    return tmp_path / "HIT"


def command(hit: Path, name: str = "os.system") -> dict[str, Any]:
    """Runs `touch hit` where a function is taken for a class."""
    init = {"class_path": name, "init_args": {}}
    return {"class_path": INSTANTIATE, "init_args": {"args": [f"touch {hit}"], "init": init}}


def run(capsys: pytest.CaptureFixture, *args: str) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert main(list(args)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def fit(capsys: pytest.CaptureFixture, config: dict[str, Any], folder: Path) -> str:
    return run(capsys, "fit", "-c", tiny.save(config, folder / "given.yaml"))


def lightning(path: str, /, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.{path}", "init_args": init_args}


def stored(shards: str, path: Path, **changes: Any) -> str:
    """A checkpoint of plain tensors whose configuration has `changes`: dotted names below it."""
    config = json.loads(json.dumps(tiny.config(shards, path.parent / "run")))
    for name, value in changes.items():
        *keys, last = name.split("__")
        inner = config
        for key in keys:
            inner = inner[key]
        inner[last] = value
    own = {"state_dict": {"vlm.x": torch.zeros(3)}, "base": {}, "config": config}
    torch.save(own | {"pytorch-lightning_version": "2.6.6"}, path)
    return str(path)


@pytest.mark.parametrize("part", ["callback", "optimizer", "encode", "scheduler"])
@pytest.mark.parametrize("name", ["os.system", "ts_lightning.cli._import", "ts_lightning.runs.resume.set_aside"])
def test_a_configuration_runs_nothing(
    part: str, name: str, hit: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.config(shards, tmp_path / "run")
    if part == "callback":
        config["trainer"]["callbacks"] = [lightning("callbacks.LambdaCallback", on_fit_start=command(hit, name))]
    elif part == "encode":
        config["data"]["init_args"]["encode"] = command(hit, name)
    else:
        config["model"]["init_args"][{"scheduler": "lr_scheduler"}.get(part, part)] = command(hit, name)
    assert "is not allowed" in fit(capsys, config, tmp_path)
    assert not hit.exists()


@pytest.mark.parametrize("function", ["ts_lightning.models.LoRAVLM.from_pretrained", "ts_lightning.training.SFT.train"])
def test_a_method_of_a_listed_class_is_no_class(
    function: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.config(shards, tmp_path / "run")
    config["data"]["init_args"]["encode"] = function
    message = fit(capsys, config, tmp_path)
    assert "encode" in message
    assert "expected none: it would be called" in message or "is not allowed" in message
    config["data"]["init_args"]["encode"] = tiny.TWIN
    assert "encode" in fit(capsys, config, tmp_path)


def test_a_checkpoint_runs_nothing(hit: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("model__init_args__optimizer", "model__init_args__lr_scheduler", "data__init_args__encode"):
        path = stored(shards, tmp_path / "x.ckpt", **{name: command(hit)})
        for verb in ("validate", "predict"):
            run(capsys, verb, "--ckpt_path", path, "--trainer.default_root_dir", str(tmp_path / "out"))
        assert "not allowed" in run(capsys, "fit", "--ckpt_path", path) or name.startswith("data")
        with pytest.raises(ValueError, match="checkpoint"):  # what is left of it is of another base
            load(path)
        assert not hit.exists(), name
    inner = stored(shards, tmp_path / "x.ckpt", model__init_args__vlm__init_args__backbone=command(hit))
    assert "not allowed" in run(capsys, "validate", "--ckpt_path", inner)
    assert not hit.exists()


@pytest.mark.parametrize("more", [{"settings": {"base_url": "http://127.0.0.1:9"}}, {"entity": "x"}])
def test_a_logger_is_not_sent_elsewhere(
    more: dict[str, Any], shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    logger = lightning("loggers.WandbLogger", project="p", **more)
    config = tiny.config(shards, tmp_path / "run")
    config["trainer"]["logger"] = logger
    assert next(reversed(more)) in fit(capsys, config, tmp_path)
    config["trainer"]["logger"] = lightning("loggers.WandbLogger", project="p") | {"dict_kwargs": more}
    assert next(reversed(more)) in fit(capsys, config, tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/latest/meta-data/iam", "hf://x/y.tar", "s3://x/y.tar"])
def test_a_checkpoint_fetches_nothing(url: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    listener = hostile_places.Listener()
    url = url.replace(":9/", f":{listener.port}/")
    path = stored(shards, tmp_path / "x.ckpt", data__init_args__val={"x": {"shards": url}})
    message = run(capsys, "validate", "--ckpt_path", path)
    assert f"data: seen the URL '{url}', expected paths" in message
    assert listener.count == 0


def test_other_classes_of_libraries_are_not_listed(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny.config(shards, tmp_path / "run")
    mnist = lightning("demos.mnist_datamodule.MNISTDataModule", data_dir=str(tmp_path / "mnist"))
    assert "is not allowed" in fit(capsys, config | {"data": mnist}, tmp_path)
    bert = {"class_path": "torchmetrics.text.bert.BERTScore", "init_args": {"model_name_or_path": "evil/model"}}
    decay = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": bert}}
    config["model"]["init_args"]["lr_scheduler"] = decay
    assert "is not allowed" in fit(capsys, config, tmp_path)
    assert not (tmp_path / "mnist").exists()


def writers(victim: Path) -> dict[str, dict[str, Any]]:
    place = {"dirpath": str(victim), "filename": "fit-notes"}
    checkpoint = lightning("callbacks.ModelCheckpoint", **place, enable_version_counter=False)
    up = lightning("callbacks.ModelCheckpoint", filename=f"../../{victim.name}/x")
    return {
        "ModelCheckpoint": {"callbacks": [checkpoint]},
        "filename": {"callbacks": [up]},
        "SimpleProfiler": {"profiler": lightning("profilers.SimpleProfiler", **place)},
        "CSVLogger": {"logger": lightning("loggers.CSVLogger", save_dir=str(victim), name="", version="")},
        "default_root_dir": {"default_root_dir": str(victim)},
    }


@pytest.mark.parametrize("name", list(writers(Path("x"))))
def test_what_a_run_writes_lies_in_its_folder(
    name: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for file in ("config.yaml", "run.lock", "wandb_run_id", "metrics.csv", "fit-notes.txt"):
        (victim / file).write_text("PRECIOUS")
    config = tiny.config(shards, tmp_path / "run")
    config["trainer"] |= writers(victim)[name]
    assert "seen" in fit(capsys, config, tmp_path)
    assert {file.name: file.read_text() for file in victim.iterdir()} == {
        file: "PRECIOUS" for file in ("config.yaml", "run.lock", "wandb_run_id", "metrics.csv", "fit-notes.txt")
    }


def test_a_text_in_place_of_a_description_is_no_file(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0\n")
    told = {
        "data": "seen str, expected class_path and init_args",
        "model__init_args__vlm": "seen str, expected class_path and init_args",
        "model__init_args__vlm__init_args__backbone": f"seen no config.json of a model in {secret}",  # a folder's place
    }
    for name, expected in told.items():
        path = stored(shards, tmp_path / "x.ckpt", **{name: str(secret)})
        message = run(capsys, "validate", "--ckpt_path", path)
        assert expected in message
        assert "root:x" not in message


@pytest.mark.parametrize("known", [True, False])
def test_the_code_of_a_models_folder_does_not_run(
    known: bool, hit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """auto_map in all its files; with a kind that transformers knows its own classes are taken, else it is refused."""
    folder = make_folder("internvl", tmp_path / "model")
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(hit)!r}).touch()\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor")
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if (folder / file).exists():
            stored = json.loads((folder / file).read_text())
            stored["auto_map"] = {name: "evil.Evil" for name in names}
            if file == "config.json" and not known:
                stored |= {"model_type": "evil", "architectures": ["Evil"]}
            (folder / file).write_text(json.dumps(stored))
    tiny.write(tmp_path / "data", ["rec"] * 40)
    init = ["init", "--vlm", str(folder), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    if known:
        HFBackbone(str(folder))
        load(folder)
        assert main(init) == 0
    else:
        for door in (lambda: HFBackbone(str(folder)), lambda: load(folder)):
            with pytest.raises(ValueError, match="seen model_type 'evil'"):
                door()
        assert "seen model_type 'evil'" in run(capsys, *init)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for door in (lambda: HFBackbone(str(folder)), lambda: load(folder)):
        with suppress(ValueError):  # refused, or its kind's own tokenizer is taken
            door()
    assert not hit.exists()


@pytest.mark.parametrize("manifest", ["/dev/zero", "fifo"])
def test_a_manifest_is_a_file(manifest: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    config = tiny.config(shards, tmp_path / "run")
    config["data"]["init_args"]["train"]["manifest"] = str(tmp_path / manifest)  # an absolute one stays as it is
    assert f"{manifest}: seen a folder, pipe or device, expected a regular file" in fit(capsys, config, tmp_path)


def test_sizes_fit_what_the_file_holds(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    huge = {"pretrained": None, "hidden_size": 4096, "intermediate_size": 200_000, "num_layers": 8}
    sizes = json.loads(json.dumps(tiny.BACKBONE))
    sizes["init_args"] |= huge
    path = stored(shards, tmp_path / "x.ckpt", model__init_args__vlm__init_args__backbone=sizes)
    assert "expected one that fits the 3 numbers of the file" in run(capsys, "validate", "--ckpt_path", path)
    sizes["init_args"] |= {"hidden_size": "4096"}  # read as a number
    path = stored(shards, tmp_path / "x.ckpt", model__init_args__vlm__init_args__backbone=sizes)
    assert "numbers of the file" in run(capsys, "validate", "--ckpt_path", path)
    path = stored(shards, tmp_path / "x.ckpt", model__init_args__vlm__init_args__num_experts=10**9)
    assert "num_experts: seen 1e+09" in run(capsys, "validate", "--ckpt_path", path)


def test_a_file_url_is_a_path(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_LIGHTNING_CACHE", str(tmp_path / "cache"))
    assert index_shards("file://" + shards).num_samples == 10
    with pytest.raises(ValueError, match="/etc/passwd"):
        index_shards("file:///etc/passwd")
    assert not (tmp_path / "cache").exists()


def test_offers_in_some_places(tmp_path: Path) -> None:
    """Every eighth place; `python -m tests.reliability 11` goes through all of them for each command."""
    figures = hostile_places.walk(tmp_path, every=8, commands=("fit",))
    assert (figures["executed"], figures["connections"], figures["files"]) == (0, 0, 0)
    assert figures["places"] >= hostile_places.LEAST_PLACES // 8 - 1
    assert figures["checkpoint_fields"] >= 3
