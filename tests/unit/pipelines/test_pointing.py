"""Questions about annotated objects under a click, a box or a polygon; the commands of ChatSpot's data."""

import re
import shlex
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from tests.unit.data_samples import photo, picture, put
from ts_lightning.cli import main
from ts_lightning.cli.data.convert import arguments
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.prompts import templates
from ts_lightning.grounding.region_sampling import contains
from ts_lightning.pipelines.converters import coco_regions, llava, objects365
from ts_lightning.pipelines.converters.pointing import outline, point_at
from ts_lightning.pipelines.converters.source import Dropped, Pictures

ROOT = Path(__file__).parents[3]
CORNER = [(0.1, 0.2), (0.5, 0.2), (0.1, 0.8)]  # the upper left half of its box (0.1, 0.2, 0.5, 0.8)
NOTE = {
    **{"id": 5, "image_id": 9, "category_id": 2, "bbox": [10, 10, 40, 30], "area": 600.0},
    "segmentation": [[0, 0, 3, 0, 0, 3], [10, 10, 50, 10, 10, 40]],  # pixels of 100 x 50: the second is CORNER
}
CATEGORIES = [{"id": 2, "name": "sail"}, {"id": 3, "name": "gull"}]
IMAGE = {"id": 9, "width": 100, "height": 50, "file_name": "9.jpg"}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """One photo with two sails, one of them without an outline, a gull and a crowd of gulls."""
    bare = {"id": 6, "image_id": 9, "category_id": 2, "bbox": [60, 10, 20, 20]}
    gull = {"id": 7, "image_id": 9, "category_id": 3, "bbox": [90, 5, 5, 5]}
    crowd = gull | {"id": 8, "iscrowd": 1, "segmentation": {"counts": [1], "size": [50, 100]}}
    photo(tmp_path / "images/9.jpg")
    notes = [NOTE, bare, gull, crowd]
    return put(
        tmp_path / "zhiyuan_objv2_train.json", {"images": [IMAGE], "annotations": notes, "categories": CATEGORIES}
    )


def asked(sample: Sample) -> str:
    return sample.turns[0].text.removeprefix("<image>\n")


def test_the_largest_outline_counts_and_masks_have_none() -> None:
    assert outline(NOTE, (100, 50)) == CORNER
    assert outline({"segmentation": {"counts": "x", "size": [50, 100]}}, (100, 50)) is None
    assert outline({"segmentation": [[1, 1, 2, 2]]}, (100, 50)) is outline({}, (100, 50)) is None


def test_what_points_at_an_object() -> None:
    box = (0.1, 0.2, 0.5, 0.8)
    for seed in range(100):
        (click,) = point_at(box, CORNER, "click", Random(seed))["points"]
        assert contains(CORNER, click)
        (click,) = point_at(box, None, "click", Random(seed))["points"]
        assert abs(click[0] - 0.3) / 0.4 + abs(click[1] - 0.5) / 0.6 <= 0.5 + 1e-9  # off the corners of the box
        assert contains(point_at(box, None, "polygon", Random(seed))["polygon"], (0.3, 0.5))
    assert point_at(box, CORNER, "polygon", Random(0)) == {"polygon": CORNER}
    assert point_at(box, CORNER, "box", Random(0)) == {"box": box}
    many = [(i / 50, i * i / 2500) for i in range(50)]
    assert point_at(box, many, "polygon", Random(0)) == {"polygon": many[::3]}  # 17 of 50


@pytest.mark.parametrize("kind", ["click", "box", "polygon", "mixed"])
def test_region_classification_in_every_kind(annotations: Path, kind: str) -> None:
    def read(seed: int = 0) -> list[Sample]:
        pictures = Pictures(annotations.parent / "images")
        return list(coco_regions.read(pictures, annotations, region=kind, seed=seed))

    samples = read()
    assert [(s.id, s.answer.text) for s in samples if s.answer] == [
        ("coco_regions/000000000009-0000", "sail"),
        ("coco_regions/000000000009-0001", "sail"),
        ("coco_regions/000000000009-0002", "gull"),
    ]
    field = {"click": "points", "box": "box", "polygon": "polygon"}
    for sample in samples:
        sample.validate()
        assert getattr(sample.regions[0], field[sample.tags[1]]) is not None
        assert asked(sample) in [line.replace("{region}", "{region:0}") for line in templates("coco_region")]
    assert [s.to_json() for s in samples] == [s.to_json() for s in read()]
    assert (samples == read(1)) == (kind == "box")
    assert kind == "mixed" or {s.tags[1] for s in samples} == {kind}


