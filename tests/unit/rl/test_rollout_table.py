"""Pictures of rollouts for people: boxes stand where the model's picture has them."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.unit.models.hf_families import make_folder
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding import get_codec
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.pixels import CLIP_MEAN
from ts_lightning.rl import table
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.table import draw_group, seen_pictures, write_table

LIME, RED, BLACK = (0, 255, 0), (255, 0, 0), (0, 0, 0)
LEFT, RIGHT = (0.1, 0.2, 0.4, 0.8), (0.6, 0.2, 0.9, 0.8)


@pytest.mark.parametrize(("padded", "top"), [(False, 8), (True, 14)])
def test_boxes_of_a_wide_picture(padded: bool, top: int) -> None:
    """40 x 20 pixels, seen as 40 x 40: stretched, y 0.2 is row 8; in the middle of a square, row 10 + 0.2 * 20."""
    sample = Sample("a", images=[SampleImage("a.jpg", 40, 20)], answer=Answer(None, [0]))
    sample.regions = [SampleRegion(box=LEFT)]
    codec = get_codec("shikra")
    said = Completion("", answer=read_completion(codec.format([RIGHT], (40, 20)), codec, sample))
    sheet = draw_group([Image.new("RGB", (40, 40))], sample, [said], padded)
    assert [sheet.getpixel((x, top)) for x in (10, 20, 30)] == [LIME, BLACK, RED]
    assert sheet.getpixel((10, 22 - top)) == BLACK


def test_pictures_of_a_familys_processor_are_squares_where_it_is_given_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A white picture of 80 x 40 in a square of 56: 14 rows above it are filled up."""
    vlm = PlainVLM(HFBackbone(str(make_folder("llava", tmp_path))), train=[])
    stream = io.BytesIO()
    Image.new("RGB", (80, 40), "white").save(stream, "PNG")
    monkeypatch.setattr(table, "with_bytes", lambda sample: Sample("a", image_bytes=[stream.getvalue()]))
    (picture,) = seen_pictures(vlm, {"samples": [Sample("a")]}, 0)
    assert picture.size == (56, 56)
    assert [picture.getpixel((28, y)) for y in (8, 28, 48)] == [CLIP_MEAN, (255, 255, 255), CLIP_MEAN]


def test_a_table_goes_on_into_the_next_micro_batches(tmp_path: Path) -> None:
    """Three micro-batches of one prompt each, a table of two; of two questions the second is the one answered."""
    turns = [Turn("user", "<image>\nA dog?"), Turn("assistant", "Yes"), Turn("user", "Where?"), Turn("assistant", "")]
    samples = [Sample(name, turns=turns) for name in "abc"]
    groups = [[Completion(f"{name}{g}") for g in range(2)] for name in "abc"]
    values = torch.tensor([0.0, 1.0])
    rollouts = [SimpleNamespace(completions=[group], advantages=values, rewards={"own": values}) for group in groups]
    batches = [{"samples": [sample], "images_per_row": torch.tensor([0])} for sample in samples]
    tables: list[list] = []
    logger = SimpleNamespace(log_table=lambda key, columns, data, step: tables.append([columns, *data]))
    trainer = SimpleNamespace(default_root_dir=tmp_path, loggers=[logger])
    vlm = SimpleNamespace(encoder=SimpleNamespace(pixel_mode="stretch", seen_picture=None))
    for batch in batches:
        batch["pixel_values"] = torch.zeros(0, 3, 4, 4)
    paths = write_table(trainer, vlm, batches, rollouts, 7, 2)
    assert [path.name for path in paths] == ["step-000007-0.png", "step-000007-1.png"]
    said = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert [(one["id"], one["prompt"]) for one in said] == [("a", "Where?"), ("b", "Where?")]
    assert [[one["text"], one["own"]] for one in said[1]["completions"]] == [["b0", 0.0], ["b1", 1.0]]
    columns = ["id", "prompt", "text", "advantage", "own"]
    assert tables[0][:3] == [columns, ["a", "Where?", "a0", 0.0, 0.0], ["a", "Where?", "a1", 1.0, 1.0]]
    assert len(tables[0]) == 5


def test_a_true_region_of_several_boxes() -> None:
    sample = Sample("a", images=[SampleImage("a.jpg", 40, 40)], answer=Answer(None, [0]))
    sample.regions = [SampleRegion(boxes=[LEFT, RIGHT])]
    sheet = draw_group([Image.new("RGB", (40, 40))], sample, [])
    assert [sheet.getpixel((x, 8)) for x in (10, 20, 30)] == [LIME, BLACK, LIME]
