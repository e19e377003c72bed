"""Exported folders in the hands of plain transformers and peft, opened from another place."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.unit.models.hf_families import make_folder
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.task_router import SHIPPED
from ts_lightning.runs.export import export, give_router
from ts_lightning.runs.load import load
from ts_lightning.runs.whole_folder import whole_folder
from ts_lightning.training import SFT, LoRASFT, StepwiseSFT


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a base, as it was given in the folder that is left afterwards."""
    make_folder("llava", tmp_path / "here/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return "base"


MAKERS = {
    "package": lambda base: StepwiseSFT(TwinExpertVLM(HFBackbone(base), every=1)),
    "adapter": lambda base: LoRASFT(LoRAVLM(HFBackbone(base), rank=2)),
    "standalone": lambda base: SFT(PlainVLM(HFBackbone(base))),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def readable(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*") if path.is_file())


@torch.no_grad()
def test_an_adapter_finds_its_base(base: str, tmp_path: Path) -> None:
    vlm = LoRAVLM(HFBackbone(base), rank=2).eval()
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    export(LoRASFT(vlm), "adapter", tmp_path / "adapter")
    os.chdir(tmp_path / "elsewhere")
    ids = torch.arange(5, 25)[None]
    expected = vlm.backbone.model(input_ids=ids).logits
    for kind in (AutoModelForImageTextToText, AutoPeftModel):
        theirs = kind.from_pretrained(tmp_path / "adapter").eval()
        if kind is AutoModelForImageTextToText:
            torch.testing.assert_close(theirs(input_ids=ids).logits, expected, atol=1e-6, rtol=1e-6)
    assert readable(tmp_path / "adapter")


@pytest.mark.parametrize("kind", [HFBackbone, LlavaBackbone])
def test_a_merged_model_brings_its_processor(kind: type, base: str, tmp_path: Path) -> None:
    export(LoRASFT(LoRAVLM(kind(base), rank=2)), "standalone", tmp_path / "whole")
    assert type(AutoProcessor.from_pretrained(tmp_path / "whole")).__name__ == "LlavaProcessor"
    assert readable(tmp_path / "whole")


def test_twin_experts_say_what_they_are(base: str, tmp_path: Path) -> None:
    export(StepwiseSFT(TwinExpertVLM(HFBackbone(base), every=1)), "standalone", tmp_path / "whole")
    for folder in (tmp_path / "whole", tmp_path / "whole/package"):
        with pytest.raises(ValueError, match=r"twin experts of ts_lightning, opened by ts_lightning.load\(FOLDER\)"):
            AutoModelForImageTextToText.from_pretrained(folder)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "whole/base")).__name__.startswith("Llava")
    assert isinstance(load(tmp_path / "whole").vlm, TwinExpertVLM)
    assert readable(tmp_path / "whole")


def test_a_standalone_model_has_all_packages(base: str, tmp_path: Path) -> None:
    TwinExpertVLM(HFBackbone(base), every=1, alpha_init=0.25).save_pretrained(tmp_path / "other")
    vlm = TwinExpertVLM(HFBackbone(base), package="reading", packages={"grounding": str(tmp_path / "other")})
    export(StepwiseSFT(vlm), "standalone", tmp_path / "whole")
    again = load(tmp_path / "whole").vlm
    assert (again.package, again.options) == ("reading", vlm.options)
    assert again.package_tensors("grounding")["alpha"].item() == 0.25
    assert [name for name, p in again.package_tensors("grounding").items() if p.requires_grad] == []


def test_a_linear_projector_is_refused_by_plain_transformers(base: str, tmp_path: Path) -> None:
    """It would open with a random projector of its own."""
    vlm = PlainVLM(LlavaBackbone(base, projector="linear"))
    export(SFT(vlm), "standalone", tmp_path / "whole")
    with pytest.raises(KeyError, match=r"linear projector of ts_lightning, opened by ts_lightning.load\(FOLDER\)"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    again = load(tmp_path / "whole").vlm.backbone
    assert again.identity()["sha256"] == vlm.backbone.identity()["sha256"]
    LlavaBackbone(str(tmp_path / "whole"), projector="mlp")  # LLaVA's own again, fresh


@pytest.mark.parametrize("kind", MAKERS)
def test_a_folder_of_another_kind_is_not_written_into(kind: str, base: str, tmp_path: Path) -> None:
    """It would still be opened as what it was before, and a base would be lost."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").write_bytes(b"trained for a week")
    places = {"run": run, "plain model": Path(base)}
    for other in MAKERS.keys() - {kind}:
        export(MAKERS[other](base), other, tmp_path / other)
        places[other] = tmp_path / other
    module = MAKERS[kind](base)
    for seen, place in places.items():
        before = contents(place)
        with pytest.raises(
            ValueError, match=f"export: .*: seen a folder of kind '{seen}', expected a new one or '{kind}'"
        ):
            export(module, kind, place)
        assert contents(place) == before


def test_an_export_leaves_nothing_of_the_one_before(base: str, tmp_path: Path) -> None:
    whole, fresh, package = tmp_path / "whole", tmp_path / "fresh", tmp_path / "package"
    export(StepwiseSFT(TwinExpertVLM(HFBackbone(base), every=1)), "standalone", whole)
    (whole / "certificate.json").write_text("of the experts")
    (whole / "notes.txt").write_text("mine")
    for folder in (whole, fresh):
        export(MAKERS["standalone"](base), "standalone", folder)
    assert contents(whole) == contents(fresh) | {"notes.txt": b"mine"}
    assert type(load(whole).vlm) is PlainVLM
    twins = tmp_path / "twins"
    for folder in (whole, twins):
        export(MAKERS["package"](base), "standalone", folder)
    assert contents(whole).keys() == contents(twins).keys() | {"notes.txt"}

    routed = MAKERS["package"](base)
    give_router(routed.vlm, "package", SHIPPED)
    export(routed, "package", package)
    assert load(package).vlm.task_router is not None
    export(MAKERS["package"](base), "package", package)
    assert load(package).vlm.task_router is None


def test_what_is_no_export_is_not_replaced(base: str, tmp_path: Path) -> None:
    """A folder of models with the base as `base`; a package with things of its owner beside it."""
    models, package = tmp_path / "models", tmp_path / "package"
    shutil.copytree(base, models / "base")
    (models / "README.md").write_text("mine")
    before = contents(models)
    with pytest.raises(ValueError, match=r"models: seen README.md, base of something else, expected a new folder"):
        export(MAKERS["package"](str(models / "base")), "standalone", models)
    assert contents(models) == before

    export(MAKERS["package"](base), "package", package)
    shutil.copytree(base, package / "base")
    for name in ("packages/other/notes.txt", "package/notes.txt", "mine.safetensors", "preprocessor_config.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("mine")
    before = contents(package)
    export(MAKERS["package"](str(package / "base")), "package", package)
    assert contents(package).keys() == before.keys()


def test_a_base_that_was_exported_is_not_written_over(base: str, tmp_path: Path) -> None:
    whole, twins = tmp_path / "whole", tmp_path / "twins"
    export(MAKERS["standalone"](base), "standalone", whole)
    export(MAKERS["package"](base), "standalone", twins)
    for kind, folder, place in (
        ("package", whole, whole),
        ("adapter", whole, whole),
        ("standalone", whole, whole),
        ("adapter", twins / "base", twins),
    ):
        module, before = MAKERS[kind](str(folder)), contents(place)
        with pytest.raises(ValueError, match=f"export: {place}: seen the base {folder} of what is exported"):
            export(module, "standalone", place)
        assert contents(place) == before
    for place in (whole, twins):  # the same base once more
        before = contents(place)
        export(load(place), "standalone", place)
        weights = {name for name in before if name.endswith(".safetensors")}
        assert {name: contents(place)[name] for name in weights} == {name: before[name] for name in weights}
        load(place)


def test_a_failing_move_is_taken_back(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, rename, calls = tmp_path / "there", Path.rename, list[Path]()
    export(MAKERS["package"](base), "package", there)
    before = contents(there)

    def failing(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 6:
            raise OSError("Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match=r"Input/output error.*; what was there is as it was"):
        export(StepwiseSFT(TwinExpertVLM(HFBackbone(base), every=1, expert_rank=1)), "package", there)
    assert contents(there) == before


def test_two_exports_to_one_folder_are_told(base: str, tmp_path: Path) -> None:
    """Each would write into what the other moves."""
    module = MAKERS["package"](base)
    with whole_folder(tmp_path / "out", "package") as folder:
        (folder / "mine").write_text("")
        with pytest.raises(OSError, match="out: seen another export that is being written there"):
            export(module, "package", tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine": b""}


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, there = MAKERS["package"](base), tmp_path / "there"
    export(module, "package", there)
    before = contents(there)

    for kind in (SafetensorError, Exception):  # the second as tokenizers say it

        def full(*_: Any, kind: type[Exception] = kind, **__: Any) -> None:
            raise kind("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("ts_lightning.models.package.save_file", full)
        for folder in (there, tmp_path / "new"):
            with pytest.raises(
                OSError, match=f"export: {folder}: not written .*No space left.*; what was there is as it was"
            ):
                export(module, "package", folder)
    assert contents(there) == before
    assert not (tmp_path / "new").exists()


def test_a_standalone_model_has_a_card(base: str, tmp_path: Path) -> None:
    for kind, make in MAKERS.items():
        export(make(base), "standalone", tmp_path / kind, {"val/toy/miou": 0.25})
        assert "- val/toy/miou: 0.2500\n" in (tmp_path / kind / "README.md").read_text()
