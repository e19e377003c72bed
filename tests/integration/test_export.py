"""What was trained leaves as a folder and comes back: the same answers, through the command and the tool."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.data.collate import collate
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.task_router import SHIPPED
from ts_lightning.runs.load import load
from ts_lightning.training import BaseModule

LORA = {
    "class_path": "ts_lightning.models.LoRAVLM",
    "init_args": {"backbone": tiny.BACKBONE, "rank": 2, "train_token_rows": ["codec"]},
}
VLMS = {"twin": tiny.TWIN, "lora": LORA, "plain": tiny.PLAIN}


@pytest.fixture(scope="module", params=list(VLMS))
def fitted(request: pytest.FixtureRequest, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    config = tiny.config(shards, root, VLMS[request.param])
    if request.param == "lora":
        config["model"]["class_path"] = "ts_lightning.training.LoRASFT"
    saver = {"save_last": True, "every_n_train_steps": 2}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
    config["trainer"] |= {"max_steps": 2, "callbacks": [callback]}
    assert main(["fit", "-c", tiny.save(config, root / "fit.json")]) == 0
    (path,) = root.rglob("last.ckpt")
    return path


def export(source: Path, kind: str, target: Path, *more: str) -> int:
    return main(["export", "--ckpt", str(source), "--to", kind, "--out", str(target), *more])


@torch.no_grad()
def logits(module: BaseModule) -> torch.Tensor:
    samples = [tiny.sample(i, kind) for i, kind in enumerate(("rec", "colour", "scout"))]
    return module.vlm(collate([module.vlm.encode(s) for s in samples], module.vlm.pad_id))["logits"]


def test_there_and_back(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(fitted)
    expected = logits(module)
    own = {TwinExpertVLM: "package", LoRAVLM: "adapter", PlainVLM: "standalone"}[type(module.vlm)]
    assert export(fitted, own, tmp_path / "folder") == 0
    again = load(tmp_path / "folder")
    torch.testing.assert_close(logits(again), expected, rtol=1e-6, atol=1e-6)
    assert again.max_new_tokens == module.max_new_tokens == 4
    if own != "standalone":
        assert export(tmp_path / "folder", "checkpoint", tmp_path / "again.ckpt") == 0
        torch.testing.assert_close(logits(load(tmp_path / "again.ckpt")), expected, rtol=1e-6, atol=1e-6)
    assert export(fitted, "standalone", tmp_path / "whole") == 0
    exact = 0 if own != "adapter" else 1e-5  # merging rounds
    torch.testing.assert_close(logits(load(tmp_path / "whole")), expected, atol=exact, rtol=exact)
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pkl"))}


def test_weights_that_have_changed_are_refused(fitted: Path, tmp_path: Path) -> None:
    """One bit near the end of each file, in every shape; adapters and whole models of before have no sha256."""
    own = {TwinExpertVLM: "package", LoRAVLM: "adapter", PlainVLM: "standalone"}[type(load(fitted).vlm)]
    for kind in {own, "standalone"}:
        folder = tmp_path / kind
        assert export(fitted, kind, folder) == 0
        for path in folder.rglob("*.safetensors"):
            whole = path.read_bytes()
            path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
            with pytest.raises(ValueError, match=r"seen sha256|of sha256"):
                load(folder)
            path.write_bytes(whole)
        load(folder)
        for name in ("base.json", "ts_lightning.json"):
            if (folder / name).is_file():
                stored = json.loads((folder / name).read_text())
                stored.pop("sha256", None)
                (folder / name).write_text(json.dumps(stored))
        load(folder)


def test_validate_reloads_it(fitted: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "standalone" if type(load(fitted).vlm) is PlainVLM else ""
    kind = kind or ("adapter" if isinstance(load(fitted).vlm, LoRAVLM) else "package")
    assert export(fitted, kind, tmp_path / "folder") == 0
    suites = tmp_path / "suites.json"
    val = {"class_path": "ts_lightning.data.ShardDataModule", "init_args": {"val": {"toy": {"shards": shards}}}}
    suites.write_text(json.dumps({"data": val}))
    found = []
    for path in (fitted, tmp_path / "folder"):
        root = tmp_path / f"{path.name}-out"
        quiet = ["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"]
        assert main(["validate", "--ckpt_path", str(path), "-c", str(suites), *quiet]) == 0
        (csv,) = root.rglob("metrics.csv")
        found.append(csv.read_text())
    assert found[0] == found[1]
    assert "val/toy/miou" in found[0]


def test_the_certificate_takes_a_folder_that_has_a_base(
    fitted: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tuned or merged model that stands alone would be compared with itself."""
    kinds = {TwinExpertVLM: ["package", "standalone"], LoRAVLM: ["adapter", "standalone"], PlainVLM: ["standalone"]}
    vlm = type(load(fitted).vlm)
    for kind in kinds[vlm]:
        folder, out = tmp_path / kind, tmp_path / f"{kind}.json"
        assert export(fitted, kind, folder) == 0
        capsys.readouterr()
        words = ["--ckpt", str(folder), "--shards", shards, "--out", str(out), "--batch-size", "2"]
        status = main(["certify", *words, "--max-samples", "4", "--max-new-tokens", "4"])
        if kind == "standalone" and vlm is not TwinExpertVLM:
            assert (status, out.exists()) == (2, False)
            said = "certify: seen a whole model, which is its own base, expected the checkpoint, package or adapter"
            assert said in capsys.readouterr().err
            continue
        result = json.loads(out.read_text())
        assert status == (0 if vlm is TwinExpertVLM else 1)
        assert result["passed"] == (status == 0)
        weights = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.safetensors")))
        assert result["checkpoint"]["sha256"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("task", ["auto", "understanding", "grounding"])
def test_the_task_is_chosen_on_the_command_line(fitted: Path, shards: str, tmp_path: Path, task: str) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false"]
    assert main(["predict", "--ckpt_path", str(fitted), "--task", task, *root]) == 0
    assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 10


def test_a_package_brings_its_router(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    router = ["--router", str(SHIPPED)]
    if not isinstance(load(fitted).vlm, TwinExpertVLM):
        assert export(fitted, "standalone", tmp_path / "folder", *router) == 2
        assert "expected package or standalone of a TwinExpertVLM" in capsys.readouterr().err
        return
    assert export(fitted, "package", tmp_path / "folder", *router) == 0
    assert load(tmp_path / "folder").vlm.task_router.tasks == ("understanding", "grounding")
    assert export(fitted, "package", tmp_path / "other", "--router", str(tmp_path)) == 2
    assert f"task router {tmp_path}" in capsys.readouterr().err


def test_the_card_has_the_last_validation_of_the_run(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {TwinExpertVLM: "package", LoRAVLM: "adapter"}.get(type(load(fitted).vlm))
    if kind is None:
        return
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint.write_bytes(fitted.read_bytes())  # of step 2
    (tmp_path / "run/metrics.csv").write_text("step,train/loss,val/toy/miou\n0,,0.1\n1,2.5,\n1,,0.75\n5,,0.9\n")
    assert export(checkpoint, kind, tmp_path / "folder") == 0
    assert "- val/toy/miou after 2 steps: 0.7500\n" in (tmp_path / "folder/README.md").read_text()


def test_alpha_is_chosen_on_the_command_line(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm, found = load(fitted).vlm, []
    quiet = ["--ckpt_path", str(fitted), "--trainer.enable_progress_bar", "false"]
    if not isinstance(vlm, TwinExpertVLM):
        assert main(["validate", *quiet, "--alpha", "1"]) == 2
        assert f"alpha: seen 1.0 for a {type(vlm).__name__}, expected a vlm with twin" in capsys.readouterr().err
        return
    mixed = {alpha: ["grounding", "--alpha", alpha] for alpha in ("1", "0")}
    for name, given in {"base": ["understanding"], **mixed}.items():
        root = ["--trainer.default_root_dir", str(tmp_path / name)]
        assert main(["predict", *quiet, *root, "--task", *given]) == 0
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        found.append([json.loads(line)["text"] for line in lines])
    base, one, none = found
    assert base == one != none
    assert main(["validate", *quiet, "--alpha", "1.5"]) == 2
    assert "alpha: seen 1.5, expected 0 (grounding experts only) to 1 (the base)" in capsys.readouterr().err


def test_an_unknown_task_is_one_line(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not isinstance(load(fitted).vlm, TwinExpertVLM):
        return
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["validate", "--ckpt_path", str(fitted), "--task", "reading", *root]) == 2
    assert "task: seen task 'reading', expected understanding, grounding" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "adapter" if isinstance(load(fitted).vlm, TwinExpertVLM) else "package"
    assert export(fitted, wrong, tmp_path / "folder") == 2
    assert capsys.readouterr().err.startswith("ts-lightning: error: export: seen a ")
    tmp_path.joinpath("empty").mkdir()
    assert export(tmp_path / "empty", "checkpoint", tmp_path / "x") == 2
    assert "expected a run with checkpoints/last.ckpt, a package" in capsys.readouterr().err
    assert main(["fit", "--ckpt_path", str(tmp_path / "empty")]) == 2
    assert "seen the folder" in capsys.readouterr().err


def test_a_package_in_its_nearest_form_of_low_rank(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(fitted)
    status = export(fitted, "package", tmp_path / "full_rank", "--rank", "32")  # the smaller side of every matrix
    if not isinstance(module.vlm, TwinExpertVLM):
        assert status == 2
        assert "--rank: seen --to package of a" in capsys.readouterr().err
        return
    assert status == 0
    assert "rank 32: relative error of the differences 0.0000, at most 0.0000 (layers." in capsys.readouterr().out
    torch.testing.assert_close(logits(load(tmp_path / "full_rank")), logits(module), rtol=1e-4, atol=1e-5)
    assert export(tmp_path / "full_rank", "package", tmp_path / "again", "--rank", "0") == 0
    assert load(tmp_path / "again").vlm.options["grounding"].expert_rank is None
    torch.testing.assert_close(logits(load(tmp_path / "again")), logits(module), rtol=1e-4, atol=1e-5)
    assert export(fitted, "package", tmp_path / "small", "--rank", "2") == 0
    sizes = [(tmp_path / name / "package.safetensors").stat().st_size for name in ("small", "again")]
    assert sizes[0] < 0.8 * sizes[1]  # the rows of tokens are as many in both
    assert export(fitted, "checkpoint", tmp_path / "x.ckpt", "--rank", "2") == 2
