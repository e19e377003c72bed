"""Round trips: samples to shards, out to other tools' files, and in again."""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from tests.unit.data_samples import picture, sample
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Answer, Sample, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.grounding import get_codec
from ts_lightning.grounding.codecs import CODECS
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.encode import ChatTemplate
from ts_lightning.pipelines.converters import coco, llava, ms_swift
from ts_lightning.pipelines.converters.source import Dropped, Pictures
from ts_lightning.pipelines.export import to_coco, to_llava, to_ms_swift

REAL = Path(__file__).parents[4] / "shared/real/coco_mini"
EDITED = "exported rows that were edited since (kept as another tool's, without the record's further fields)"


def back(pattern: str) -> Iterator[Sample]:
    manifest = index_shards(pattern)
    reader = ShardReader(manifest)
    return (reader.read(i) for i in range(manifest.num_samples))


def plain(samples: Iterator[Sample]) -> list[Sample]:
    """Samples by id; their keys say how records hold them."""
    return sorted((replace(one, shard="", key="") for one in samples), key=lambda one: one.id)


def mixed() -> list[Sample]:
    """Boxes, several boxes, a point, two pictures, no region, steps."""
    one, two, three = sample(1), sample(2, images=2), sample(3)
    two.regions[0].image = 1
    two.turns += [Turn("user", "And {region:0}?"), Turn("assistant", "No, {region:1} {region:2}.")]
    two.regions += [
        SampleRegion(boxes=[(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.9, 1.0)]),
        SampleRegion(points=[(0.25, 0.5)]),
    ]
    three.regions, three.answer, three.task = [], None, "understanding"
    three.turns[1] = Turn("assistant", "Nothing.")
    return [one, two, three]


