"""The certificate of real checkpoints, through the tool: a twin model passes, a fully tuned one does not."""

import json
from pathlib import Path

import pytest
import torch

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.reports.certificate import certify_on, understanding_samples
from ts_lightning.runs.load import load


def fit(shards: str, folder: Path, vlm: dict) -> Path:
    config = tiny.config(shards, folder, vlm)
    saver = {"save_last": True, "every_n_train_steps": 2}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
    config["trainer"] |= {"max_steps": 2, "callbacks": [callback]}
    assert main(["fit", "-c", tiny.save(config, folder.with_suffix(".json"))]) == 0
    (path,) = folder.rglob("last.ckpt")
    return path


def certify(ckpt: Path, shards: str, out: Path) -> tuple[int, dict]:
    options = ["--ckpt", str(ckpt), "--shards", shards, "--out", str(out), "--batch-size", "2", "--max-new-tokens", "4"]
    status = main(["certify", *options])
    return status, json.loads(out.read_text()) if out.exists() else {}


def test_a_twin_checkpoint_passes(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = fit(shards, tmp_path / "twin", tiny.TWIN)
    status, result = certify(ckpt, shards, tmp_path / "certificate.json")
    assert (status, result["passed"], result["differing"]) == (0, True, [])
    assert result["tensors_compared"] == len(result["sha256"]) > 40
    assert (result["logits"]["batches"], result["logits"]["bitwise_equal"]) == (2, True)
    assert result["logits"]["positions"] >= 2 * 3  # an answer and its end mark, at least
    assert result["accuracy"]["questions"] == result["shards"]["samples"] == 3
    assert "PASSED" in capsys.readouterr().out

    tuned = load(ckpt).vlm
    assert any(bool((p != 0).any()) for name, p in tuned.named_parameters() if "token_rows" in name)  # it did train
    samples, _ = understanding_samples(shards, 3)
    leaf = tuned.twins[0].understanding.experts[0].fc1.weight
    leaf.data[0, 0] = torch.nextafter(leaf[0, 0], torch.tensor(9.0))
    (name,) = certify_on(tuned, samples)["differing"]
    assert name.endswith("layers.0.mlp.experts.0.fc1.weight")


def test_a_fully_tuned_checkpoint_fails(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = fit(shards, tmp_path / "plain", tiny.PLAIN)
    status, result = certify(ckpt, shards, tmp_path / "certificate.json")
    assert (status, result["passed"], result["logits"]["bitwise_equal"]) == (1, False, False)
    assert "model.language_model.embed_tokens.weight" in result["differing"]
    assert result["logits"]["max_abs_diff"] > 0
    assert capsys.readouterr().err.count("differs: ") == 10  # the first ones; the file has them all


def test_no_checkpoint_and_no_understanding_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grounding = tiny.write(tmp_path / "shards", ["rec", "rec"])
    assert certify(tmp_path / "no.ckpt", grounding, tmp_path / "c.json") == (2, {})
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="seen no record of task understanding"):
        understanding_samples(grounding, 5)
    monkeypatch.setattr("ts_lightning.reports.certificate.index_shards", lambda shards: index_shards(grounding))
    with pytest.raises(ValueError, match=r"^\['http://h/a\.tar'\]: seen no record of task understanding"):
        understanding_samples(["http://u:p@h/a.tar?sig=1"], 5)
