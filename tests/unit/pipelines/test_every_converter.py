# ruff: noqa: E501 (a file a line)
"""One broken row in the middle of a good file, for every converter: the others are made, the row is named."""

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_samples import photo, picture, put
from ts_lightning.pipelines import converters
from ts_lightning.pipelines.convert import reader
from ts_lightning.pipelines.converters.odinw import MISSING, PLACES
from ts_lightning.pipelines.converters.source import Dropped, Pictures

A_TEXT = {"points": [[1, 1], [50, 1], [50, 30]], "transcription": "HI", "language": "Latin"}
BOX = "<|box_start|>(100,200),(300,400)<|box_end|>"
SAID = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "There."}]
XML = (
    "<annotation><size><width>100</width><height>50</height></size><object><name>{}</name><bndbox><xmin>2</xmin>"
    "<ymin>2</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


def lines(rows: list[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def middle(row: Any, bad: Any = 5, key: str | None = None) -> list[Any]:
    """Two good rows with another `key` each, and the broken one between them."""
    return [row if key is None else row | {key: 1}, bad, row if key is None else row | {key: 2}]


def named(row: Any, bad: Any = 5) -> dict[str, Any]:
    return {"1": row, "2": bad, "3": row}


def coco(**more: Any) -> dict[str, Any]:
    images = [{"id": i, "file_name": "a.jpg", "width": 100, "height": 50} | more for i in (1, 2)]
    note = {"category_id": 1, "bbox": [2, 2, 30, 20]}
    notes = [note | {"id": 1, "image_id": 1}, {"id": 2, "image_id": 1, "bbox": 7}, note | {"id": 3, "image_id": 2}]
    return {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}


def flickr(root: Path) -> None:
    for number in ("1", "2", "3"):
        put(root / "Annotations" / f"{number}.xml", XML.format("7") if number != "2" else "<annotation><size>")
        put(root / "Sentences" / f"{number}.txt", "[/EN#7/animals A cat] sits.\n")
        photo(root / f"{number}.jpg")


def voc(root: Path) -> None:
    for number in ("1", "2", "3"):
        put(root / "Annotations" / f"{number}.xml", XML.format("cat") if number != "2" else "<annotation><size>")
        photo(root / f"{number}.jpg")


def mme(root: Path) -> None:
    for number in ("1", "2", "3"):
        (root / "ocr").mkdir(parents=True, exist_ok=True)
        (root / "ocr" / f"{number}.txt").write_bytes(b"Is it?\tYes\n" if number != "2" else b"\xff\xfe\x00")
        photo(root / "ocr" / f"{number}.jpg")


def mmbench(root: Path) -> None:
    packed = base64.b64encode(picture(1)).decode()
    rows = [["index", "question", "A", "B", "answer", "image"], ["1", "Q?", "x", "y", "A", packed]]
    rows += [["two", "Q?", "x", "y", "A", packed], ["3", "Q?", "x", "y", "A", packed]]
    put(root / "mmbench_dev.tsv", "\n".join("\t".join(row) for row in rows))


def refcoco(root: Path) -> None:
    rows = [("a.jpg", 1, [2, 2, 30, 20], "cat"), ("a.jpg", 2), ("a.jpg", 3, [2, 2, 30, 20], "cat")]
    with open(root / "r.pth", "wb") as file:
        for one in (1, 2, {}, rows):
            pickle.dump(one, file, protocol=2)


def yolo(root: Path) -> None:
    put(root / "labels/a.txt", "0 0.5 0.5 0.2 0.2\nx\n1 0.2 0.2 0.2 0.2\n")
    put(root / "data.yaml", "nc: 2\nnames: ['cat', 'dog']\n")


def genome(root: Path) -> None:
    put(root / "image_data.json", [{"image_id": i, "width": 100, "height": 50} for i in (1, 2)])
    one = {"object_id": 1, "x": 2, "y": 2, "w": 30, "h": 20, "names": ["cat"]}
    put(root / "objects.json", [{"image_id": 1, "objects": [one]}, 5, {"image_id": 2, "objects": [one]}])
    for name in ("1.jpg", "2.jpg"):
        photo(root / name)


def groundingme(root: Path) -> None:
    row = {"description": "It.", "bbox": [2, 2, 6, 5], "subtask_l1": "Spatial", "image": {"bytes": picture(1)}}
    rows = [row | {"id": 1}, row | {"id": 2, "image": None}, row | {"id": 3}]
    pytest.importorskip("pyarrow.parquet").write_table(
        pytest.importorskip("pyarrow").Table.from_pylist(rows), root / "a.parquet"
    )


def odinw(root: Path) -> None:
    place = root / PLACES["Packages"]
    put(place / "annotations_without_background.json", coco())
    photo(place / "a.jpg")


VQA = {"question": "What?", "image_id": "a"}
HIER = {"image_id": "a", "image_width": 100, "image_height": 50}
LINE = {"lines": [{"text": "HI", "vertices": [[1, 1], [50, 1], [50, 30]]}]}
SHIKRA = {"img_path": "a.jpg", "boxes": [], "question": "Q?", "cot_with_ans": "So yes.", "answer": "yes"}
SHIKRA |= {"question_boxes_seq": [], "answer_boxes_seq": []}
MIG = {"task": "diff", "images": ["a.jpg"], "question": "<image>Where?", "answer": [0.1, 0.2, 0.3, 0.4]}
PAIR = {"images": [{"id": i, "file_name": "a.jpg"} for i in (1, 2)], "annotations": []}
REF = {"caption": "cat", "bbox": [2, 2, 30, 20], "file_name": "a.jpg", "width": 100, "height": 50}
PEOPLE = {"image_name": "a.jpg", "referring": "men", "domain": "attribute", "answer_boxes": [[2, 2, 30, 20]]}
STAR = {"image": "a.jpg", "text": "What?\n(A) x\n(B) y", "category": "c", "label": "A"}
OCR = {"image_id": 1, "bbox": [2, 2, 30, 20], "utf8_string": "HI"}
LOOK = {"file_path": "a.jpg", "point": [3, 3], "general_question": "How many?", "answer": "2"}
QID = "question_id"
FILES: dict[str, tuple[str, Any]] = {
    "art": ("train_labels.json", {"a": [A_TEXT, 5, A_TEXT]}),
    "coco": ("annotations/instances_x.json", coco()),
    "coco-regions": ("i.json", coco()),
    "coco-text": ("COCO_Text.json", {"imgs": {"1": {"file_name": "a.jpg", "width": 100, "height": 50}}, "anns": named(OCR)}),
    "docvqa": ("val_v1.0.json", {"data": middle({"question": "Q?", "image": "a.jpg", "answers": ["x"]}, key="questionId")}),
    "gqa": ("testdev_balanced_questions.json", named({"imageId": "a", "question": "Q?", "answer": "x"})),
    "hiertext": ("gt/train.jsonl", {"annotations": [HIER | {"paragraphs": [LINE]}, 5, HIER | {"image_id": "b", "paragraphs": [LINE]}]}),
    "humanref": ("annotations.jsonl", lines(middle(PEOPLE, key="id"))),
    "llava": ("x.json", middle({"image": "a.jpg", "conversations": SAID})),
    "llava-bench": ("questions.jsonl", lines(middle({"image": "a.jpg", "text": "Q?"}, key=QID))),
    "lvis": ("lvis_v1_val.json", coco()),
    "mc-bench": ("mc-bench_v0.2_val.json", PAIR | {"descriptions": middle({"images_id": [1, 2], "text": "cats"}, key="id")}),
    "mgrounding": ("m.json", middle({"images": ["a.jpg"], "conversations": SAID})),
    "mig-bench": ("MIG_data.json", middle(MIG)),
    "mmvet": ("mm-vet.json", named({"imagename": "a.jpg", "question": "Q?", "answer": "x"})),
    "ms-swift": ("x.jsonl", lines(middle({"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>Q?"}, {"role": "assistant", "content": "x"}]}))),
    "objects365": ("zhiyuan_objv2_val.json", coco()),
    "ocr-vqa": ("dataset.json", {"a": {"questions": ["Q?"], "answers": ["x"]}, "b": 5, "c": {"questions": ["Q?"], "answers": ["x"]}}),
    "pointqa": ("p.jsonl", lines(middle(LOOK))),
    "pope": ("coco_pope_random.json", lines(middle({"image": "a.jpg", "text": "Q?", "label": "yes"}, key=QID))),
    "ref-l4": ("ref-l4-test.json", middle(REF, key="id")),
    "scienceqa": ("problems.json", named({"split": "test", "image": "image.png", "question": "Q?", "choices": ["x", "y"], "answer": 0}, {"split": "test", "image": "image.png"})),
    "shikra-cot": ("x.jsonl", lines(middle(SHIKRA))),
    "st-vqa": ("train_task_3.json", {"data": middle({"question": "Q?", "file_path": "a.jpg", "answers": ["x"]})}),
    "textvqa": ("TextVQA_0.5.1_val.json", {"data": middle(VQA | {"answers": ["x"]}, key=QID)}),
    "vizwiz-grounding": ("val_grounding.json", {n: one for n, one in zip(("a.jpg", "x.jpg", "b.jpg"), middle({"question": "Q?", "answers": ["x"], "answer_grounding": [{"x": x, "y": y} for x, y in A_TEXT["points"]]}), strict=True)}),
    "vlm-r1": ("r.json", middle({"image": "a.jpg", "problem": "Where?", "solution": [2, 2, 30, 20]})),
    "vstar": ("test_questions.jsonl", lines(middle(STAR, key=QID))),
    "vqa-rad": ("r.json", middle({"image_name": "a.jpg", "question": "Q?", "answer": "x"}, key="qid")),
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": middle({"question": "Q?", "image_id": 1}, key=QID)}),
}  # fmt: skip
FOLDERS: dict[str, Callable[[Path], None]] = {
    **{"flickr30k": flickr, "voc": voc, "mme": mme, "mmbench": mmbench, "refcoco": refcoco, "yolo": yolo},
    **{"visual-genome": genome, "groundingme": groundingme, "odinw": odinw},
}
WHOLE = ("coco", "pope", "shikra-cot", "mgrounding", "vlm-r1", "llava", "ms-swift")  # given as their folders


@pytest.mark.parametrize("name", sorted({*converters.NAMES} - {"shards"}))  # its records have a reader of their own
def test_a_broken_row_is_left_out_by_name_and_alone(name: str, tmp_path: Path) -> None:
    for photo_name in ("a.jpg", "b.jpg", "c.jpg", "COCO_val2014_000000000001.jpg", "images/a.jpg"):
        photo(tmp_path / photo_name)
    for number in "123":
        (tmp_path / "test" / number).mkdir(parents=True)
        (tmp_path / "test" / number / "image.png").write_bytes(picture(1, kind="PNG"))
    dropped = Dropped()
    pictures = Pictures(tmp_path, dropped=dropped)
    path = tmp_path
    if name in FOLDERS:
        FOLDERS[name](tmp_path)
        path = tmp_path / "r.pth" if name == "refcoco" else tmp_path
    else:
        file, content = FILES[name]
        path = put(tmp_path / file, content)
        path = tmp_path if name in WHOLE else path
    for file in [one for one in tmp_path.rglob("*") if one.is_file()]:  # what macOS leaves beside each
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\x07")
    if name == "coco-regions":
        made = list(reader(name)(pictures, path))
    else:
        made = list(reader(name)(path, pictures))
    for one in made:
        one.validate()
    assert len({one.key for one in made}) >= 2
    reasons = [reason for reason in dropped if reason not in ("pictures without annotations", MISSING)]
    assert [dropped[reason] for reason in reasons] == [1], dropped.names
