"""Files as people bring them: each row becomes the right record, or is counted under a true reason."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.data_samples import photo, picture, put
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters import coco, llava, mgrounding, ms_swift, vlm_r1, voc, yolo
from ts_lightning.pipelines.converters.source import Dropped, Excluded, Pictures, excluded_names, safe_key

BAD_ROW = "rows that lack a field, or have one of another kind"
MARKS = "rows with another number of picture marks than pictures"
LATER = "rows with a picture in a later turn (they stand in the first question)"
CAT = "0 0.5 0.5 0.2 0.4\n"  # a line of YOLO's labels
UNREAD = "rows with boxes that can't be read in the given notation"


def xml(filename: str | None, name: str = "cat", box: str = "11,11,30,40", size: str = "100,80") -> str:
    x1, y1, x2, y2 = box.split(",")
    width, height = size.split(",")
    named = "" if filename is None else f"<filename>{filename}</filename>"
    return (
        f"<annotation>{named}<size><width>{width}</width><height>{height}</height></size><object><name>{name}</name>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
    )


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]


def from_llava(tmp_path: Path, row: dict[str, Any], **options: Any) -> tuple[list[Sample], Dropped]:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / "img" / name, (400, 300) if name == "a.jpg" else (200, 100))
    dropped = Dropped()
    file = put(tmp_path / "x.json", [row])
    return list(llava.read(file, Pictures(tmp_path / "img", dropped=dropped), **options)), dropped


def from_coco(tmp_path: Path, notes: list[Any], **more: Any) -> tuple[list[Sample], Dropped]:
    photo(tmp_path / "img/a.jpg", (100, 80))
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80} | more.pop("image", {})
    names = more.pop("categories", [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])
    file = put(tmp_path / "ann.json", {"images": [image], "annotations": notes, "categories": names})
    dropped = Dropped()
    read = coco.read(pictures=Pictures(tmp_path / "img", dropped=dropped), annotations=file, **more)
    return list(read), dropped


@pytest.mark.parametrize(
    "names", [("猫", "狗", "鸟"), ("img 1", "img.1", "img(1"), ("é", "e\u0301x", "è"), ("1猫", "1狗")]
)
def test_photos_whose_names_differ_in_other_characters_are_all_kept(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / "Annotations" / f"{name}.xml", xml(f"{name}.jpg"))
        photo(tmp_path / "JPEGImages" / f"{name}.jpg", (100, 80))
    dropped = Dropped()
    made = list(voc.read(tmp_path, Pictures(dropped=dropped)))
    assert len({one.key for one in made}) == len(made) == 2 * len(names)
    assert not +dropped


def test_keys_differ_where_names_do() -> None:
    names = ["猫", "狗", "a b", "a.b", "a(b", "a-b", "训练", "验证", "", "-"]
    assert len({safe_key(name, 1) for name in names}) == len(names)
    assert safe_key("a-b", 7) == "a-b-7"


def test_two_files_that_number_their_rows_alike_keep_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("训练.json", "验证.json"):
        put(tmp_path / "d" / name, [{"image": "a.jpg", "conversations": turns("<image>\nWhat?", f"A {name}.")}])
    photo(tmp_path / "img/a.jpg")
    words = ["llava", str(tmp_path / "d"), "--images", str(tmp_path / "img"), "--out", str(tmp_path / "o")]
    assert main(["data", "convert", *words]) == 0
    assert "2 records: 2 conversation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "", "conversations": turns("<image>\nWhat?", "A cat.")}, MARKS),
        ({"conversations": turns("<image>\nWhat?", "A cat.")}, MARKS),
        ({"image": ["a.jpg"], "conversations": turns("<image>\n<image>\nCompare.", "Same.")}, MARKS),
        ({"image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\nWhat?", "A cat.")}, MARKS),
        ({"image": "a.jpg", "conversations": turns("What?", "<image> <image>")}, MARKS),
        ({"image": "a.jpg", "conversations": turns("What?", "See <image>.")}, LATER),
        ({"image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\n1?", "A.", "<image>\n2?", "B.")}, LATER),
        ({"video": "v.mp4", "conversations": turns("<video>\nWhat?", "A cat runs.")}, "rows with video or sound"),
        ({"conversations": turns("<audio>\nWhat?", "A cat.")}, "rows with video or sound"),
        ({"image": "a.jpg", "conversations": None}, BAD_ROW),
        ({"image": "a.jpg", "conversations": turns("<image>\nWhat?")}, "conversations that are not pairs of turns"),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": 7}, *turns("", "A")[1:]]}, BAD_ROW),
        ({"image": "a.jpg", "conversations": [{"from": "human"}, *turns("", "A")[1:]]}, BAD_ROW),
        ({"image": {"name": 5}, "conversations": turns("<image>\nWhat?", "A cat.")}, BAD_ROW),
        ({"image": 5, "conversations": turns("<image>\nWhat?", "A cat.")}, BAD_ROW),
        ({"image": "a.jpg", "conversations": turns("<image>\nWhat?", " \n")}, "conversations with an empty answer"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "conversations with turns of other roles"),
    ],
)
def test_conversations_that_cannot_be_used_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    made, dropped = from_llava(tmp_path, row)
    assert not made
    (only,) = dropped
    assert only.startswith(reason)
    assert dropped.names[only][0].startswith("x.json row 0")


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", ["a.jpg", ["a.jpg"], [{"path": "a.jpg"}]])
def test_pictures_are_read_under_both_keys(tmp_path: Path, key: str, value: Any) -> None:
    (one,), dropped = from_llava(tmp_path, {key: value, "conversations": turns("<image>What is it?", "A cat.")})
    assert (one.images[0].name, one.turns[0].text) == ("a.jpg", "<image>\nWhat is it?")
    assert not +dropped


@pytest.mark.parametrize("first", [{}, {"images": []}, {"images": [5]}, {"images": ["gone.jpg"]}])
def test_a_first_row_without_its_picture_loses_no_other(tmp_path: Path, first: dict[str, Any]) -> None:
    photo(tmp_path / "pics/a.jpg")
    for name, said in (("conversations", turns("What?", "A cat.")), ("messages", MESSAGES)):
        rows = [{name: said, **first}, {name: said, "images": [{"path": "pics/a.jpg"}]}]
        file = put(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
        *_, one = (llava if name == "conversations" else ms_swift).read(file)
        assert one.image_bytes == [(tmp_path / "pics/a.jpg").read_bytes()]


@pytest.mark.parametrize(
    "asked",
    [
        "Image-1: <image>\nImage-2: <image>\nCompare.",
        "<image>\n<image>\nCompare.",
        "Compare <image> with <image>.",
        "Is <image>\nthe same as\n<image>",
        "A <image><image>?",
    ],
)
def test_picture_marks_stay_where_they_stand(tmp_path: Path, asked: str) -> None:
    (one,), dropped = from_llava(tmp_path, {"image": ["a.jpg", "b.jpg"], "conversations": turns(asked, "Same.")})
    assert one.turns[0].text == asked
    assert not +dropped
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "Same."}]
    row = {"messages": messages, "images": ["a.jpg", "b.jpg"]}
    (other,) = ms_swift.read(put(tmp_path / "s.jsonl", row), Pictures(tmp_path / "img"))
    assert other.turns[0].text == asked


def test_system_prompts_and_line_ends(tmp_path: Path) -> None:
    said = [{"from": "system", "value": "Be brief."}, *turns("<image>\r\nWhat?\r\n", "A cat.\r\n")]
    (one,), _ = from_llava(tmp_path, {"image": "a.jpg", "conversations": said})
    assert [turn.text for turn in one.turns] == ["Be brief.\n<image>\nWhat?\n", "A cat."]
    (two,), _ = from_llava(tmp_path, {"system": "Be kind.", "conversations": turns("What?", "A cat.")})
    assert two.turns[0].text == "Be kind.\nWhat?"


B = "<|box_start|>(100,200),(300,400)<|box_end|>"
PIXELS = '{"bbox_2d": [20, 20, 60, 40], "label": "dog"}'


@pytest.mark.parametrize(
    ("asked", "answer", "codec", "image", "box"),
    [
        ("In the second image find the dog.", f"Image-2: {B}", "qwen2_vl", 1, (0.1, 0.2, 0.3, 0.4)),
        ("Find the dog in image 2.", B, "qwen2_vl", 1, (0.1, 0.2, 0.3, 0.4)),
        ("Find it.", f"In the first image: {B}", "qwen2_vl", 0, (0.1, 0.2, 0.3, 0.4)),
        ("Find it.", f"<bbox_id>[2-1]</bbox_id><|object_ref_start|>dog<|object_ref_end|>{B}", "mirg", 1, None),
        ("Find the dog in image 2.", PIXELS, "qwen2_5_vl", 1, (0.1, 0.2, 0.3, 0.4)),
        ("Find the dog in image 1.", PIXELS, "qwen2_5_vl", 0, (0.05, 20 / 300, 0.15, 40 / 300)),
    ],
)
def test_a_box_lies_in_the_picture_that_is_named(
    tmp_path: Path, asked: str, answer: str, codec: str, image: int, box: tuple[float, ...] | None
) -> None:
    row = {"image": ["a.jpg", "b.jpg"], "conversations": turns(f"<image>\n<image>\n{asked}", answer)}
    (one,), _ = from_llava(tmp_path, row, codec=codec)
    assert one.regions[0].image == image
    assert box is None or one.regions[0].box == pytest.approx(box)


@pytest.mark.parametrize(
    ("answer", "codec", "reason"),
    [
        (B, "qwen2_vl", "rows with a box in one of several pictures, and none is named"),
        (f"Image-7: {B}", "qwen2_vl", UNREAD),
        ('Image 2: {"bbox_2d": [20, 20, 600, 400], "label": "dog"} [[1, 2, 3, 4]]', "scout", UNREAD),
        ('Image 2: {"bbox_2d": [1000, 1000, 3000, 2000]}', "qwen2_5_vl", UNREAD),
        ("Image 2: [10, 20, 30, 40]", "qwen2_vl", UNREAD),
    ],
)
def test_a_box_without_its_picture_or_notation_is_no_text(tmp_path: Path, answer: str, codec: str, reason: str) -> None:
    row = {"image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\n<image>\nFind it.", answer)}
    made, dropped = from_llava(tmp_path, row, codec=codec)
    assert (made, [*dropped]) == ([], [reason])


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ('Report in JSON format: [{"bbox_2d": [x1, y1, x2, y2], "label": "label"}]', True),
        ("Format:<|box_start|>(x1,y1),(x2,y2)<|box_end|>.", True),
        ('What is at {"bbox_2d": [10, 20, 30]}?', False),
        ("What is at <box>0.1,0.2,0.3,0.4</box>?", False),
    ],
)
def test_a_question_may_show_the_form_of_a_box(tmp_path: Path, asked: str, kept: bool) -> None:
    row = {"image": "a.jpg", "conversations": turns(f"<image>\n{asked}", B)}
    made, dropped = from_llava(tmp_path, row, codec="qwen2_vl")
    assert [one.regions[0].box for one in made] == [(0.1, 0.2, 0.3, 0.4)] * kept
    assert [*dropped] == [UNREAD] * (not kept)
    file = put(tmp_path / "m.json", [row | {"images": ["a.jpg"]}])
    assert len(list(mgrounding.read(file, Pictures(tmp_path / "img")))) == kept
    _, dropped = from_llava(tmp_path, row | {"conversations": turns(f"<image>\n{asked}", "A cat.")})
    assert bool(dropped) != kept


def test_boxes_that_nobody_reads_are_counted(tmp_path: Path) -> None:
    (one,), dropped = from_llava(tmp_path, {"image": "a.jpg", "conversations": turns("<image>\nWhere?", f"At {B}.")})
    assert one.task == "understanding"
    assert [*dropped] == ["rows with boxes in their texts (kept as words; --codec reads them)"]


SAME = [{"id": 1, "file_name": f"{site}/0001.jpg", "width": 100, "height": 80} for site in ("site_b", "site_a")]


@pytest.mark.parametrize("strict", [False, True])
def test_a_base_name_stands_for_a_picture_only_where_it_is_unique(tmp_path: Path, strict: bool) -> None:
    photo(tmp_path / "site_a/0001.jpg", (100, 80))
    images = [one | {"id": i} for i, one in enumerate(SAME, 1)]
    notes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 20, 20]} for i in (1, 2)]
    data = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
    file, dropped = put(tmp_path / "ann.json", data), Dropped(strict)
    read = coco.read(pictures=Pictures(tmp_path / "site_a", dropped=dropped), annotations=file)
    if strict:
        with pytest.raises(ValueError, match=r"site_b/0001.jpg: seen one of the pictures that are not in the folder"):
            list(read)
        return
    assert [one.meta["image_id"] for one in read if one.meta] == [2]
    assert dropped.names == {"pictures that are not in the folder": ["site_b/0001.jpg"]}


@pytest.mark.parametrize("named", ["sub\\a.jpg", "a.JPG", "A.jpg", "a", "other/a.jpg", "cafe\u0301.jpg"])
def test_other_writings_of_a_name_are_found(tmp_path: Path, named: str) -> None:
    photo(tmp_path / ("caf\u00e9.jpg" if "caf" in named else "a.jpg"))
    assert Pictures(tmp_path).find(named) is not None
    assert Pictures(tmp_path).find(f"{named}x") is None


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff1\n2\n",
        "1,2\n",
        "1.0\n2.0\n",
        "[1, 2]",
        '"1"\n"2"\n',
        "# val\r\n1 # cat\r\n2\r\n",
        "image_id,width\n1,640\n2,480\n",
        "000000000001.jpg\nCOCO_val2014_000000000002.jpg\n",
        '{"images": [{"id": 1, "file_name": "000000000001.jpg"}, {"id": 2}]}',
        "1\t2",
        "1;2",
    ],
)
def test_lists_of_excluded_pictures_in_every_form(tmp_path: Path, text: str) -> None:
    excluded = excluded_names(put(tmp_path / "x.txt", text))
    pictures = Pictures(excluded=excluded)
    named = [f"{number:012d}.jpg" for number in (1, 2, 3, 640)]
    assert [pictures.is_excluded(name) for name in named] == [True, True, False, False]
    assert excluded.line() == "excluded pictures: 2 of the 2 names of the list are in this data set"


@pytest.mark.parametrize("text", ["1\n{2}\n", "1\na: b\n", '["a.jpg", null]', "", "# only a comment\n"])
def test_what_is_no_list_of_pictures_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.txt: (line 2: |item 1: )?seen .*expected"):
        excluded_names(put(tmp_path / "x.txt", text))


def _moving(kind: str, size: tuple[int, int] = (100, 80)) -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", size, colour) for colour in ("red", "blue")]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: _moving("WEBP"), "pictures that move"),
        (lambda: _moving("PNG"), "pictures that move"),
        (lambda: picture(1, (2010, 10)), "pictures that are too large or too long-sided"),
        (lambda: picture(1, (33_000, 200), "PNG"), "pictures that are too large or too long-sided"),
        (lambda: picture(1, (10, 2010), "PNG"), "pictures that are too large or too long-sided"),
        (lambda: picture(1, (100, 80))[:-30], "pictures that can't be decoded"),
        (lambda: b"GIF89a", "pictures that can't be decoded"),
    ],
)
def test_pictures_that_training_refuses_are_refused_here(
    tmp_path: Path, data: Callable[[], bytes], reason: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(data())
    pictures = Pictures(tmp_path)
    assert pictures.get("a.jpg") is None
    assert [one for one in pictures.dropped if one.startswith(reason)]


def cat(**more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 30], "area": 500} | more


@pytest.mark.parametrize(
    ("more", "box", "area", "reason"),
    [
        ({}, (0.1, 0.125, 0.3, 0.5), 500.0, None),
        ({"area": float("nan")}, (0.1, 0.125, 0.3, 0.5), 600.0, "areas that are no number above 0"),
        ({"area": -4}, (0.1, 0.125, 0.3, 0.5), 600.0, "areas that are no number above 0"),
        ({"area": 0}, (0.1, 0.125, 0.3, 0.5), 600.0, "areas that are no number above 0"),
        ({"area": None}, (0.1, 0.125, 0.3, 0.5), 600.0, None),
        ({"area": "500"}, (0.1, 0.125, 0.3, 0.5), 600.0, "areas that are no number above 0"),
        ({"iscrowd": "0"}, (0.1, 0.125, 0.3, 0.5), 500.0, None),
        ({"iscrowd": float("nan")}, (0.1, 0.125, 0.3, 0.5), 500.0, "crowd flags that are neither 0 nor 1"),
        ({"iscrowd": "yes"}, (0.1, 0.125, 0.3, 0.5), 500.0, "crowd flags that are neither 0 nor 1"),
        ({"image_id": "1"}, (0.1, 0.125, 0.3, 0.5), 500.0, None),
        ({"image_id": 1.0, "category_id": "1"}, (0.1, 0.125, 0.3, 0.5), 500.0, None),
        ({"bbox": [10, 30, 60, 10], "attributes": {"rotation": 90.0}}, (0.35, 0.0625, 0.45, 0.8125), 500.0, "rotated"),
        ({"bbox": [10, 30, 60, 10], "attributes": {"rotation": 180}}, (0.1, 0.375, 0.7, 0.5), 500.0, "rotated"),
        ({"bbox": [10, 30, 60, 10], "attributes": {"rotation": 0.0}}, (0.1, 0.375, 0.7, 0.5), 500.0, None),
        (
            {"bbox": [30, 20, 20, 20], "attributes": {"rotation": 45}},
            (0.258579, 0.198223, 0.541421, 0.551777),
            500.0,
            "rot",
        ),
        ({"attributes": {"rotation": "x"}}, (0.1, 0.125, 0.3, 0.5), 500.0, None),
    ],
)
def test_odd_values_of_an_annotation(
    tmp_path: Path, more: dict[str, Any], box: tuple[float, ...], area: float, reason: str | None
) -> None:
    (one,), dropped = from_coco(tmp_path, [cat(**more)])
    assert one.regions[0].box == pytest.approx(box, abs=1e-6)
    assert one.regions[0].area_px == area
    assert [name.startswith(reason or "?") for name in +dropped] == ([] if reason is None else [True])


@pytest.mark.parametrize(
    "size", [{"width": 0, "height": 0}, {"width": None, "height": None}, {"width": "x"}, {"width": float("nan")}]
)
def test_sizes_that_are_unknown_come_from_the_picture(tmp_path: Path, size: dict[str, Any]) -> None:
    (one,), dropped = from_coco(tmp_path, [cat()], image=size)
    assert one.regions[0].box == (0.1, 0.125, 0.3, 0.5)
    assert [*dropped] == ["photos whose width or height is no number above 0 (taken from the picture)"]


def test_sizes_as_text_and_ids_as_text(tmp_path: Path) -> None:
    (one,), dropped = from_coco(tmp_path, [cat(image_id="p-1")], image={"id": "p-1", "width": "100", "height": "80"})
    assert (one.key, one.meta) == ("p-1-01", {"image_id": "p-1", "annotation_id": 1})
    assert not +dropped


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ({"bbox": None}, "boxes that are no box inside the picture"),
        ({"bbox": [0, 0, 0, 0]}, "boxes that are no box inside the picture"),
        ({"bbox": "1,2,3,4"}, "boxes that are no box inside the picture"),
        ({"category_id": -1}, "annotations of a category that the file does not list"),
        ({"category_id": [1]}, BAD_ROW),
        ({"image_id": None}, BAD_ROW),
    ],
)
def test_a_bad_annotation_is_left_out_alone(tmp_path: Path, note: dict[str, Any], reason: str) -> None:
    (one,), dropped = from_coco(
        tmp_path, [cat(id=5, **note) if "bbox" not in note else cat(category_id=2, **note), cat()]
    )
    assert one.regions[0].category == "cat"
    assert [*+dropped] == [reason]


@pytest.mark.parametrize("names", [("person", "person"), ("Person", "person "), ("traffic  light", "Traffic light")])
def test_categories_are_one_by_their_name(tmp_path: Path, names: tuple[str, str]) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    made, dropped = from_coco(tmp_path, [cat(), cat(id=2, category_id=2)], categories=categories)
    assert not made
    assert [*dropped] == ["categories that occur more than once in a photo (no localization question)"]
    (both,), _ = from_coco(
        tmp_path, [cat(), cat(category_id=2, bbox=[50, 40, 20, 20])], categories=categories, tasks=("all",)
    )
    assert both.regions[0].boxes == [(0.1, 0.125, 0.3, 0.5), (0.5, 0.5, 0.7, 0.75)]


def test_names_of_categories(tmp_path: Path) -> None:
    (one,), _ = from_coco(tmp_path, [cat()], categories=[{"id": 1, "name": 7}])
    assert one.regions[0].category == "7"
    made, dropped = from_coco(tmp_path, [cat()], categories=[{"id": 1, "name": None}])
    assert not made
    assert dropped.names[BAD_ROW] == ["ann.json category 1: seen the name None, expected a text"]
    with pytest.raises(ValueError, match=r"ann\.json: seen category id 1 as 'cat' and 'dog', expected one name"):
        from_coco(tmp_path, [cat()], categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}])


@pytest.mark.parametrize(
    ("named", "file", "kept"),
    [
        ("a", "a", 2),
        ("a.jpg", "a", 2),
        ("C:\\photos\\a.jpg", "a", 2),
        (None, "a", 2),
        ("", "a", 2),
        ("b.jpg", "a", 0),
        ("old.jpg", "a", 2),
    ],
)
def test_an_annotation_file_goes_with_its_own_picture(tmp_path: Path, named: str | None, file: str, kept: int) -> None:
    put(tmp_path / "Annotations" / f"{file}.xml", xml(named))
    put(tmp_path / "Annotations/b.xml", xml("b.jpg", "dog"))
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / "JPEGImages" / name, (100, 80))
    dropped = Dropped()
    made = [one for one in voc.read(tmp_path, Pictures(dropped=dropped)) if one.meta and one.meta["image_id"] == "a"]
    assert len(made) == kept
    assert all(one.images[0].name == "a.jpg" for one in made)
    reasons = {"b.jpg": "annotation files that name another one's picture", "old.jpg": "annotation files whose picture"}
    assert [reason for reason in +dropped if not reason.startswith(reasons.get(named or "", "?"))] == []


@pytest.mark.parametrize(
    "text",
    [
        xml("a.jpg", size="100.0,80.0"),
        xml("a.jpg", size="0,0"),
        xml("a.jpg", size="?,?"),
        f'<?xml version="1.0" encoding="GBK"?>{xml("a.jpg")}',
        f'\ufeff<?xml version="1.0" encoding="utf-8"?>\r\n{xml("a.jpg")}',
        f'<?xml version="1.0" encoding="none-such"?>{xml("a.jpg")}',
    ],
)
def test_annotation_files_as_tools_write_them(tmp_path: Path, text: str) -> None:
    put(tmp_path / "Annotations/a.xml", text)
    photo(tmp_path / "JPEGImages/a.jpg", (100, 80))
    put(tmp_path / "ImageSets/Main/train.txt", "\ufeffa\r\n\r\n   \r\n")
    one, _ = voc.read(tmp_path, split="train")
    assert one.regions[0].box == pytest.approx((0.1, 0.125, 0.3, 0.5))


def test_names_in_the_encoding_that_the_file_declares(tmp_path: Path) -> None:
    text = f'<?xml version="1.0" encoding="GBK"?>{xml("a.jpg", "猫")}'
    (tmp_path / "a.xml").write_bytes(text.encode("gbk"))
    photo(tmp_path / "a.jpg", (100, 80))  # LabelImg: beside each other
    one, _ = voc.read(tmp_path)
    assert one.regions[0].category == "猫"


@pytest.mark.parametrize(
    ("solution", "boxes", "tags"),
    [
        ([10, 10, 30, 40], 1, []),
        ([[10, 10, 30, 40], [40, 10, 60, 40]], 2, []),
        ("[10, 10, 30, 40]", 1, []),
        ([], 0, ["negative"]),
        (None, 0, ["negative"]),
    ],
)
def test_solutions_of_vlm_r1(tmp_path: Path, solution: Any, boxes: int, tags: list[str]) -> None:
    row = {"image": "a.jpg", "problem": "Where?", "solution": solution, "width": "100", "height": 80.0}
    photo(tmp_path / "a.jpg", (100, 80))
    (one,) = vlm_r1.read(put(tmp_path / "r.json", [row]), Pictures(tmp_path))
    assert (sum(len(region.all_boxes) for region in one.regions), one.tags) == (boxes, tags)


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    row = json.dumps([{"conversations": turns("What?", "A cat.")}])
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "x.json").write_bytes(row.encode(encoding))
        assert len(list(llava.read(tmp_path / "x.json"))) == 1


def test_captions_alone_panoptic_and_roboflow(tmp_path: Path) -> None:
    photo(tmp_path / "img/a.jpg", (100, 80))
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}
    said = put(tmp_path / "captions.json", {"images": [image], "annotations": [{"image_id": 1, "caption": "A cat."}]})
    (one,) = coco.read(pictures=Pictures(tmp_path / "img"), annotations=said)
    assert (one.subtask, one.turns[1].text) == ("caption", "A cat.")
    segments = {"image_id": 1, "file_name": "a.png", "segments_info": []}
    file = put(tmp_path / "panoptic.json", {"images": [image], "annotations": [segments], "categories": []})
    with pytest.raises(ValueError, match=r"seen panoptic segments, expected boxes: use annotations/instances_"):
        list(coco.read(pictures=Pictures(tmp_path / "img"), annotations=file))
    names = [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}]
    for number, part in enumerate(("train", "valid")):
        name = f"a_jpg.rf.{number}.jpg"
        photo(tmp_path / "r" / part / name, (100, 80))
        data = {"images": [image | {"id": 0, "file_name": name}], "annotations": [cat(image_id=0)], "categories": names}
        put(tmp_path / "r" / part / "_annotations.coco.json", data)
    assert main(["data", "convert", "coco", str(tmp_path / "r"), "--out", str(tmp_path / "o")]) == 0
    manifest = index_shards(str(tmp_path / "o/*.tar"))
    made = [ShardReader(manifest).read(i) for i in range(manifest.num_samples)]
    assert sorted(one.source for one in made) == ["coco-train", "coco-train", "coco-valid", "coco-valid"]


def test_splits_that_name_their_photos_alike_keep_their_own(tmp_path: Path) -> None:
    for part, width in (("train", 100), ("val", 200)):
        image = {"id": 1, "file_name": "0001.jpg", "width": width, "height": 80}
        data = {"images": [image], "annotations": [cat()], "categories": [{"id": 1, "name": "cat"}]}
        put(tmp_path / f"annotations/instances_{part}.json", data)
        photo(tmp_path / f"im/{part}/0001.jpg", (width, 80))
    made = list(coco.read(tmp_path, Pictures(tmp_path / "im"), tasks=("localization",)))
    assert [sample.images[0].width for sample in made] == [100, 200]


def test_federated_annotations_are_not_taken_for_all(tmp_path: Path) -> None:
    image = {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
    (one,), dropped = from_coco(tmp_path, [cat()], image=image, tasks=("localization", "all", "detection"))
    assert one.meta is not None
    assert (one.subtask, one.meta["absent"], one.meta["not_exhaustive"]) == ("detection", ["dog"], ["cat"])
    assert [*dropped] == ["categories of which not all objects are annotated in a photo (no localization question)"]


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, 'hot dog']",
        "names:\n  - cat\n  - hot dog\n",
        "names:\n  0: cat\n  1: hot dog\n",
        "names: {0: cat, 1: hot dog}",
    ],
)
@pytest.mark.parametrize(
    "layout", [("labels", "images"), ("labels/train", "images/train"), ("train/labels", "train/images")]
)
def test_yolo_folders(tmp_path: Path, names: str, layout: tuple[str, str]) -> None:
    put(
        tmp_path / layout[0] / "a.txt",
        "\ufeff0 0.5 0.5 0.2 0.4\r\n1 0.1 0.1 0.3 0.1 0.3 0.2\r\n\r\n7 0.5 0.5 0.1 0.1\n",
    )
    put(tmp_path / layout[0] / "b.txt", "0 320 240 20 20\n")
    put(tmp_path / "data.yaml", f"train: x\nnc: 2\n{names}\n")
    for name in ("a.png", "b.jpg"):
        photo(tmp_path / layout[1] / name, (100, 50))
    dropped = Dropped()
    cat_one, dog_one, both = yolo.read(tmp_path, Pictures(dropped=dropped))
    assert cat_one.regions[0].box == pytest.approx((0.4, 0.3, 0.6, 0.7))
    assert (dog_one.regions[0].category, dog_one.regions[0].box) == ("hot dog", (0.1, 0.1, 0.3, 0.2))
    assert both.turns[1].text == "cat {region:0}, hot dog {region:1}."
    assert dropped.names == {
        BAD_ROW: ["a.txt line 4: seen class 7, expected one of 2"],
        "boxes that are no box inside the picture": ["b.txt line 1"],
    }


@pytest.mark.parametrize("layout", ["labels/train", "train/labels"])
def test_yolo_photos_of_another_folder(tmp_path: Path, layout: str) -> None:
    put(tmp_path / layout / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    put(tmp_path / "data.yaml", "names: [cat]\n")
    photo(tmp_path / "photos/train/a.jpg", (100, 50))
    (one,) = yolo.read(tmp_path, Pictures(tmp_path / "photos"), tasks=("localization",))
    assert one.image_bytes == [(tmp_path / "photos/train/a.jpg").read_bytes()]


def test_boxes_of_a_conversation_are_scored_in_the_frame_that_is_named(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "[0.100,0.200,0.500,0.600]"}]
    put(tmp_path / "a.json", [{"image": "a.jpg", "conversations": said}])
    photo(tmp_path / "images/a.jpg", (100, 50))
    (padded,) = llava.read(tmp_path / "a.json", codec="shikra")
    (plain,) = llava.read(tmp_path / "a.json", codec="shikra", frame="original")
    assert plain.regions[0].box == pytest.approx((0.1, 0.2, 0.5, 0.6))
    assert padded.regions[0].box == pytest.approx((0.1, 0.0, 0.5, 0.7))  # the square has 25 rows above the picture
    assert plain.answer is not None
    assert plain.answer.regions == [0]
    row = {"messages": [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}]}
    put(tmp_path / "b.json", [row | {"images": ["images/a.jpg"], "objects": {"bbox": [[10, 10, 50, 30]]}}])
    (swift,) = ms_swift.read(tmp_path / "b.json")
    assert swift.answer is not None
    assert swift.answer.regions == [0]


def test_further_keys_of_a_box_are_counted(tmp_path: Path) -> None:
    texts = (
        '{"bbox_2d": [10, 10, 50, 30], "label": "cat", "sub_label": "fat", "id": 3}',
        '{"bbox_2d": [10, 10, 50, 30], "label": "cat"}',
    )
    put(tmp_path / "a.json", [{"image": "a.jpg", "conversations": turns("<image>\nWhere?", text)} for text in texts])
    photo(tmp_path / "images/a.jpg", (100, 50))
    dropped = Dropped(strict=True)
    one, two = llava.read(tmp_path / "a.json", Pictures(dropped=dropped), codec="qwen2_5_vl")
    assert [sample.regions[0].phrase for sample in (one, two)] == ["cat", "cat"]
    further = "boxes whose object has further keys (its label alone is kept)"
    assert dropped.names == {further: ["a row 0: sub_label, id"]}


def test_pictures_that_lie_in_their_rows(tmp_path: Path) -> None:
    """Hugging Face's layout: Parquet files in data/, a picture a struct of bytes and path, or a list of those."""
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").Table
    for i in range(4):
        photo(tmp_path / f"{i}.jpg", (100 + i, 50))
    data = [(tmp_path / f"{i}.jpg").read_bytes() for i in range(4)]
    held = [{"bytes": one, "path": None if i else "site/0.jpg"} for i, one in enumerate(data)]
    rows = [
        {"id": str(i), "image": one, "conversations": turns("<image>\nWhat?", f"{i}.")} for i, one in enumerate(held)
    ]
    swift = [
        {
            "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It."}],
            "images": [one],
        }
        for one in held
    ]
    for read, some, name in ((llava.read, rows, "train-00000-of-00001"), (ms_swift.read, swift, "swift")):
        (tmp_path / name / "data").mkdir(parents=True)
        parquet.write_table(table.from_pylist(some), tmp_path / name / f"data/{name}.parquet")
        for path in (tmp_path / name, tmp_path / name / f"data/{name}.parquet"):
            made = list(read(path, Pictures(dropped=(dropped := Dropped()))))
            assert [one.image_bytes for one in made] == [[one] for one in data]
            assert [one.images[0].width for one in made] == [100, 101, 102, 103]
            assert [one.images[0].name for one in made][:2] == ["0.jpg", f"{name}-0000001-0.jpg"]
            assert not dropped
        assert len(list(read(path, Pictures(excluded=Excluded({"0.jpg": "0.jpg"}), dropped=dropped)))) == 3
        assert dropped.names == {"pictures that are excluded": ["0.jpg"]}


