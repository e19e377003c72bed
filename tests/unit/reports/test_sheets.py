"""Boxes on sheets of several pictures: each lies on its own picture."""

import io

import numpy as np
import pytest
from PIL import Image

from ts_lightning.grounding.answer import read_answer
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.coordinates import CoordinateSpace
from ts_lightning.models.pixels import open_picture
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples
from ts_lightning.reports.pictures import make_picture
from ts_lightning.reports.sheets import GAP, Sheet
from ts_lightning.training.records import record_of

CODEC = get_codec("mirg", CoordinateSpace("100"))


def jpeg(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(data, "JPEG")
    return data.getvalue()


def test_places() -> None:
    sheet = Sheet([jpeg(94, 50), jpeg(100, 100)])
    assert sheet.picture.size == (94 + GAP + 100, 100)
    assert sheet.place(0, (0.0, 0.0, 1.0, 1.0)) == pytest.approx((0, 0, 0.47, 0.5))
    assert sheet.place(1, (0.0, 0.5, 0.5, 1.0)) == pytest.approx((0.5, 0.5, 0.75, 1.0))


def test_pictures_are_drawn_as_the_model_sees_them() -> None:
    deep, clear = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((8, 8), 20000, np.uint16)).save(deep, "PNG")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(clear, "PNG")  # red that is not to be seen
    sample = next(s for s in multi_image_samples("val", 5) if len(s.images) == 2)
    for data in (deep.getvalue(), clear.getvalue()):
        seen = open_picture(data).getpixel((4, 4))
        assert Sheet([data, data]).picture.getpixel((4, 4)) == seen
        sample.image_bytes = [data]
        assert make_picture(record_of(sample, "nothing", CODEC, "s"), sample).image.getpixel((4, 4)) == seen
    assert open_picture(deep.getvalue()).getpixel((4, 4)) == (78, 78, 78)


def test_said_boxes_are_on_the_pictures_they_name() -> None:
    sheet = Sheet([jpeg(94, 50), jpeg(100, 100)])
    box = "<|box_start|>(0,50),(50,100)<|box_end|>"
    text = f"<think><bbox_id>[2-1]</bbox_id>{box}</think><answer><bbox_id>[2-1]</bbox_id>, {box}</answer>"
    on_second, on_first = pytest.approx((0.5, 0.5, 0.75, 1.0)), pytest.approx((0, 0.25, 0.235, 0.5))
    sizes = [(94, 50), (100, 100)]
    assert sheet.said(read_answer(text, CODEC, sizes)) == [[on_second, on_second, on_first]]
    assert sheet.said(read_answer("<bbox_id>[3-1]</bbox_id>" + box, CODEC, sizes)) == [[]]
    assert sheet.said(read_answer(box, CODEC, sizes), unnamed=1) == [[on_second]]


def test_a_prediction_over_several_pictures_shows_them_all() -> None:
    sample = next(s for s in multi_image_samples("val", 5) if len(s.images) == 2)
    record = record_of(sample, "nothing", CODEC, "mirg")
    picture = make_picture(record, sample)
    assert picture.image.width == sum(image.width for image in sample.images) + GAP
    sheet = Sheet(sample.image_bytes)
    target = sample.regions[0]
    assert list(picture.true) == [pytest.approx(sheet.place(target.image, target.box))]