def test_regions_are_asked_as_chatspot_prints_it() -> None:
    assert templates("coco_region") == ["What can you see in this region? {region}"]
    assert templates("coco_text") == ["What text can you see in this region? {region}"]
    for page in ("configs/eval/region_ocr.yaml", "docs/chatspot.md"):
        assert "--split val --template coco_text " in (ROOT / page).read_text()


def test_excluded_photos_are_not_drawn_for_region_classification(tmp_path: Path, capsys) -> None:
    images = [IMAGE | {"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    notes = [NOTE | {"id": i, "image_id": i} for i in range(4)]
    file = put(tmp_path / "i.json", {"images": images, "annotations": notes, "categories": CATEGORIES})
    for i in range(4):
        photo(tmp_path / f"photos/{i}.jpg")
    words = ["data", "convert", "coco-regions", "--annotations", str(file)]
    given = [*words, "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    left = put(tmp_path / "left.txt", "0.jpg\n2.jpg\n")
    assert main([*given, "--exclude-images", str(left), "--subset", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 records: " in said
    assert "excluded pictures: 2 of the 2 names of the list" in said
    assert '"image_ids": [1, 3]' in (tmp_path / "out/coco_regions.ids.json").read_text()
    assert main([*words, "--subset", "9", "--list-images", str(tmp_path / "names.txt")]) == 0
    assert (tmp_path / "names.txt").read_text() == "0.jpg\n1.jpg\n2.jpg\n3.jpg\n"


def test_boxes_of_a_photo_that_is_shown_turned_are_left_out(annotations: Path) -> None:
    (annotations.parent / "images/9.jpg").write_bytes(picture(1, (100, 50), exif=6))
    dropped = Dropped()
    assert list(coco_regions.read(Pictures(annotations.parent / "images", dropped=dropped), annotations)) == []
    assert dropped == {"pictures turned by a quarter (EXIF?) against their annotations": 1}


def test_objects365_asks_for_categories_and_for_what_is_there(annotations: Path) -> None:
    *regions, there = objects365.read(annotations.parent, tasks=("region", "image"), region="click")
    assert [s.answer.text for s in regions if s.answer] == ["sail", "sail", "gull"]  # not the crowd
    assert asked(regions[0]) in [
        line.replace("{region}", "{region:0}") for line in templates("mgvlid/objects365_region")
    ]
    assert regions[0].regions[0].points
    assert asked(there) in templates("mgvlid/objects365_image")
    assert there.turns[1].text == "sail, gull"
    few = list(objects365.read(annotations.parent, tasks=("region",), per_photo=2))
    assert len(few) == 2
    assert few[0].regions[0].box is not None
    assert {s.subtask for s in objects365.read(annotations.parent)} == {"detection"}  # each name comes twice


def test_what_is_refused(annotations: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tasks": ("regions",)}, "tasks: seen 'regions', expected localization, caption, detection, region, image"),
        ({"region": "point"}, "region: seen 'point', expected click, box, polygon or mixed"),
        ({"per_photo": 0}, "per_photo: seen 0, expected at least 1"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            list(objects365.read(annotations.parent, **options))


def test_captions_in_llavas_layout_take_a_template(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Say something.\n<image>"}, {"from": "gpt", "value": "a boat"}]
    file = put(tmp_path / "chat.json", [{"id": "1", "image": "1.jpg", "conversations": turns}])
    photo(tmp_path / "images/1.jpg")
    (caption,) = llava.read(file, template="mgvlid/cc595k")
    assert asked(caption) in templates("mgvlid/cc595k")
    assert caption.turns[1].text == "a boat"
    (wrapped,) = llava.read(file, template="mgvlid/doc_vqa")
    assert "Say something." in asked(wrapped)


def test_every_source_of_chatspot_has_a_command() -> None:
    """The commands of the docs are parsed; they write the shards that both stages name, with every template."""
    text = (ROOT / "docs/chatspot.md").read_text().replace("\\\n", " ")
    made, used = {"data_shards/region_chat/region_chat-*.tar"}, set()  # of ts-lightning data generate region-chat
    for line in re.findall(r"ts-lightning data convert ([^`#\n]+)", text):
        name, *options = shlex.split(line)
        told, own = arguments(name, options)
        made.add(f"{told.out}/{(told.prefix or name).split('-')[0]}-*.tar")
        used |= {own.get("template")} | {f"mgvlid/objects365_{task}" for task in own.get("tasks") or ()}
    for stage in (1, 2):
        data = yaml.safe_load((ROOT / f"configs/fit/chatspot_stage{stage}.yaml").read_text())["data"]["init_args"]
        assert {*data["train"]["shards"], *(suite["shards"] for suite in data["val"].values())} <= made
    folder = ROOT / "ts_lightning/grounding/templates"
    files = {f"mgvlid/{file.stem}" for file in folder.glob("mgvlid/*.txt")}
    assert files - used == {"mgvlid/region_chat"}
