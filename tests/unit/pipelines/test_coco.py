"""The COCO converter: boxes worked out by hand, and the real photos where they are."""

import json
from pathlib import Path

import pytest

from tests.unit.data_samples import picture
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.images import inspect_image
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.prompts import templates
from ts_lightning.pipelines.converters import coco
from ts_lightning.pipelines.converters.source import Dropped, Pictures

REAL = Path(__file__).parents[4] / "shared/real/coco_mini"
needs_photos = pytest.mark.skipif(not REAL.is_dir(), reason="the COCO photos are not on this machine")


def note(image: int, category: int, box: list[float], crowd: int = 0, **more: object) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd} | more


@pytest.fixture
def small(tmp_path):
    """Photo 1 (80 x 60): a dog, two cats, a crowd of people and one person. Photo 2: turned by EXIF to 60 x 80."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").write_bytes(picture(1, (80, 60)))
    (photos / "two.jpg").write_bytes(picture(2, (80, 60), exif=6))
    (photos / "cut.jpg").write_bytes(picture(3, (80, 60))[:-40])
    (photos / "other.jpg").write_bytes(picture(4, (40, 30)))
    sizes = {"one.jpg": (80, 60), "two.jpg": (60, 80), "cut.jpg": (80, 60), "gone.jpg": (8, 6), "other.jpg": (80, 60)}
    images = [
        {"id": i, "file_name": name, "width": w, "height": h} for i, (name, (w, h)) in enumerate(sizes.items(), 1)
    ]
    notes = [
        note(1, 2, [20, 15, 40, 30], area=700.5, id=77),
        note(1, 3, [1, 1, 5, 5]),
        note(1, 3, [9, 9, 5, 5]),
        note(1, 1, [0, 0, 80, 60], crowd=1),
        note(1, 1, [4, 4, 8, 8]),
        note(2, 2, [-6, 40, 36, 80]),
        note(2, 3, [70, 10, 5, 5]),
        note(2, 4, [10, 10, float("nan"), 5]),
        *(note(image, 2, [1, 1, 3, 3]) for image in (3, 4, 5)),
    ]
    names = [{"id": i, "name": name} for i, name in enumerate(("person", "dog", "cat", "hot dog"), 1)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": names}))
    captions = tmp_path / "captions.json"
    texts = [(1, "A dog\n and cats."), (1, "see {region:0}"), (2, " "), (1, "Two cats.")]
    captions.write_text(json.dumps({"annotations": [{"image_id": i, "caption": text} for i, text in texts]}))
    return photos, path, captions


def test_questions_boxes_and_what_was_left_out(small):
    dropped = Dropped()
    photos = Pictures(small[0], dropped=dropped)
    one, two = coco.read(pictures=photos, annotations=small[1], tasks=("localization",))
    assert (one.key, one.task, one.subtask) == ("000000000001-02", "grounding", "localization")
    assert one.regions[0].box == (0.25, 0.25, 0.75, 0.75)
    assert (one.regions[0].category, one.regions[0].area_px) == ("dog", 700.5)
    assert [turn.text for turn in one.turns][1] == "{region:0}"
    prompt = one.turns[0].text.removeprefix("<image>\n")
    assert prompt in [text.replace("{phrase}", "dog") for text in templates("localization")]
    assert one.image_bytes == [(small[0] / "one.jpg").read_bytes()]
    assert (one.images[0].name, one.images[0].width, one.images[0].height) == ("one.jpg", 80, 60)
    assert one.answer.regions == [0]
    assert one.meta == {"image_id": 1, "annotation_id": 77}
    # Photo 2 is displayed 60 wide and 80 high; its dog leaves the photo on the left and below.
    assert (two.images[0].width, two.images[0].height) == (60, 80)
    assert two.regions[0].box == (0.0, 0.5, 0.5, 1.0)
    assert two.regions[0].area_px == 36 * 80
    assert +dropped == {
        "categories that occur more than once in a photo (no localization question)": 1,
        "categories with a crowd in a photo (no localization question)": 1,
        "boxes that leave the picture and were clipped (kept)": 1,
        "boxes that are no box inside the picture": 2,
        "pictures that can't be decoded": 1,
        "pictures that are not in the folder": 1,
        "pictures of another displayed size than annotated": 1,
    }


def test_captions_and_the_papers_subset(small):
    dropped = Dropped()
    photos = Pictures(small[0], dropped=dropped)
    (caption,) = coco.read(None, photos, *small[1:], tasks=("caption",))
    assert (caption.task, caption.answer.text, caption.answers) == (
        *("understanding", "A dog and cats."),
        ["A dog and cats.", "Two cats."],
    )
    assert caption.turns[0].text.removeprefix("<image>\n") in templates("caption")
    assert dropped["captions that are empty or hold a placeholder"] == 2
    subset = list(coco.read(pictures=photos, annotations=small[1], max_objects=3))
    assert [s.key for s in subset] == ["000000000002-02"]


def test_bad_files_are_one_line(small, tmp_path, capsys):
    photos, annotations, _ = small

    def run(**changes: str) -> str:
        args = {"images": str(photos), "annotations": str(annotations), "out": str(tmp_path / "out")} | changes
        assert main(["data", "convert", "coco", *(a for k, v in args.items() for a in (f"--{k}", v))]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err

    (tmp_path / "empty").mkdir()
    assert "seen none of the photos" in run(images=str(tmp_path / "empty"))
    assert "seen no such file" in run(annotations=str(tmp_path / "no.json"))
    (tmp_path / "x.json").write_text("{")
    assert "seen no JSON" in run(annotations=str(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text('{"images": [], "categories": []}')
    assert "seen no list 'annotations'" in run(annotations=str(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text('{"images": [], "categories": [{"id": 1}], "annotations": []}')
    message = run(annotations=str(tmp_path / "x.json"))
    assert "categories: item 0: seen no 'name', expected a COCO file with id, name" in message
    assert not list((tmp_path / "out").glob("*"))


def test_what_is_left_out_is_listed_and_strict_stops_at_what_is_no_choice(small, tmp_path, capsys):
    photos, annotations, _ = small
    data = json.loads(annotations.read_text())
    data["images"] = [*data["images"][:2], data["images"][1] | {"id": 6}]
    data["annotations"] = data["annotations"][:6]
    annotations.write_text(json.dumps(data))

    def run(*words: str) -> tuple[int, str, str]:
        args = ["coco", "--images", str(photos), "--annotations", str(annotations), "--out", str(tmp_path / "o")]
        return main(["data", "convert", *args, *words]), *capsys.readouterr()

    code, said, _ = run("--max-objects", "9", "--crowd", "count", "--count-by", "categories")
    assert code == 0
    line = "2 photos with at most 9 objects (split all, count-by categories, crowd count), 2 with a question"
    assert f"{line}; the paper's subset: 3582 photos" in said
    listing = tmp_path / "o/coco.left_out.txt"
    assert str(listing) in said
    assert listing.read_text().splitlines() == [
        "categories with a crowd in a photo (no localization question)\tphoto 1 person",
        "categories that occur more than once in a photo (no localization question)\tphoto 1 cat",
        "boxes that leave the picture and were clipped (kept)\tphoto 2 annotation None",
        "pictures without annotations\t6",
    ]
    code, said, error = run("--max-objects", "9", "--crowd", "count", "--strict")
    assert (code, error) == (
        2,
        "ts-lightning: error: 6: seen one of the pictures without annotations, expected none (strict)\n",
    )
    assert "4 records" not in said
    assert len(listing.read_text().splitlines()) == 4  # the former run's, as its shards
    code, said, error = run("--max-objects", "0")
    assert error == f"ts-lightning: error: {tmp_path}/o/coco: seen no samples to write, expected at least one\n"
    assert "left out: 2 photos with no or more than 0 categories (crowd exclude) (1, 2)" in said
    assert "categories (crowd exclude)\t1\n" in listing.read_text()  # this run's


def test_records_that_come_twice_are_counted_and_others_of_the_same_id_kept(tmp_path, capsys):
    row = {"questionId": 7, "question": "What?", "image": "p.png", "answers": ["1993"]}
    (tmp_path / "val_v1.0.json").write_text(json.dumps({"data": [row, row, row | {"question": "Who?"}]}))
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/p.png").write_bytes(picture(1, (80, 60), "PNG"))
    assert main(["data", "convert", "docvqa", str(tmp_path), "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "2 records: 2 vqa" in said
    assert "left out: 1 records that come twice (docvqa-7)" in said


def test_displayed_sizes_and_formats():
    assert inspect_image(picture(0, (8, 6), "PNG")) == ("png", 8, 6)
    assert inspect_image(picture(0, (8, 6), "WEBP")) == ("webp", 8, 6)
    for orientation in range(1, 9):
        size = (8, 6) if orientation < 5 else (6, 8)
        assert inspect_image(picture(0, (8, 6), exif=orientation)) == ("jpg", *size)
    for data in (b"", b"<html></html>", picture(0, (80, 60))[:-30], picture(0, kind="GIF")):
        with pytest.raises(ValueError, match=r"^image: seen .* bytes .*, expected a whole JPEG, PNG or WebP$"):
            inspect_image(data)


@needs_photos
def test_real_photos(tmp_path, capsys):
    notes = REAL / "annotations"
    arguments = ["--images", REAL / "train2017", "--annotations", notes / "instances_train2017.json", "--out", tmp_path]
    arguments += ["--tasks", "localization"]
    assert main(["data", "convert", "coco", *map(str, arguments)]) == 0
    assert "171 records: 171 localization" in capsys.readouterr().out
    manifest = index_shards(f"{tmp_path}/*.tar")
    assert (manifest.num_samples, manifest.bad) == (171, [])
    source, seen = ShardReader(manifest), set()
    raw = json.loads((notes / "instances_train2017.json").read_text())
    photos = {photo["id"]: photo for photo in raw["images"]}
    truth = {one["id"]: one for one in raw["annotations"]}
    for i in range(171):
        one = source.read(i)
        photo, expected = photos[one.meta["image_id"]], truth[one.meta["annotation_id"]]
        same = [a for a in raw["annotations"] if a["image_id"] == photo["id"]]
        assert [a["category_id"] for a in same].count(expected["category_id"]) == 1
        x1, y1, x2, y2 = one.regions[0].box
        w, h = photo["width"], photo["height"]
        assert [x1 * w, y1 * h, (x2 - x1) * w, (y2 - y1) * h] == pytest.approx(expected["bbox"], abs=0.01)
        assert one.image_bytes == [(REAL / "train2017" / one.images[0].name).read_bytes()]
        seen.add((photo["id"], expected["category_id"]))
    assert len(seen) == 171
    subset = coco.read(REAL, split="train2017", max_objects=3, count_by="instances")
    assert len({one.meta["image_id"] for one in subset}) <= 21