def run(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


@pytest.mark.parametrize("name", ["llava", "ms-swift"])
def test_conversations_come_back_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(mixed(), tmp_path / "shards", "x")
    codec = ["--codec", "chatspot"] if name == "llava" else []
    assert run("export", name, f"{tmp_path}/shards/*.tar", "--out", tmp_path / "out", *codec) == 0
    read = llava.read if name == "llava" else ms_swift.read
    (file,) = (path for path in (tmp_path / "out").glob("*.json*") if path.name != "dataset_info.json")
    rows = json.loads(file.read_text()) if name == "llava" else map(json.loads, file.read_text().splitlines())
    assert not any("{region" in json.dumps(row | {"ts_lightning": None}) for row in rows)
    again = list(read(file, Pictures(tmp_path / "out/images")))
    assert plain(iter(again)) == plain(back(f"{tmp_path}/shards/*.tar"))
    assert run("convert", name, file, "--out", tmp_path / "again") == 0
    assert plain(back(f"{tmp_path}/again/*.tar")) == plain(iter(again))


def test_rows_of_several_sources_are_one_table(tmp_path: Path) -> None:
    """What `datasets` reads (ms-swift and LLaMA-Factory load by it) gives back the same boxes."""
    datasets = pytest.importorskip("datasets")
    one, two, three = mixed()
    two.meta, three.meta = {"origin": {"a": [1, [2]]}, "number": "x"}, None
    to_ms_swift([one, two, three], tmp_path)
    to_llava([one, two, three], tmp_path, get_codec("chatspot"))
    for name, read in (("ms_swift.jsonl", ms_swift.read), ("llava.json", llava.read)):
        table = datasets.load_dataset("json", data_files=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
        rows = [{key: value for key, value in row.items() if value is not None} for row in table["train"]]
        assert [len(row["images"]) if row.get("images") else 0 for row in rows] == [1, 2, 1]
        assert all((tmp_path / path).is_file() for row in rows for path in row["images"])
        again = tmp_path / "again.jsonl"
        again.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert plain(read(again, Pictures(tmp_path))) == plain(iter([one, two, three]))
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["ts_lightning"]
    assert (entry["file_name"], entry["columns"]["images"]) == ("llava.json", "images")


def test_what_other_tools_read(tmp_path: Path) -> None:

    to_llava(mixed(), tmp_path, get_codec("chatspot"))
    row = json.loads((tmp_path / "llava.json").read_text())[0]
    assert row["conversations"][1] == {"from": "gpt", "value": "Step 1: here <box>0.125,0.250,0.500,1.000</box>."}
    to_ms_swift(mixed(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "ms_swift.jsonl").read_text().splitlines()]
    assert rows[1]["messages"][3] == {"role": "assistant", "content": "No, <bbox><bbox> <bbox>."}
    assert rows[1]["objects"]["bbox"][2:] == [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 1.0], [0.25, 0.5]]
    assert rows[1]["objects"]["image_id"] == [1, 1, 0, 0, 0]
    assert "objects" not in rows[2]
    bad = sample(4)
    bad.regions[0] = SampleRegion(polygon=[(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    with pytest.raises(ValueError, match="region 0: seen a polygon, expected a point or a box"):
        to_ms_swift([bad], tmp_path)


def labelled() -> Sample:
    """Two pictures; a step that names two objects, and one that names the first again. The first is picture 2's."""
    one = sample(1, images=2)
    one.images = [replace(image, width=1000, height=700) for image in one.images]
    one.image_bytes = [picture(i, (1000, 700)) for i in range(2)]
    boxes = [(0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5, 0.75)]
    one.regions = [SampleRegion(image=1 - i, phrase=f"cat {i}", box=box) for i, box in enumerate(boxes)]
    text = "Step 1: cat 0 {region:0} and\n{region:1}. Step 2: {region:0}"
    one.turns = [Turn("user", "<image>\n<image>\nIs it {region:1}?"), Turn("assistant", text)]
    one.answer = Answer(regions=[0])
    return one


@pytest.mark.parametrize("name", sorted({*CODECS} - {"molmo"}))
def test_an_exported_answer_is_what_a_model_here_is_trained_on(name: str, tmp_path: Path) -> None:
    codec, one = get_codec(name), labelled()
    to_llava([one], tmp_path, codec)
    (row,) = json.loads((tmp_path / "llava.json").read_text())
    encoder = replace(TinyBackbone().encoder, codec=codec, template=ChatTemplate("", "U:", "A:", end="", blank=""))
    text, _ = encoder.render(one)
    assert row["conversations"][1]["value"] == text.split("A:")[1].replace("\u200b", "")
    labels = {
        "qwen3_vl": '{"bbox_2d": [250, 500, 750, 1000], "label": "cat 0"}',
        "gemma": '{"box_2d": [500, 250, 1000, 750], "label": "cat 0"}',
        "mirg": "<bbox_id>[2-1]</bbox_id><|object_ref_start|>cat 0<|object_ref_end|><|box_start|>(250,500),",
    }
    assert labels.get(name, "") in row["conversations"][1]["value"]
    assert "label" not in row["conversations"][0]["value"]


def test_boxes_of_a_resized_picture_come_back(tmp_path: Path) -> None:
    """At most 28 x 28 x 256 pixels: 1000 x 700 becomes 532 x 364, of which the boxes are quarters."""
    write_shards([labelled()], tmp_path / "shards", "x")
    bounds = ["--min-pixels", "3136", "--max-pixels", "200704"]
    out = ["--out", tmp_path, "--codec", "qwen2_5_vl"]
    assert run("export", "llava", f"{tmp_path}/shards/*.tar", *out, *bounds) == 0
    (row,) = json.loads((tmp_path / "llava.json").read_text())
    assert '{"bbox_2d": [133, 182, 399, 364], "label": "cat 0"}' in row["conversations"][1]["value"]
    del row["ts_lightning"]
    row["images"] = row["images"][:1]
    row["conversations"][0]["value"] = "<image>\nWhere?"
    (tmp_path / "plain.json").write_text(json.dumps([row]))
    (again,) = llava.read(tmp_path / "plain.json", codec="qwen2_5_vl", min_pixels=3136, max_pixels=200704)
    assert [region.box for region in again.regions] == [
        (0.25, 0.5, 0.75, 1.0),
        (0.0, 0.25, 0.5, 0.75),
        (0.25, 0.5, 0.75, 1.0),
    ]


def test_an_edited_row_is_read_anew(tmp_path: Path) -> None:
    """Its boxes by the notation that is named; without one it is left out, and words alone are words."""
    two = sample(2)
    two.regions, two.answer, two.turns[1], two.task = [], Answer("a cat"), Turn("assistant", "A cat."), "understanding"
    to_llava([sample(1), two, sample(3)], tmp_path, get_codec("qwen3_vl"))
    rows = json.loads((tmp_path / "llava.json").read_text())
    rows[0]["conversations"][1]["value"] = 'Sure: the cat is at {"bbox_2d": [100, 200, 300, 400]} and runs.'
    rows[1]["conversations"][1]["value"] = "A dog."
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    for codec in ("qwen3_vl", None):
        made = list(llava.read(tmp_path / "llava.json", Pictures(dropped=(dropped := Dropped())), codec=codec))
        edited = ["llava row 0", "llava row 1"]
        if codec:
            assert made[0].turns[1].text == "Sure: the cat is at {region:0} and runs."
            assert made[0].regions[0].box == (0.1, 0.2, 0.3, 0.4)
        else:
            reason = "exported rows with boxes that were edited since (--codec reads them)"
            assert dropped.names[reason] == ["llava.json row 0"]
            edited = edited[1:]
        assert dropped.names[EDITED] == edited
        assert made[-2].turns[1].text == "A dog."
        assert made[-2].answer is None
        assert made[-1] == sample(3)


def test_a_row_of_an_older_export_says_so(tmp_path: Path) -> None:
    """Nothing in it tells whether it was edited since."""
    to_llava([sample(1)], tmp_path, get_codec("qwen3_vl"))
    to_ms_swift([sample(1)], tmp_path)
    rows = json.loads((tmp_path / "llava.json").read_text())
    swift = json.loads((tmp_path / "ms_swift.jsonl").read_text())
    for row in (rows[0], swift):
        row["ts_lightning"] = json.dumps({k: v for k, v in json.loads(row["ts_lightning"]).items() if k != "written"})
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    (tmp_path / "ms_swift.jsonl").write_text(json.dumps(swift))
    kept = "exported rows of an older version, to be exported again (kept as another tool's, without the record's "
    left = "exported rows with boxes of an older version, to be exported again (--codec reads them)"
    dropped = [Dropped(), Dropped(), Dropped()]
    assert not list(llava.read(tmp_path / "llava.json", Pictures(dropped=dropped[0])))
    assert len(list(llava.read(tmp_path / "llava.json", Pictures(dropped=dropped[1]), codec="qwen3_vl"))) == 1
    assert len(list(ms_swift.read(tmp_path / "ms_swift.jsonl", Pictures(dropped=dropped[2])))) == 1
    assert [one.names for one in dropped] == [
        {left: ["llava.json row 0"]},
        {f"{kept}further fields)": ["llava row 0"]},
        {f"{kept}further fields)": ["ms_swift.jsonl row 0"]},
    ]


@pytest.mark.parametrize("edit", ["words", "box", "name"])
def test_an_edited_row_of_ms_swift_is_read_anew(edit: str, tmp_path: Path) -> None:
    one = sample(1)
    one.turns[1] = Turn("assistant", "It is it {region:0}, bit {region:0}.")
    to_ms_swift([one], tmp_path)
    row = json.loads((tmp_path / "ms_swift.jsonl").read_text())
    assert row["messages"][1]["content"] == "It is <ref-object> <bbox>, bit <bbox>."
    assert row["objects"]["ref"] == ["it"]
    row["objects"]["bbox"][0][0] += 1e-16  # a table's reader
    (tmp_path / "ms_swift.jsonl").write_text(json.dumps(row))
    assert list(ms_swift.read(tmp_path / "ms_swift.jsonl")) == [one]
    if edit == "words":
        row["messages"][1]["content"] = "Now <ref-object> <bbox>, bit <bbox>."
    elif edit == "box":
        row["objects"]["bbox"][0] = [0.5, 0.25, 0.75, 1.0]
    else:
        row["objects"]["ref"] = ["that"]
    (tmp_path / "ms_swift.jsonl").write_text(json.dumps(row))
    (again,) = ms_swift.read(tmp_path / "ms_swift.jsonl", Pictures(dropped=(dropped := Dropped())))
    assert dropped.names == {EDITED: ["ms_swift.jsonl row 0"]}
    words = {"words": "Now it", "box": "It is it", "name": "It is that"}
    assert again.turns[1].text == f"{words[edit]} {{region:0}}, bit {{region:1}}."
    box = (0.5, 0.25, 0.75, 1.0) if edit == "box" else (0.125, 0.25, 0.5, 1.0)
    assert again.regions[0].box == pytest.approx(box)


@pytest.mark.parametrize("tasks", [("all",), ("localization", "all", "detection")])
def test_coco_gets_every_box_of_a_region(tasks: tuple[str, ...], tmp_path: Path) -> None:
    boxes = {7: (1, [4, 3, 8, 6]), 8: (1, [20, 12, 12, 6]), 9: (2, [0, 0, 40, 30])}
    notes = [
        {"id": number, "image_id": 5, "category_id": category, "bbox": box, "area": 10.0, "iscrowd": 0}
        for number, (category, box) in boxes.items()
    ]
    photo = {"id": 5, "file_name": "5.jpg", "width": 40, "height": 30}
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "sea"}]
    folder = tmp_path / "in"
    (folder / "annotations").mkdir(parents=True)
    (folder / "x").mkdir()
    (folder / "x/5.jpg").write_bytes(picture(5, (40, 30)))
    data = {"images": [photo], "annotations": notes, "categories": names}
    (folder / "annotations/instances_x.json").write_text(json.dumps(data))
    first = list(coco.read(folder, tasks=tasks))
    assert [one.regions[0].boxes is not None for one in first].count(True) == 1
    for number, samples in enumerate((first, first[::-1])):  # an object's own record knows more than "all dogs"
        assert to_coco(samples, tmp_path / f"out{number}", "x") == 1
        found = json.loads((tmp_path / f"out{number}/annotations/instances_x.json").read_text())["annotations"]
        expected = {n: box for n, (_, box) in boxes.items() if "detection" in tasks or n < 9}
        assert {one["id"]: pytest.approx(one["bbox"]) for one in found} == expected
        assert ({one["area"] for one in found} == {10.0}) == ("detection" in tasks)
    one = first[[sample.subtask for sample in first].index("localization_all")]
    one.meta = {"annotation_id": 3}  # one id for two boxes: both stay, numbered anew
    to_coco([one], tmp_path / "out2")
    found = json.loads((tmp_path / "out2/annotations/instances_export.json").read_text())["annotations"]
    assert [one["id"] for one in found] == [1, 2]
    one.meta = {"annotation_ids": [1, 2, 3]}
    expected = r"meta.annotation_ids: seen 3, expected one a region \(1\) or a box \(2\)"
    with pytest.raises(ValueError, match=expected):
        to_coco([one], tmp_path / "out3")


def test_ids_of_two_sources_stay_apart_in_coco(tmp_path: Path) -> None:
    """Photos and annotations are numbered from 0 in both; category 2 is another one in each, and 3 comes later."""
    samples = []
    for i, names in enumerate((["sneakers"], ["bicycle", "car"])):
        one = sample(i)
        one.subtask, one.answer, one.turns[1] = "detection", Answer(regions=[0]), Turn("assistant", "{region:0}")
        one.regions = [replace(one.regions[0], category=name) for name in names]
        one.meta = {"image_id": 0, "annotation_ids": [*range(len(names))], "category_ids": [2, 3][: len(names)]}
        samples.append(one)
    assert to_coco(samples, tmp_path) == 2
    data = json.loads((tmp_path / "annotations/instances_export.json").read_text())
    assert [(one["id"], one["file_name"]) for one in data["images"]] == [(0, "0-0.jpg"), (1, "1-0.jpg")]
    assert data["categories"] == [{"id": 1, "name": "bicycle"}, {"id": 2, "name": "sneakers"}, {"id": 3, "name": "car"}]
    notes = [tuple(one[name] for name in ("id", "image_id", "category_id")) for one in data["annotations"]]
    assert notes == [(0, 0, 2), (2, 1, 1), (1, 1, 3)]


def test_pictures_of_one_name_are_saved_apart(tmp_path: Path) -> None:
    samples = [sample(1), sample(2), sample(1), sample(3, images=2)]
    for image in (image for one in samples for image in one.images):
        image.name = "0001.jpg"
    data = [picture(1), picture(2), picture(1), picture(3), picture(4)]
    hashes = [sha256(one).hexdigest()[:8] for one in data]
    names = ["0001.jpg", f"0001-{hashes[1]}.jpg", "0001.jpg", f"0001-{hashes[3]}.jpg", f"0001-{hashes[4]}.jpg"]
    (tmp_path / "images").mkdir()
    for name in names[:2]:  # an earlier export's picture, and one that a killed export cut off
        (tmp_path / "images" / name).write_bytes(data[1][:100])
    for _ in range(2):  # again into the same folder
        to_llava(samples, tmp_path, get_codec("chatspot"))
        to_ms_swift(samples, tmp_path)
        assert to_coco(samples[:3], tmp_path, "images") == 2
        assert {path.name for path in (tmp_path / "images").iterdir()} == set(names)
    for read, name in ((llava.read, "llava.json"), (ms_swift.read, "ms_swift.jsonl")):
        again = list(read(tmp_path / name))
        assert [image.name for one in again for image in one.images] == names
        assert [one for made in again for one in made.image_bytes] == data
    photos = json.loads((tmp_path / "annotations/instances_images.json").read_text())["images"]
    assert [one["file_name"] for one in photos] == names[:2]


def test_regions_that_coco_has_no_place_for_are_counted(tmp_path: Path, capsys) -> None:
    one = sample(1)
    one.regions[0] = SampleRegion(category="dog", polygon=[(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    write_shards([one], tmp_path, "x")
    assert run("export", "coco", f"{tmp_path}/x-*.tar", "--out", tmp_path / "out") == 0
    assert "left out: 1 regions without a box or a category (" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no COCO photos in {REAL}")
def test_coco_comes_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("convert", "coco", REAL, "--split", "val2017", "--out", tmp_path / "shards") == 0
    first = plain(back(f"{tmp_path}/shards/*.tar"))
    arguments = ["coco", f"{tmp_path}/shards/*.tar", "--out", tmp_path / "out", "--split", "val2017"]
    assert run("export", *arguments) == 0
    again = plain(coco.read(tmp_path / "out"))
    assert len(again) == len(first) > 200
    for one, two in zip(first, again, strict=True):
        for region, other in zip(one.regions, two.regions, strict=True):
            assert other.box == pytest.approx(region.box, abs=1e-12)
            other.box = region.box
        assert two == one


def test_unknown_dataset_and_missing_path_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    assert run("convert", "qqqq") == 2
    assert capsys.readouterr().err.startswith(
        "ts-lightning: error: data convert: seen the data set 'qqqq', expected one of art, "
    )
    assert run("convert", "gqa", tmp_path, "--out", tmp_path / "o") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "seen no testdev_balanced_questions.json, expected" in message
