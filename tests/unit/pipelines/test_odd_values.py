# ruff: noqa: E501 (a case a line)
"""Odd values in the middle of a good file: the right record, or a counted, true reason; no text or box is invented."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_samples import photo, picture, put
from ts_lightning.pipelines.convert import reader
from ts_lightning.pipelines.converters import coco, flickr30k, pointqa, refcoco, scienceqa, visual_genome, yolo
from ts_lightning.pipelines.converters.source import (
    BAD_ROW,
    CLIPPED,
    FRACTIONS,
    NO_BOX,
    NO_SIZE,
    TWICE,
    Dropped,
    Pictures,
)

FIRST = [10, 10, 40, 30]  # a good box, as corners and as x, y, width, height
OUT, SMALL, NAN = [10, 10, 400, 300], [0.1, 0.1, 0.4, 0.4], [10, 10, float("nan"), 30]
ANNOTATION = "<annotation>{}<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"


def xml(name: str, box: list[Any]) -> str:
    return ANNOTATION.format("<filename>a.jpg</filename>", name, *box)


def asked(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]


def lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def note(box: Any) -> dict[str, Any]:
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}]
    return {
        "images": images,
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "cat"}],
    }


def swift(box: Any, **more: Any) -> str:
    said = [{"role": "user", "content": "<image>Find <bbox>"}, {"role": "assistant", "content": "Yes."}]
    return lines({"images": ["a.jpg"], "messages": said, "objects": {"bbox": box} | more})


def shikra(box: Any) -> str:
    said = {
        "question": "A <ph_st>cat<ph_ed>?",
        "cot_with_ans": "So yes.",
        "question_boxes_seq": [[0]],
        "answer_boxes_seq": [],
    }
    return lines({"img_path": "a.jpg", "boxes": [box]} | said)


def humans(box: Any) -> str:
    return lines({"id": 1, "image_name": "a.jpg", "referring": "men", "domain": "x", "answer_boxes": [box]})


def expression(box: Any) -> list[Any]:
    return [{"id": 1, "caption": "cat", "bbox": box, "file_name": "a.jpg", "width": 100, "height": 50}]


def text_in(box: Any) -> dict[str, Any]:
    image = {"file_name": "a.jpg", "width": 100, "height": 50}
    return {"imgs": {"1": image}, "anns": {"1": {"image_id": 1, "bbox": box, "utf8_string": "HI"}}}


BOXED: dict[str, tuple[str, Any]] = {  # name: a file with one box
    "coco": ("ann.json", note),
    "voc": ("a.xml", lambda box: xml("cat", box)),
    "vlm-r1": ("r.json", lambda box: [{"image": "a.jpg", "problem": "Where?", "solution": box}]),
    "ms-swift": ("x.jsonl", lambda box: swift([box])),
    "shikra-cot": ("x.jsonl", shikra),
    "humanref": ("annotations.jsonl", humans),
    "ref-l4": ("ref-l4-test.json", expression),
    "coco-text": ("COCO_Text.json", text_in),
}


def made_by(name: str, root: Path, file: str, content: Any, **options: Any) -> tuple[list[Any], Dropped]:
    for place in ("a.jpg", "b.jpg", "COCO_val2014_000000000001.jpg"):
        photo(root / place)
    path, dropped = put(root / file, content), Dropped()
    path = root if path.suffix in (".xml", ".txt") else path
    samples = list(reader(name)(path, Pictures(root, dropped=dropped), **options))
    for sample in samples:
        sample.validate()
    del dropped["pictures without annotations"]
    return samples, dropped


@pytest.mark.parametrize(("box", "reason"), [(FIRST, None), (OUT, CLIPPED), (SMALL, FRACTIONS), (NAN, NO_BOX)])
@pytest.mark.parametrize("name", sorted(BOXED))
def test_every_converter_counts_what_becomes_of_a_box(name: str, box: Any, reason: str | None, tmp_path: Path) -> None:
    file, content = BOXED[name]
    made, dropped = made_by(name, tmp_path, file, content(box))
    assert [*+dropped] == ([] if reason is None else [reason])
    assert bool(made) == (reason in (None, CLIPPED))


QUESTION = {"imageId": "a", "question": "Q?", "answer": "x"}
FALSE_TEXTS: list[tuple[str, str, Any, list[str]]] = [
    ("gqa", "q.json", {"1": QUESTION | {"question": None}, "2": QUESTION | {"answer": ["x"]}, "3": QUESTION | {"answer": None}, "4": QUESTION}, [BAD_ROW] * 3),
    ("pope", "coco_pope_x.json", lines(*({"question_id": i, "image": "a.jpg", "text": "Q?", "label": label} for i, label in enumerate([None, "yes"]))), [BAD_ROW]),
    ("textvqa", "TextVQA_1_val.json", {"data": [{"question": "Q?", "image_id": "a", "question_id": i, "answers": [answer]} for i, answer in enumerate([None, "x"])]}, [BAD_ROW]),
    ("vlm-r1", "r.json", [{"image": "a.jpg", "problem": problem, "solution": FIRST} for problem in (None, "Where?")], [BAD_ROW]),
    ("voc", "a.xml", xml("cat", FIRST).replace("</annotation>", "<object><bndbox/></object></annotation>"), [BAD_ROW]),
    ("ms-swift", "x.jsonl", swift([FIRST], bbox_type="norm1000") + swift([FIRST]), [BAD_ROW]),
    ("ms-swift", "x.jsonl", swift([FIRST], image_id=[0, 0]) + swift([FIRST]), [BAD_ROW]),
    ("ms-swift", "x.jsonl", swift([]) + swift([FIRST]), ["rows with more <bbox> or <ref-object> than boxes or names"]),
    ("ms-swift", "x.jsonl", swift([FIRST, FIRST]), ["rows with boxes or names that no placeholder stands for (kept)"]),
    ("llava", "x.jsonl", "oops\n" + lines({"image": "a.jpg", "conversations": asked("Q?", "A.")}), [BAD_ROW, "rows without picture marks (the pictures go before the question)"]),
    ("mgrounding", "m.json", [{"images": ["a.jpg"], "conversations": asked("<image>Q?", f"<|box_start|>({x},200),(300,400)<|box_end|>")} for x in (500, 100)], ["rows with boxes that can't be read in the given notation"]),
    ("vlm-r1", "r.json", [{"image": "a.jpg", "problem": "Q?", "solution": FIRST, "width": "w", "height": None}], [NO_SIZE]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "reasons"), FALSE_TEXTS)
def test_what_is_no_text_is_not_made_one(
    name: str, file: str, content: Any, reasons: list[str], tmp_path: Path
) -> None:
    made, dropped = made_by(name, tmp_path, file, content)
    assert made
    assert sorted((+dropped).elements()) == sorted(reasons)
    assert not [turn for one in made for turn in one.turns if "None" in turn.text or "['" in turn.text]


def test_captions_and_boxes_that_are_none(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
    said = [{"image_id": 1, "caption": caption} for caption in (None, ["A cat"], "A cat.")]
    (one,), dropped = made_by("coco", tmp_path, "c.json", {"images": [image], "annotations": said})
    assert (one.turns[1].text, dropped) == ("A cat.", {BAD_ROW: 2})
    file = put(tmp_path / "d.json", note([200, 10, 5, 5]))  # no box in the picture is not: no object
    assert not list(coco.read(file, Pictures(tmp_path), tasks=("detection",)))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("names:\n  0: 'cat, grey'  # ours\n  1: no\n", ["cat, grey", "no"]),
        ("names: ['cat, grey', # ours\n  no]\n", ["cat, grey", "no"]),
        ("names: {0: cat, 1: 7}\n", ["cat", "7"]),
    ],
)
def test_names_of_yolo_are_yaml(content: str, names: list[str], tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    put(tmp_path / "data.yaml", content)
    put(tmp_path / "labels/a.txt", "0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n0.7 0.5 0.5 0.2 0.2\n1 0.9 0.9 0.5 0.5\n")
    dropped = Dropped()
    (one,) = yolo.read(tmp_path, Pictures(dropped=dropped), tasks=("detection",))
    assert [region.category for region in one.regions] == [*names, names[1]]
    assert dropped == {BAD_ROW: 1, CLIPPED: 1}


def test_keypoints_are_no_outline(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    put(tmp_path / "data.yaml", "kpt_shape: [2, 2]\nnames: [cat]\n")
    put(tmp_path / "labels/a.txt", "0 0.5 0.5 0.2 0.4 0.45 0.45 0.9 0.9\n")
    for _ in range(2):
        (one,) = yolo.read(tmp_path, tasks=("detection",))
        assert one.regions[0].box == pytest.approx((0.4, 0.3, 0.6, 0.7))
        put(tmp_path / "classes.txt", "cat\n")  # the names beside what data.yaml says
    (tmp_path / "data.yaml").rename(tmp_path / "pose.yaml")
    (one,) = yolo.read(tmp_path, tasks=("detection",))
    assert one.regions[0].box == pytest.approx((0.4, 0.3, 0.6, 0.7))
    (tmp_path / "classes.txt").unlink()
    put(tmp_path / "data.yaml", "names: [cat\n")
    with pytest.raises(ValueError, match=r"data\.yaml: seen no YAML .*expected a list of names"):
        list(yolo.read(tmp_path))


@pytest.mark.parametrize("content", ["a: 1\n---\nb: 2\n", "Größe: 1\n".encode("latin-1")])
def test_a_yaml_of_something_else_beside_the_names(content: str | bytes, tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    put(tmp_path / "classes.txt", "cat\n")
    put(tmp_path / "labels/a.txt", "0 0.5 0.5 0.2 0.4\n")
    (tmp_path / "pipeline.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (one,) = yolo.read(tmp_path, tasks=("detection",))
    assert one.regions[0].category == "cat"


def test_ids_that_are_none_or_come_twice(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    images = [{"id": i, "file_name": "a.jpg", "caption": "cat", "width": None} for i in (1, 2, 3)]
    found = [{"id": n, "image_id": i, "bbox": FIRST} for n, i in enumerate(([1], 1, 2, 2))]
    dropped, file = Dropped(), put(tmp_path / "m.json", {"images": images, "annotations": found})
    (one,) = refcoco.read(file, Pictures(tmp_path, dropped=dropped))
    assert one.meta is not None
    assert one.meta["question_id"] == "1"
    assert dropped == {BAD_ROW: 1, NO_SIZE: 3, "expressions with several boxes": 1, "expressions without a box": 1}
    refs = [{"image_id": 1, "ann_id": 1, "split": "val", "sentences": [{"sent": "cat", "sent_id": 1}, 5]}]
    (tmp_path / "r").mkdir()
    (tmp_path / "r/refs(unc).p").write_bytes(pickle.dumps(refs))
    known = [{"id": 1, "file_name": "a.jpg", "width": "?", "height": None}, {"id": [2], "file_name": "a.jpg"}]
    known += known[:1]
    put(tmp_path / "r/instances.json", {"images": known, "annotations": [{"id": 1, "bbox": FIRST}], "categories": []})
    dropped = Dropped()
    assert len(list(refcoco.read(tmp_path / "r", Pictures(tmp_path, dropped=dropped)))) == 1
    assert dropped == {BAD_ROW: 2, TWICE: 1, NO_SIZE: 1}


def test_broken_rows_of_the_other_layouts(tmp_path: Path) -> None:
    for name in ("a.jpg", "1.jpg"):
        photo(tmp_path / name)
    look = {"point": {"x": 3, "y": 3}, "general_question": "How many?", "ans": 2}
    far = look | {"point": {"x": 500, "y": 3}}  # no point of the picture is meant
    file, dropped = put(tmp_path / "p/looktwiceqa_dataset.json", {"a": [look, 5, far], "b": 7}), Dropped()
    assert len(list(pointqa.read(file, Pictures(tmp_path, dropped=dropped)))) == 1
    assert dropped == {BAD_ROW: 2, NO_BOX: 1}
    choices = [str(i) for i in range(12)]
    good = {"split": "test", "image": "image.png", "question": "Q?", "choices": choices, "answer": 11}
    (tmp_path / "s/test/1").mkdir(parents=True)
    (tmp_path / "s/test/1/image.png").write_bytes(picture(1, kind="PNG"))
    put(tmp_path / "s/problems.json", {"1": good, "2": 5})
    dropped = Dropped()
    (one,) = scienceqa.read(tmp_path / "s", Pictures(dropped=dropped))
    assert one.turns[0].text.endswith("L. 11")
    assert dropped == {BAD_ROW: 1}
    thing = {"object_id": 1, "x": 1, "y": 1, "w": 20, "h": 20, "names": ["cat"]}
    put(tmp_path / "image_data.json", [{"image_id": 1, "width": 100, "height": 50}, {"image_id": [1]}])
    put(tmp_path / "objects.json", [{"image_id": 1, "objects": [thing, thing | {"object_id": 2, "names": [None]}]}])
    put(tmp_path / "attributes.json", [{"image_id": "x", "attributes": []}, {"image_id": 1, "attributes": 7}])
    dropped = Dropped()
    (one,) = visual_genome.read(tmp_path, Pictures(tmp_path, dropped=dropped), tasks=("detection",))
    assert (len(one.regions), dropped[BAD_ROW]) == (1, 4)
    put(tmp_path / "f/Annotations/a.xml", ANNOTATION.format("", "7", *FIRST))
    put(tmp_path / "f/Sentences/a.txt", "[/EN#7/animals A cat] sits.\n")
    (one,) = flickr30k.read(tmp_path / "f", Pictures(tmp_path), tasks=("caption",))
    assert one.regions[0].box == pytest.approx((0.09, 0.18, 0.39, 0.58))
