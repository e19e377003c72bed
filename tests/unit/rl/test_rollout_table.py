"""Pictures of rollouts for people: boxes stand where the model's picture has them."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.models.hf_families import make_folder
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion
from ts_lightning.grounding import get_codec
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.pixels import CLIP_MEAN
from ts_lightning.rl import table
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.table import draw_group, seen_pictures

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
    monkeypatch.setattr(table, "stored_pictures", lambda sample: [stream.getvalue()])
    (picture,) = seen_pictures(vlm, {"samples": [Sample("a")]}, 0)
    assert picture.size == (56, 56)
    assert [picture.getpixel((28, y)) for y in (8, 28, 48)] == [CLIP_MEAN, (255, 255, 255), CLIP_MEAN]


def test_a_true_region_of_several_boxes() -> None:
    sample = Sample("a", images=[SampleImage("a.jpg", 40, 40)], answer=Answer(None, [0]))
    sample.regions = [SampleRegion(boxes=[LEFT, RIGHT])]
    sheet = draw_group([Image.new("RGB", (40, 40))], sample, [])
    assert [sheet.getpixel((x, 8)) for x in (10, 20, 30)] == [LIME, BLACK, LIME]
