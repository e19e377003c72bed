"""From a shard and prediction records to pictures on disk."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.metrics.record import Record, Truth
from ts_lightning.reports.pictures import PredictionPictures, make_picture, write_pictures, write_sheets


def make_sample(i: int) -> Sample:
    data = io.BytesIO()
    Image.new("RGB", (120, 90), (90, 90, 40 * i)).save(data, "JPEG")
    return Sample(
        id=f"s{i}",
        key=f"s{i}",
        task="grounding",
        images=[SampleImage("a.jpg", 120, 90)],
        turns=[Turn("user", "<image> Where is the dog? Answer with a box."), Turn("assistant", "{region:0}")],
        regions=[SampleRegion(box=(0.1, 0.1, 0.5, 0.5))],
        answer=Answer(regions=[0]),
        image_bytes=[data.getvalue()],
    )


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    paths = write_shards([make_sample(i) for i in range(5)], tmp_path / "shards", "toy")
    fields = {"shard": str(paths[0]), "subtask": "rec", "question": "Where is the dog?", "sizes": ((120, 90),)}
    truth = Truth("{region:0}", box=(0.1, 0.1, 0.5, 0.5))
    suites = ["rec"] * 3 + ["a b/c"] * 2
    return [Record(suite, f"s{i}", "[[10,10,50,70]]", truth, **fields) for i, suite in enumerate(suites)]


def test_pictures_and_sheets(records: list[Record], tmp_path: Path) -> None:
    assert write_pictures(records, tmp_path / "out", limit=2) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_b_c-s3.png", "a_b_c-s4.png", "rec-s0.png", "rec-s1.png",
    ]  # fmt: skip
    sheets = write_sheets(records, tmp_path / "sheets")
    assert [path.name for path in sheets] == ["rec.png", "a_b_c.png"]
    assert Image.open(sheets[0]).width > Image.open(sheets[1]).width > 640


def test_what_is_drawn(records: list[Record]) -> None:
    picture = make_picture(records[0], make_sample(0))
    assert (picture.note, picture.true_answer, picture.image.size) == ("rec: IoU 0.67", "", (120, 90))
    assert (picture.predicted, picture.true) == ([[(0.1, 0.1, 0.5, 0.7)]], [(0.1, 0.1, 0.5, 0.5)])
    assert make_picture(replace(records[0], text="no idea"), make_sample(0)).note == "rec: no box"
    truth = Truth("There is a cat {region:0}, not a dog. This question is invalid.")
    negative = make_picture(replace(records[0], truth=truth), make_sample(0))
    assert (negative.note, negative.true_answer, len(negative.true)) == ("rec", "This question is invalid.", 1)


def test_a_record_that_the_shard_lacks(records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seen no record 'x'"):
        write_pictures([replace(records[0], key="x")], tmp_path)


def test_callback_draws_so_many_of_each_suite(records: list[Record], tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path / "run"))
    module = SimpleNamespace()
    callback = PredictionPictures(1)
    callback.on_predict_batch_end(trainer, module, [r.to_json() for r in records[:2]], None, 0, 0)
    callback.on_predict_batch_end(trainer, module, [r.to_json() for r in records[2:]], None, 1, 0)
    callback.on_predict_end(trainer, module)
    assert sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir()) == ["a_b_c-s3.png", "rec-s0.png"]
