"""What goes to vLLM: prompts with one placeholder a picture, the very pixels, files of weights; wrong options.

Bitwise: weights that are copied.
"""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.unit.data_samples import picture
from tests.unit.models.hf_families import make_folder
from tests.unit.models.test_backbones import MAKERS, qwen_config, sample
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import SampleImage
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.rl import RolloutCallback, VLLMEngine
from ts_lightning.rl.handover import adapters, base_folder, model_of, served, write_weights
from ts_lightning.rl.vllm_engine import prompts_of
from ts_lightning.rl.vllm_server import OwnServer, ServerError, VLLMServer


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_pictures_come_back_from_a_batch_as_they_went_in(name: str) -> None:
    backbone: Any = MAKERS["llava"]() if name == "llava" else QwenVLBackbone(config=qwen_config())
    vlm = PlainVLM(backbone, train=[])
    two = sample("grounding", (90, 60), 1)
    two.images.append(SampleImage("b.jpg", 40, 100))
    two.image_bytes.append(picture(7, (40, 100)))
    two.turns[0].text = "<image>\n" + two.turns[0].text
    rows = [vlm.encode(one, for_generation=True) for one in (sample("grounding", (80, 60)), two)]
    prompts = prompts_of(vlm, collate(rows, vlm.pad_id))
    for row, one, prompt in zip(rows, (sample("grounding", (80, 60)), two), prompts, strict=True):
        assert prompt.expanded == row["input_ids"].tolist()
        assert prompt.token_ids.count(backbone.image_token_id) == len(one.images) == len(prompt.pictures)
        left = [token for token in prompt.expanded if token != backbone.image_token_id]
        assert [token for token in prompt.token_ids if token != backbone.image_token_id] == left
        for sent, data in zip(prompt.pictures, one.image_bytes, strict=True):
            seen = vlm.encoder.seen_picture(data)
            assert Image.open(io.BytesIO(sent)).tobytes() == seen.tobytes()


def test_pictures_of_any_familys_processor_are_refused_in_a_line(tmp_path: Path) -> None:
    """Its processor's own form can't be made into a picture again."""
    vlm = PlainVLM(HFBackbone(str(make_folder("qwen2_vl", tmp_path))), train=[])
    row = vlm.encode(sample("grounding", (80, 60)), for_generation=True)
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        prompts_of(vlm, collate([row], vlm.pad_id))


def test_a_whole_model_is_written_as_its_folder_was(tmp_path: Path) -> None:
    QwenVLBackbone(config=qwen_config()).save(tmp_path / "base")
    (tmp_path / "base/preprocessor_config.json").write_text("{}")
    vlm = PlainVLM(QwenVLBackbone(pretrained=str(tmp_path / "base")))
    with torch.no_grad():
        vlm.backbone.head.weight += 1
    write_weights(vlm, tmp_path / "new")
    assert {file.name for file in (tmp_path / "base").iterdir()} == {file.name for file in (tmp_path / "new").iterdir()}
    stored = json.loads((tmp_path / "new/preprocessor_config.json").read_text())
    assert stored == {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}}  # that of its pixels
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "new"))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]
    with pytest.raises(ValueError, match="backbone: seen pretrained None beside vLLM"):
        base_folder(PlainVLM(QwenVLBackbone(config=qwen_config())))


def test_weights_have_the_names_of_the_published_folder(tmp_path: Path) -> None:
    MAKERS["llava"]().save(tmp_path / "base")
    file = tmp_path / "base/model.safetensors"
    published = {name.replace("vision_tower.", "vision_tower.vision_model."): v for name, v in load_file(file).items()}
    save_file(published, file, {"format": "pt"})
    vlm = PlainVLM(LlavaBackbone(pretrained=str(tmp_path / "base")))
    write_weights(vlm, tmp_path / "new")
    assert load_file(tmp_path / "new/model.safetensors").keys() == published.keys()


def test_rows_are_answered_under_the_name_of_their_part() -> None:
    def backbone() -> QwenVLBackbone:
        return QwenVLBackbone(config=qwen_config())

    plain = PlainVLM(backbone())
    assert (adapters(plain), model_of(plain, 1)) == ((), "base")
    lora = LoRAVLM(backbone(), rank=2, targets=("gate_proj",))
    assert [model_of(lora, task) for task in (0, 1)] == ["policy", "policy"]
    twin = TwinExpertVLM(backbone(), package="boxes")
    assert [model_of(twin, task) for task in (0, 1)] == ["base", "boxes"]
    with pytest.raises(ValueError, match="train_token_rows: seen some beside vLLM"):
        adapters(LoRAVLM(backbone(), rank=2, targets=("gate_proj",), train_token_rows=["1"]))
    with pytest.raises(ValueError, match="quantization: seen 'int8' beside vLLM, expected null"):
        adapters(LoRAVLM(backbone(), rank=2, targets=("gate_proj",), quantization="int8"))


