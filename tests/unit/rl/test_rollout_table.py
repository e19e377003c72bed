"""Pictures of rollouts for people: boxes stand where the model's picture has them."""

import pytest
from PIL import Image

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion
from ts_lightning.grounding import get_codec
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.table import draw_group

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


def test_a_true_region_of_several_boxes() -> None:
    sample = Sample("a", images=[SampleImage("a.jpg", 40, 40)], answer=Answer(None, [0]))
    sample.regions = [SampleRegion(boxes=[LEFT, RIGHT])]
    sheet = draw_group([Image.new("RGB", (40, 40))], sample, [])
    assert [sheet.getpixel((x, 8)) for x in (10, 20, 30)] == [LIME, BLACK, LIME]