def test_a_column_of_bytes_says_what_is_expected(tmp_path: Path) -> None:
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").Table
    for name, image in (("one", b"\xff\xd8"), ("list", [b"\xff\xd8"])):
        row = {"image": image, "conversations": turns("<image>\nWhat?", "It."), "messages": MESSAGES}
        parquet.write_table(table.from_pylist([row]), tmp_path / f"{name}.parquet")
        for read in (llava.read, ms_swift.read):
            assert not list(read(tmp_path / f"{name}.parquet", Pictures(dropped=(dropped := Dropped()))))
            seen = "seen a picture of type bytes, expected its file name or {bytes, path}"
            assert dropped.names == {BAD_ROW: [f"{name}.parquet row 0: {seen}"]}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"], "test, train"),
        (["ours_train", "train2017", "val"], "train, val"),
    ],
)
def test_a_folder_of_several_splits_is_asked_for_one(names: list[str], splits: str, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        row = {"conversations": turns("What?", f"{number}."), "messages": MESSAGES}
        if name.startswith("data"):
            parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").Table
            (tmp_path / "data").mkdir(exist_ok=True)
            parquet.write_table(table.from_pylist([row]), tmp_path / f"{name}.parquet")
        else:
            put(tmp_path / f"{name}.json", [row])
    for read in (llava.read, ms_swift.read):
        with pytest.raises(ValueError, match=f"seen files of the splits {splits}, expected one: a file"):
            list(read(tmp_path))
        assert len(list(read(tmp_path, split="train"))) == 2
        with pytest.raises(ValueError, match=f"split: seen tes, expected a word of a file's name in .*: {splits}"):
            list(read(tmp_path, split="tes"))
    for file in tmp_path.glob("**/*t*.*"):
        if "train" in file.stem:
            file.unlink()
    assert len(list(llava.read(tmp_path))) == 1
    with pytest.raises(ValueError, match="split: seen val with the file"):
        list(llava.read(next(tmp_path.glob("**/*.[jp]*")), split="val"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["testA", "testB", "train"], "testA, testB, train"),
        (["test", "trainval"], "test, trainval"),
        (["my", "my_test"], "none, test"),
        (["myTest", "myTrain"], "Test, Train"),
        (["minival", "train"], "minival, train"),
        (["testing", "training"], "testing, training"),
        (["train_1", "training_2"], ""),
        (["contest", "latest", "trainer"], ""),
        (["val_1", "val_2"], ""),
    ],
)
def test_held_out_files_are_known_by_a_word_of_their_names(names: list[str], splits: str, tmp_path: Path) -> None:
    for name in names:
        put(tmp_path / f"{name}.json", [])
    if not splits:
        assert len(llava.row_files(tmp_path, "rows")) == len(names)
        return
    with pytest.raises(ValueError, match=f"seen files of the splits {splits}, expected one: a file as the path"):
        llava.row_files(tmp_path, "rows")
    held_out = next(word for word in splits.split(", ") if not word.lower().startswith(("train", "none")))
    assert len(llava.row_files(tmp_path, "rows", held_out)) == 1