def test_a_server_computes_as_the_policy_does() -> None:
    """bf16-mixed holds an embedding that trains in fp32."""
    vlm = PlainVLM(QwenVLBackbone(config=qwen_config()))
    assert served(vlm, {})[:2] == ["--dtype", "float32"]
    with torch.autocast("cpu", torch.bfloat16):
        assert served(vlm, {})[:2] == ["--dtype", "bfloat16"]
    assert served(PlainVLM(QwenVLBackbone(config=qwen_config(), dtype="bfloat16")), {})[:2] == ["--dtype", "bfloat16"]


def test_wrong_options_and_servers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TS_LIGHTNING_VLLM_PYTHON", raising=False)
    for arguments, message in (({"tis_cap": 0.0}, "tis_cap: seen 0.0"), ({"patience": -1.0}, "patience: seen -1.0")):
        with pytest.raises(ValueError, match=message):
            VLLMEngine(**arguments)
    with pytest.raises(ValueError, match="url: seen 'ftp://x', expected http://HOST:PORT"):
        VLLMServer("ftp://x")
    with pytest.raises(ValueError, match="python: seen None, expected the interpreter of an environment with vLLM"):
        OwnServer("folder")
    with pytest.raises(ServerError, match=r"vLLM at http://127.0.0.1:9: /v1/models: ConnectionRefusedError"):
        VLLMServer("http://127.0.0.1:9").models()
    vlm = PlainVLM(QwenVLBackbone(config=qwen_config()))
    batch = collate([vlm.encode(sample("grounding"), for_generation=True)], vlm.pad_id)
    callback = RolloutCallback(num_generations=2, top_p=0.9, engine=VLLMEngine(url="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match=r"top_p: seen 0\.9 with VLLMEngine, expected 1"):
        callback.roll_out(vlm, [batch])


class Listening(VLLMServer):
    """Writes down what it is asked to load, and says that it has it."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.names, self.loaded, self.version_name = ["base"], list[Path](), "none"
        self.trouble: set[str] = set()  # adapters that fail to load, once

    def call(self, path: str, body: Any = None, patience: float | None = None) -> Any:
        if path == "/v1/unload_lora_adapter":
            self.names.remove(body["lora_name"])
        elif path == "/v1/load_lora_adapter":
            assert not body.get("load_inplace")  # vLLM would read the folder at every step
            assert body["lora_name"] not in self.names
            if body["lora_name"] in self.trouble:
                self.trouble.remove(body["lora_name"])
                raise ServerError("planted")
            self.names.append(body["lora_name"])
            self.loaded.append(Path(body["lora_path"]))
        elif path == "/update_weight_version":
            self.version_name = body["new_version"]
        return {"data": [{"id": name} for name in self.names], "weight_version": self.version_name}


def test_an_adapters_folder_stays_until_the_next_one_is_there(tmp_path: Path) -> None:
    vlm = LoRAVLM(QwenVLBackbone(config=qwen_config()), rank=2, targets=("gate_proj",))
    engine, server = VLLMEngine(url="http://127.0.0.1:9", folder=str(tmp_path)), Listening()
    engine.server = server
    for step in range(3):
        engine.hand_over(vlm, step)
    assert [folder.is_dir() for folder in server.loaded] == [False, False, True]
    assert server.names == ["base", "policy"]


def test_a_hand_over_that_failed_midway_is_done_again_whole(tmp_path: Path) -> None:
    def backbone() -> QwenVLBackbone:
        return QwenVLBackbone(config=qwen_config())

    TwinExpertVLM(backbone(), package="b").save_pretrained(tmp_path / "b")
    vlm = TwinExpertVLM(backbone(), package="a", packages={"b": str(tmp_path / "b")})
    engine, server = VLLMEngine(url="http://127.0.0.1:9", folder=str(tmp_path)), Listening()
    engine.server = server
    engine.hand_over(vlm, 0)
    first = server.version_name
    server.trouble.add("b")
    with pytest.raises(ServerError, match="planted"):
        engine.hand_over(vlm, 1)
    assert (server.names, server.version_name) == (["base", "a"], first)
    assert [folder.is_dir() for folder in server.loaded] == [True, True, True]  # vLLM may read them again
    engine.hand_over(vlm, 1)
    assert server.names == ["base", "a", "b"]
    assert server.version_name != first
    assert [folder.is_dir() for folder in server.loaded] == [False] * 3 + [True] * 2
