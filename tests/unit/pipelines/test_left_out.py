"""What a conversion leaves out: excluded pictures, rows that lack a field, and the list of all."""

import json
from pathlib import Path

import pytest

from tests.unit.data_samples import photo, put
from tests.unit.hostile_texts import TEXTS
from ts_lightning.cli import main
from ts_lightning.pipelines.converters import gqa, hiertext, pointqa, visual_genome
from ts_lightning.pipelines.converters.source import Dropped, Pictures, excluded_names


def test_rows_that_lack_a_field_are_left_out_by_name(tmp_path: Path) -> None:
    good = {"imageId": "n1", "question": "Is it red?", "answer": "yes"}
    put(tmp_path / "testdev_balanced_questions.json", {"1": {"question": "Where?"}, "2": "text", "3": good})
    page = {"image_id": "a", "paragraphs": []}
    put(tmp_path / "gt/train.jsonl", {"annotations": [page]})
    row = {"point": [1, 2], "general_question": "How many?"}
    put(tmp_path / "p/p.jsonl", json.dumps(row | {"answer": "2"}) + "\n" + json.dumps(row) + "\n")
    dropped = Dropped(path=tmp_path / "left_out.txt")
    made = [*gqa.read(tmp_path, Pictures(dropped=dropped)), *hiertext.read(tmp_path, Pictures(dropped=dropped))]
    made += pointqa.read(tmp_path / "p/p.jsonl", Pictures(dropped=dropped))
    assert [one.key for one in made] == ["gqa-3", "pointqa-point-0"]
    reason = "rows that lack a field, or have one of another kind"
    assert dropped.names == {
        reason: [
            "testdev_balanced_questions.json question 1: no 'imageId'",
            "testdev_balanced_questions.json question 2: string indices must be integers, not 'str'",
            "train.jsonl picture a: no 'image_width'",
            "p.jsonl row 1: no 'ans'",
        ]
    }
    assert not dropped.path.exists()
    dropped.close()
    assert dropped.path.read_text() == "".join(f"{reason}\t{name}\n" for name in dropped.names[reason])
    Dropped(path=dropped.path).close()
    assert not dropped.path.exists()
    with pytest.raises(ValueError, match=r"questions\.json question 1: no 'imageId': seen one of the rows that lack"):
        list(gqa.read(tmp_path, Pictures(dropped=Dropped(strict=True))))


def test_a_conversion_that_keeps_nothing_lists_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "img/a.jpg", (100, 80))
    turns = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": '{"bbox_2d": [10, 20, 30, 40]}'}]
    put(tmp_path / "x.json", [{"id": i, "image": "a.jpg", "conversations": turns} for i in range(30)])
    words = ["llava", str(tmp_path / "x.json"), "--images", str(tmp_path / "img"), "--out", str(tmp_path / "out")]
    assert main(["data", "convert", *words, "--codec", "scout"]) == 2
    listing, said = tmp_path / "out/llava.left_out.txt", capsys.readouterr()
    assert "seen no samples to write" in said.err
    assert said.out.endswith(f"{listing}  all that was left out or changed\n")
    reason = "rows with boxes that can't be read in the given notation"
    assert listing.read_text() == "".join(f"{reason}\tx.json row {i}: bbox_2d\n" for i in range(30))
    assert main(["data", "convert", *words[:-1], str(tmp_path / "none"), "--codec", "scout", "--strict"]) == 2
    assert not list((tmp_path / "none").glob("*"))  # stopped: what it would have left out is not known


def test_names_of_strangers_are_one_cell_each_and_no_formula(tmp_path: Path) -> None:
    dropped = Dropped(path=tmp_path / "left_out.txt")
    for text in TEXTS:
        dropped.note("odd rows", f"{text}\x1b[2J\t=1+1")
    dropped.close()
    rows = [line.split("\t") for line in dropped.path.read_text().split("\n")[:-1]]
    assert [len(row) for row in rows] == [2] * len(TEXTS)
    assert all(cell.isprintable() and cell.strip()[0] not in "=+-@\uff1d" for _, cell in rows)
    assert all(line.isprintable() for line in dropped.lines())  # they go to a terminal


def test_excluded_pictures_are_found_under_every_name(tmp_path: Path) -> None:
    names = excluded_names(put(tmp_path / "x.txt", "COCO_train2014_000000000042.jpg\n77\n78\n"))
    pictures = Pictures(excluded=names)
    found = ("000000000042.jpg", "COCO_val2014_000000000042.jpg", "000000000077.jpg")
    assert all(map(pictures.is_excluded, found))
    others = ("000000000043.jpg", "42.jpg", "77.jpg", "COCO_train2014_000000000043.jpg")  # 42.jpg: of another dataset
    assert not any(map(pictures.is_excluded, others))
    assert names.line() == "excluded pictures: 2 of the 3 names of the list are in this data set"
    assert Pictures(excluded=excluded_names(put(tmp_path / "x.txt", "42.jpg\n"))).is_excluded("42.jpg")
    listed = [{"image_id": i, "width": 9, "height": 9, "coco_id": coco} for i, coco in ((1, 42), (42, None))]
    put(tmp_path / "image_data.json", listed)
    one = {"object_id": 1, "x": 1, "y": 1, "w": 5, "h": 5, "names": ["man"]}
    put(tmp_path / "objects.json", [{"image_id": i, "objects": [one, {"object_id": 2}]} for i in (1, 42)])
    assert [sample.meta["image_id"] for sample in visual_genome.read(tmp_path, pictures)] == [42]
    assert pictures.dropped == {
        "pictures that are excluded": 1,
        "rows that lack a field, or have one of another kind": 1,
    }
