"""Every backbone against transformers: logits, positions, pixels.

Bitwise: whole numbers.
"""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.unit.data_samples import picture
from tests.unit.models.test_backbones import MAKERS, SAMPLES, batch_of, qwen_config, sample
from ts_lightning.data.sample import SampleImage
from ts_lightning.grounding.regions import Region
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_square_pictures_equal_transformers(name: str, tmp_path: Path) -> None:
    backbone: Any = MAKERS[name]()
    backbone.save(tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    vlm = PlainVLM(backbone, train=["*"]).eval()
    batch = batch_of(vlm, [SAMPLES[0]])
    with torch.no_grad():
        pixels = backbone.normalise(batch["pixel_values"])
        expected = theirs(input_ids=batch["input_ids"], pixel_values=pixels).logits
        ours = vlm(batch)
    rows, columns = ours["positions"]
    torch.testing.assert_close(ours["logits"], expected[rows, columns - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [Qwen2VLConfig, Qwen2_5_VLConfig])
def test_qwen_equals_transformers_with_several_pictures(kind: Any, tmp_path: Path) -> None:
    backbone = QwenVLBackbone(config=qwen_config(kind))
    backbone.save(tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    one = sample("grounding", (80, 60))
    one.images.append(SampleImage("b.jpg", 40, 100))
    one.image_bytes.append(picture(7, (40, 100)))
    one.turns[0].text = "<image>\n" + one.turns[0].text
    vlm = PlainVLM(backbone, train=["*"]).eval()
    batch = batch_of(vlm, [one])
    kinds = (batch["input_ids"] == backbone.image_token_id).int()
    rope, _ = theirs.model.get_rope_index(batch["input_ids"], kinds, image_grid_thw=batch["image_grid"])
    assert torch.equal(rope, batch["position_ids"])
    pixels = backbone.normalise(batch["pixel_values"].reshape(len(batch["pixel_values"]), 3, -1)).flatten(1)
    with torch.no_grad():
        expected = theirs(
            input_ids=batch["input_ids"],
            pixel_values=pixels,
            image_grid_thw=batch["image_grid"],
            mm_token_type_ids=kinds,
        ).logits
        ours = vlm(batch)
    rows, columns = ours["positions"]
    torch.testing.assert_close(ours["logits"], expected[rows, columns - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(300, 200), (90, 400), (30, 20), (1500, 1100)])
def test_qwen_patches_are_the_processors(size: tuple[int, int]) -> None:
    encoder = QwenVLBackbone(config=qwen_config()).encoder
    data = picture(3, size)
    one = sample("grounding", size)
    one.image_bytes = [data]
    row = encoder(one)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    theirs = Qwen2VLImageProcessorPil(do_rescale=False, do_normalize=False)(image, return_tensors="pt")
    assert torch.equal(row["image_grid"], theirs["image_grid_thw"])
    assert (row["pixel_values"].float() - theirs["pixel_values"].float()).abs().max() <= 1
    with pytest.raises(ValueError, match="sides at most 1 : 200"):
        encoder.resized((2000, 9))


@pytest.mark.parametrize("size", [(80, 60), (300, 500), (33, 120)])
def test_llava_pixels_are_the_processors(size: tuple[int, int]) -> None:
    backbone = MAKERS["llava"]()
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 56}, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    data = picture(4, size)
    theirs = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt").pixel_values
    assert worst(backbone.encoder.pixels([data]), theirs) <= 1
    processor = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 56}, do_center_crop=False)
    theirs = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt").pixel_values
    ours = backbone.normalise(backbone.encoder.pixels([data]))
    assert (ours - theirs).abs().max() <= 1.01 / 255 / min(backbone.pixel_std)


@pytest.mark.parametrize("size", [(80, 60), (300, 500), (33, 120)])
def test_internvl_pixels_are_the_processors(size: tuple[int, int]) -> None:
    backbone = MAKERS["internvl"]()
    processor = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, do_rescale=False, do_normalize=False)
    data = picture(4, size)
    theirs = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt").pixel_values
    assert worst(backbone.encoder.pixels([data]), theirs) <= 1


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float().round()).abs().max())


def test_boxes_are_written_as_each_qwen_learned_them() -> None:
    """300 x 200 becomes 308 x 196, multiples of 28; worked out by hand."""
    box = Region.from_box((0.25, 0.25, 0.75, 0.5))
    newer, older = (QwenVLBackbone(config=qwen_config(kind)).encoder for kind in (Qwen2_5_VLConfig, Qwen2VLConfig))
    assert newer.resized((300, 200)) == (308, 196)
    written = newer.codec.format([box], (300, 200))
    assert re.findall(r"\d+", written.split("[", 1)[1])[:4] == ["77", "49", "231", "98"]
    assert newer.codec.parse(written, (300, 200))[0].boxes == [(0.25, 0.25, 0.75, 0.5)]
    written = older.codec.format([box], (300, 200))
    assert "(250,250),(750,500)" in written
    small = QwenVLBackbone(config=qwen_config(Qwen2_5_VLConfig), max_pixels=28 * 28 * 16).encoder
    assert small.resized((300, 200)) == (112, 84)  # codec and pixels follow the same bounds
    assert re.findall(r"\d+", small.codec.format([box], (300, 200)).split("[", 1)[1])[:4] == ["28", "21", "84", "42"]


def test_a_newer_qwen_is_refused() -> None:
    with pytest.raises(ValueError, match="seen model_type 'qwen3_vl', expected 'qwen2_vl' or 'qwen2_5_vl'"):
        QwenVLBackbone(config=qwen_config() | {"model_type": "qwen3_vl"})