def test_captions_alone(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", (100, 50))
    captions = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "Hi."}],
    }
    file = put(tmp_path / "c.json", captions)
    out = ["--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["data", "convert", "coco", "--captions", str(file), *out]) == 0
    assert main(["data", "convert", "coco", "--captions", str(file), *out, "--tasks", "localization,caption"]) == 0


def test_all_of_a_name_and_labels_beside_the_pictures(tmp_path: Path) -> None:
    put(tmp_path / "classes.txt", "cat\nhot dog\n")
    put(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    photo(tmp_path / "a.jpg", (100, 50))
    one, both = yolo.read(tmp_path, Pictures(dropped=(dropped := Dropped())), tasks=("localization", "all"))
    assert (one.regions[0].category, one.subtask) == ("hot dog", "localization")
    assert (both.key, both.subtask) == ("a-all-cat", "localization_all")
    assert both.regions[0].boxes == [pytest.approx((0.4, 0.3, 0.6, 0.7)), pytest.approx((0.0, 0.0, 0.2, 0.2))]
    assert not dropped
    with pytest.raises(ValueError, match="tasks: seen 'boxes', expected localization, detection, all"):
        list(yolo.read(tmp_path, tasks=("boxes",)))


@pytest.mark.parametrize("split", [None, "train"])
def test_labels_in_deeper_folders(tmp_path: Path, split: str | None) -> None:
    """Ultralytics and LabelImg keep the folders of the pictures: every picture's records, from its own folder."""
    put(tmp_path / "data.yaml", "names: [cat]\n")
    put(tmp_path / "ImageSets/Main/train.txt", "a\nsiteA/a\nsiteA/deep/b\n")
    sizes = {"a": (100, 80), "siteA/a": (200, 80), "siteA/deep/b": (300, 80)}
    for name, size in sizes.items():
        put(tmp_path / f"labels/train/{name}.txt", "0 0.5 0.5 0.2 0.4\n")
        put(tmp_path / f"Annotations/{name}.xml", xml(f"{Path(name).name}.jpg", size=f"{size[0]},{size[1]}"))
        put(tmp_path / f"xml/{name}.xml", xml(f"{Path(name).name}.jpg", size=f"{size[0]},{size[1]}"))
        for place in ("images/train", "JPEGImages", "xml"):
            photo(tmp_path / f"{place}/{name}.jpg", size)
    put(tmp_path / "xml/.idea/workspace.xml", "<project/>")
    reads = [(yolo.read, tmp_path), (voc.read, tmp_path)] + ([(voc.read, tmp_path / "xml")] if split is None else [])
    for read, path in reads:
        for images in (None, tmp_path / ("images/train" if read is yolo.read else "JPEGImages")):
            pictures = Pictures(images, dropped=(dropped := Dropped()))
            made = list(read(path, pictures, split, tasks=("detection",)))
            if path.name != "xml" or images is None:
                assert [one.sizes[0] for one in made] == [*sizes.values()]
                assert not dropped
                assert len({one.key for one in made}) == (2 if path.name == "xml" else 3)


def test_a_labelled_picture_is_told_by_its_whole_name(tmp_path: Path) -> None:
    """Roboflow's names have dots and capitals; the label of a.1.jpg is none of a.jpg."""
    put(tmp_path / "data.yaml", "names: [cat]\n")
    for name in ("IMG_1_jpg.rf.ab1", "a.1"):
        put(tmp_path / f"labels/{name}.txt", "0 0.5 0.5 0.2 0.4\n")
        put(tmp_path / f"voc/{name}.xml", xml(f"{name}.jpg"))
        for place in ("images", "voc"):
            photo(tmp_path / f"{place}/{name}.jpg", (100, 80))
    for place in ("images", "voc"):
        photo(tmp_path / f"{place}/a.jpg", (100, 80))
    for read, path in ((yolo.read, tmp_path), (voc.read, tmp_path / "voc")):
        dropped = Dropped()
        assert len(list(read(path, Pictures(dropped=dropped), tasks=("detection",)))) == 2
        assert dropped.names == {"pictures without annotations": ["a.jpg"]}


def test_hidden_files_are_no_annotations(tmp_path: Path) -> None:
    """Jupyter's copies and macOS's resource forks lie among the annotations, in every layout."""
    put(tmp_path / "data.yaml", "names: [cat]\n")
    for place, suffix, text in (
        ("Annotations", "xml", xml("a.jpg")),
        ("x", "xml", xml("a.jpg")),
        ("labels", "txt", CAT),
    ):
        put(tmp_path / f"{place}/a.{suffix}", text)
        put(tmp_path / f"{place}/.ipynb_checkpoints/a-checkpoint.{suffix}", text)
        put(tmp_path / f"{place}/._a.{suffix}", "\0")
    for place in ("JPEGImages", "x", "images", "images/.ipynb_checkpoints"):
        photo(tmp_path / place / "a.jpg", (100, 80))
        photo(tmp_path / place / "._a.jpg", (100, 80))
    for read, path in ((voc.read, tmp_path), (voc.read, tmp_path / "x"), (yolo.read, tmp_path)):
        made = list(read(path, Pictures(dropped=(dropped := Dropped())), tasks=("detection",)))
        assert [len(one.regions) for one in made] == [1]
        assert not dropped


@pytest.mark.parametrize("split", [None, "train"])
def test_folders_of_labels_over_one_flat_folder_of_pictures(tmp_path: Path, split: str | None) -> None:
    """A picture has annotations where any of the folders names it; one that none names is counted once."""
    names = {"a": "train", "b": "train", "c": "val"}
    for name, part in names.items():
        put(tmp_path / f"voc/Annotations/{part}/{name}.xml", xml(f"{name}.jpg"))
        put(tmp_path / f"xml/{part}/{name}.xml", xml(f"{name}.jpg"))
        put(tmp_path / f"yolo/labels/{part}/{name}.txt", CAT)
        for place in ("voc/JPEGImages", "all"):
            photo(tmp_path / place / f"{name}.jpg", (100, 80))
    put(tmp_path / "yolo/data.yaml", "names: [cat]\n")
    reads: list[tuple[Any, str, str | None]] = [(yolo.read, "yolo", "all")]
    if split is None:
        reads += [(voc.read, "voc", None), (voc.read, "voc", "all"), (voc.read, "xml", "all")]
    for read, path, images in reads:
        pictures = Pictures(tmp_path / images if images else None, dropped=Dropped(strict=True))
        made = list(read(tmp_path / path, pictures, split, tasks=("detection",)))
        assert [one.images[0].name for one in made] == ["a.jpg", "b.jpg", "c.jpg"][: 3 if split is None else 2]
        assert not pictures.dropped
    for place in ("voc/JPEGImages", "all"):
        photo(tmp_path / place / "d.jpg", (100, 80))
    for read, path, images in reads:
        pictures = Pictures(tmp_path / images if images else None, dropped=(dropped := Dropped()))
        list(read(tmp_path / path, pictures, split, tasks=("detection",)))
        assert dropped.names == {"pictures without annotations": ["d.jpg"]}


def test_pictures_that_lie_flat_beside_a_folder_of_others(tmp_path: Path) -> None:
    """What is not in all/train is looked for in all, but for a name that two folders of labels have."""
    put(tmp_path / "data.yaml", "names: [cat]\n")
    for name, width in (("a.jpg", 100), ("b.jpg", 110), ("c.jpg", 120), ("d.jpg", 130)):
        photo(tmp_path / "all" / name, (width, 80))
    for name, width in (("zzz.jpg", 140), ("b.png", 150)):
        photo(tmp_path / "all/train" / name, (width, 80))
    for place, name, width in (
        ("test", "d.jpg", 130),
        ("train", "a.jpg", 100),
        ("train", "b.png", 150),
        ("train", "d.jpg", 130),
        ("val", "c.jpg", 120),
    ):
        put(tmp_path / f"labels/{place}/{name[0]}.txt", CAT)
        put(tmp_path / f"Annotations/{place}/{name[0]}.xml", xml(name, size=f"{width},80"))
    for read in (yolo.read, voc.read):
        made = list(read(tmp_path, Pictures(tmp_path / "all", dropped=(dropped := Dropped())), tasks=("detection",)))
        assert [(one.images[0].name, one.images[0].width) for one in made] == [
            ("d.jpg", 130),
            ("a.jpg", 100),
            ("b.png", 150),
            ("c.jpg", 120),
        ]
        assert dropped.names == {
            "pictures that are not in the folder": ["d.jpg"],
            "pictures without annotations": ["zzz.jpg"],
        }


def test_cvats_yolo_export(tmp_path: Path) -> None:
    """Darknet's layout: names and lists of pictures above a folder of pictures and labels."""
    for name in ("a", "b/c"):
        put(tmp_path / f"obj_train_data/{name}.txt", "0 0.5 0.5 0.2 0.4\n")
        photo(tmp_path / f"obj_train_data/{name}.PNG", (100, 50))
    put(tmp_path / "obj.names", "cat\n")
    put(tmp_path / "train.txt", "data/obj_train_data/a.PNG\ndata/obj_train_data/b/c.PNG\n")
    for split in (None, "train"):
        made = list(yolo.read(tmp_path, Pictures(dropped=(dropped := Dropped())), split, tasks=("detection",)))
        assert [one.images[0].name for one in made] == ["a.PNG", "c.PNG"]
        assert not dropped
    put(tmp_path / "obj_train_data/obj.names", "cat\n")
    put(tmp_path / "obj_train_data/train.txt", "a.PNG\n")  # all in one folder
    put(tmp_path / "obj_train_data/valid.txt", "0 0.5 0.5 0.2 0.4\n")  # of a photo that is called so
    photo(tmp_path / "obj_train_data/valid.jpg", (100, 50))
    made = list(yolo.read(tmp_path / "obj_train_data", Pictures(dropped=dropped), tasks=("detection",)))
    assert [one.images[0].name for one in made] == ["a.PNG", "valid.jpg"]
    assert not dropped


def test_roboflows_voc_export(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        bounds = "<xmin>11</xmin><ymin>6</ymin><xmax>60</xmax><ymax>50</ymax>"
        named = f"<filename>{part}.jpg</filename><object><name>car</name><bndbox>{bounds}</bndbox></object>"
        put(tmp_path / f"{part}/{part}.xml", f"<annotation>{named}</annotation>")
        photo(tmp_path / f"{part}/{part}.jpg", (100, 50))
    made = list(voc.read(tmp_path, tasks=("localization",)))
    assert [sample.images[0].name for sample in made] == ["train.jpg", "valid.jpg"]
    assert made[0].regions[0].box == pytest.approx((0.1, 0.1, 0.6, 1.0))


def test_the_pictures_of_a_test_set_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": i, "file_name": f"{i % 2}.jpg", "caption": "it", "width": 9, "height": 9} for i in range(4)]
    notes = [{"image_id": i, "bbox": [1, 1, 5, 5]} for i in range(4)]
    file = put(tmp_path / "m.json", {"images": images, "annotations": notes})
    assert main(["data", "convert", "refcoco", str(file), "--list-images", str(tmp_path / "names.txt")]) == 0
    assert "names.txt  2 pictures" in capsys.readouterr().out
    assert (tmp_path / "names.txt").read_text() == "0.jpg\n1.jpg\n"
    assert excluded_names(tmp_path / "names.txt").holds(["1.jpg"])
