"""Kinds of data are known by what is in them; other data is refused in a line."""

import json
import pickle
from pathlib import Path

import pytest

from tests.unit.data_samples import photo, put, shards
from ts_lightning.pipelines.converters import vlm_r1
from ts_lightning.pipelines.recognise import recognise

COCO = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}


@pytest.mark.parametrize(
    ("files", "converter", "reason"),
    [
        ({"annotations/instances_val2017.json": COCO}, "coco", "COCO's folder"),
        ({"train/_annotations.coco.json": COCO}, "coco", "Roboflow's COCO export"),
        ({"anything.json": COCO, "readme.txt": ""}, "coco", "a COCO file"),
        ({"annotations/mine.json": COCO}, "coco", "a COCO file"),
        ({"Annotations/1.xml": ""}, "voc", "a VOC folder"),
        ({"1.xml": "", "1.jpg": ""}, "voc", "LabelImg's XML beside the pictures"),
        ({"train/1.xml": "", "train/1.jpg": ""}, "voc", "Roboflow's VOC export"),
        ({"labels/train/1.txt": "", "data.yaml": ""}, "yolo", "YOLO's labels"),
        ({"train/labels/1.txt": "", "data.yaml": ""}, "yolo", "Roboflow's YOLO export"),
        ({"obj_train_data/1.txt": "", "train.txt": "", "obj.names": ""}, "yolo", "CVAT's YOLO export"),
        ({"1.txt": "", "1.jpg": "", "classes.txt": ""}, "yolo", "YOLO's labels beside the pictures"),
        ({"refs(google).p": "", "refs(unc).p": "", "instances.json": COCO}, "refcoco", "split train of unc"),
        ({"unc_train.pth": "", "unc_val.pth": ""}, "refcoco", "RefCOCO's split unc_train"),
        ({"a.json": {**COCO, "images": [{"caption": "left man"}]}}, "refcoco", "MDETR's RefCOCO file"),
        ({"a.json": [{"conversations": []}]}, "llava", "LLaVA's conversations"),
        ({"a.json": [{"conversations": []}], "b.json": [{"conversations": []}]}, "llava", "LLaVA's conversations"),
        ({"a.jsonl": {"messages": []}, "dataset_info.json": {}}, "ms-swift", "ms-swift's messages"),
        ({"a.json": [{"problem": "the dog", "solution": []}]}, "vlm-r1", "VLM-R1's problems"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders(files: dict[str, object], converter: str, reason: str, tmp_path: Path) -> None:
    for name, content in files.items():
        put(tmp_path / name, content)
    kind = recognise(tmp_path)
    assert kind.converter == converter
    assert reason in kind.reason


def test_shards_and_pictures_of_a_file(tmp_path: Path) -> None:
    shards(tmp_path / "tars", [2])
    assert recognise(tmp_path / "tars").converter is None
    photo(tmp_path / "val2017/1.jpg")
    file = put(tmp_path / "annotations/mine.json", COCO)
    assert recognise(file).images == tmp_path / "val2017"
    lines = put(tmp_path / "rows.json", json.dumps({"messages": []}) + "\n" + json.dumps({"messages": []}))
    assert recognise(lines).converter == "ms-swift"
    (tmp_path / "x.pth").write_bytes(pickle.dumps([]))
    assert recognise(tmp_path / "x.pth").converter == "refcoco"


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("a.json", "[1, 2]", "expected a folder, a JSON or JSON lines"),
        ("a.json", "{", "expected a folder, a JSON or JSON lines"),
        ("a.txt", "", "expected images, conversations or messages"),
        ("b/c.txt", "", "seen c.txt in .*, expected a folder of COCO"),
        (
            "a.json",
            json.dumps(COCO | {"annotations": [{"caption": "a dog"}]}),
            "seen annotations of .*caption.*, expected some with bbox",
        ),
        ("no.json", None, "seen no such file, expected a folder, a JSON or JSON lines"),
    ],
)
def test_other_data_is_refused_in_a_line(name: str, content: str | None, seen: str, tmp_path: Path) -> None:
    path = put(tmp_path / name, content) if content is not None else tmp_path / name
    with pytest.raises(ValueError, match=seen):
        recognise(path if "/" not in name else path.parent)


def test_several_coco_files_are_a_question(tmp_path: Path) -> None:
    put(tmp_path / "train.json", COCO)
    put(tmp_path / "val.json", COCO)
    with pytest.raises(ValueError, match=r"seen a COCO file 2 times \(train.json, val.json\) in .*, expected one file"):
        recognise(tmp_path)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    """Jupyter's copies and macOS's resource forks beside the one file that is there."""
    row = {"id": 1, "image": "a.jpg", "problem": "Where?", "solution": None, "normal_caption": "the cat"}
    put(tmp_path / "a.json", [row])
    put(tmp_path / "._a.json", "\0")
    put(tmp_path / ".ipynb_checkpoints/a-checkpoint.xml", "<annotation/>")
    kind = recognise(tmp_path)
    assert (kind.converter, kind.path) == ("vlm-r1", tmp_path / "a.json")
    put(tmp_path / "._b.json", [row])
    assert len(list(vlm_r1.read(tmp_path))) == 1
