"""Answers of other tools: whose they are, what is refused, and what they score end to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_samples import picture
from ts_lightning.cli import main
from ts_lightning.data.write import write_shards
from ts_lightning.grounding.resizing import MAX_PIXELS, MIN_PIXELS, resize_rule, smart_size
from ts_lightning.metrics.suites import score_suites
from ts_lightning.pipelines.converters import refcoco
from ts_lightning.pipelines.converters.source import Pictures
from ts_lightning.training.answer_files import FORMATS, answer_codec, join, read_answers

PHRASES = ["left man", "guy in blue", "red car", "car", "the dog"]
FILES = ["COCO_train2014_000000000001.jpg"] * 2 + ["COCO_train2014_000000000002.jpg"] * 3
SIZES = [(1600, 1200)] * 2 + [(3000, 2000)] * 3
BOXES = [(100, 200, 300, 400)] * 2 + [(1200, 600, 900, 500)] * 2 + [(30, 40, 600, 900)]  # x, y, width, height
OBJECTS = [11, 11, 12, 12, 13]
LMMS = answer_codec("shikra", "decimals:3", "original")


def shares(i: int) -> list[float]:
    (x, y, wide, high), (width, height) = BOXES[i], SIZES[i]
    return [x / width, y / height, (x + wide) / width, (y + high) / height]


def in_text(i: int) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in shares(i)) + "]"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """RefCOCO in MDETR's layout: two expressions of one man, two of a car, one of a dog."""
    folder = tmp_path_factory.mktemp("refcoco")
    images = [
        {"id": i, "file_name": f, "width": w, "height": h, "caption": p, "original_id": i, "dataset_name": "refcoco"}
        for i, (f, (w, h), p) in enumerate(zip(FILES, SIZES, PHRASES, strict=True))
    ]
    boxes = [{"id": i, "image_id": i, "bbox": BOXES[i], "area": 9, "original_id": OBJECTS[i]} for i in range(5)]
    path = folder / "finetune_refcoco_testA.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes}))
    samples = [
        replace(s, image_bytes=[picture(0, (s.images[0].width, s.images[0].height))]) for s in refcoco.read(path)
    ]
    write_shards(samples, folder, "testA")
    return f"{folder}/testA-*.tar"


def lmms_row(i: int, place: int, **more: Any) -> dict[str, Any]:
    return {"doc_id": place, "target": str(shares(i)), "filtered_resps": in_text(i), "doc_hash": "h", **more}


def doc(i: int, **more: Any) -> dict[str, Any]:
    name = FILES[i].replace(".jpg", f"_{OBJECTS[i]}.jpg")  # as lmms-lab/RefCOCO writes it
    return {"answer": PHRASES[i], "question_id": str(OBJECTS[i]), "bbox": shares(i), "file_name": name, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records_of(path: Path, shards: str, kind: str = "lmms-eval", **options: Any) -> list[Any]:
    return join(read_answers(path, kind), shards, LMMS, "refcoco_testA", rule={"protocol": "rec"}, **options)


ORDERS = {"in order": [0, 1, 2, 3, 4], "another order": [4, 2, 0, 3, 1]}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("documents", [doc, lambda i: doc(i, question_id=FILES[i]), None])
def test_lmms_eval_rows_find_their_question(shards: str, tmp_path: Path, order: list[int], documents: Any) -> None:
    rows = [lmms_row(i, place, **({"doc": documents(i)} if documents else {})) for place, i in enumerate(order)]
    records = records_of(write(tmp_path / "samples.jsonl", rows), shards)
    assert score_suites(records)["refcoco_testA"]["score"] == 1.0
    assert [record.text for record in records] == [in_text(i) for i in range(5)]
    assert [record.meta["question_id"] for record in records] == [str(number) for number in OBJECTS]


def test_another_task_and_missing_rows_are_named(shards: str, tmp_path: Path) -> None:
    path = write(tmp_path / "samples.jsonl", [lmms_row(i, i, target="[0.9, 0.9, 1.0, 1.0]") for i in range(5)])
    with pytest.raises(ValueError, match=r"doc_id 0: seen the truth \[0.9, .* that of refcoco-.*another order"):
        records_of(path, shards)
    write(path, [lmms_row(0, 7)])
    path.write_text(path.read_text().replace(str(shares(0)), "x"))
    with pytest.raises(ValueError, match="seen doc_id 7, expected the places of 5 questions"):
        records_of(path, shards)
    write(path, [lmms_row(i, i) for i in range(4)])
    with pytest.raises(ValueError, match=r"seen no answer to refcoco-.*-2#2, expected all \(or --allow-missing\)"):
        records_of(path, shards)
    assert score_suites(records_of(path, shards, allow_missing=True))["refcoco_testA"]["score"] == 0.8
    write(path, [lmms_row(0, 0), lmms_row(1, 0)])
    with pytest.raises(ValueError, match=r"samples.jsonl: seen 0 more than once"):
        read_answers(path, "lmms-eval")
    with pytest.raises(ValueError, match=f"--format: seen 'x', expected one of {', '.join(FORMATS)}"):
        read_answers(path, "x")


def test_workbooks_tables_and_lists_say_the_same(shards: str, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="no openpyxl")
    keys = [f"refcoco-finetune_refcoco_testA-{i}" for i in range(5)]
    rows = [["index", "question", "prediction"], *([keys[i], "q\nr", in_text(i)] for i in range(5))]
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.active.append([None, None, None])
    book.save(tmp_path / "result.xlsx")
    for suffix, joint in ((".tsv", "\t"), (".csv", ",")):
        lines = (joint.join(f'"{cell}"' for cell in row) for row in rows)
        (tmp_path / f"result{suffix}").write_text("\n".join(lines) + "\n")
    (tmp_path / "result.json").write_text(json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]]))
    seen = [read_answers(tmp_path / f"result{s}", "vlmevalkit") for s in (".xlsx", ".tsv", ".csv", ".json")]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert score_suites(records_of(tmp_path / "result.xlsx", shards, "vlmevalkit"))["refcoco_testA"]["score"] == 1.0
    whole = openpyxl.Workbook()
    whole.active.append(["index", "prediction"])
    whole.active.append([7.0, None])  # an empty answer
    whole.save(tmp_path / "whole.xlsx")
    (row,) = read_answers(tmp_path / "whole.xlsx", "vlmevalkit")
    assert (row.names["index"], row.text) == ("7", "")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("pixels", [True, False])
def test_refcoco_of_vlmevalkit_goes_by_its_true_box(
    shards: str, tmp_path: Path, order: list[int], pixels: bool
) -> None:
    rows = []
    for place, i in enumerate(order):
        corners = dict(zip(("x1", "y1", "x2", "y2"), shares(i), strict=True))
        width, height = SIZES[i]
        scaled = {f"bbox_{c}": v * (width if c[0] == "x" else height) for c, v in corners.items()}
        truth = (
            scaled | {"width": width, "height": height} if pixels else {f"bbox_{c}_norm": v for c, v in corners.items()}
        )
        rows.append({"index": f"RefCOCO_testA_{place}", "question": PHRASES[i], **truth, "prediction": in_text(i)})
    (tmp_path / "result.json").write_text(json.dumps(rows))
    records = records_of(tmp_path / "result.json", shards, "vlmevalkit")
    assert score_suites(records)["refcoco_testA"]["score"] == 1.0
    bare = [{"index": row["index"], "prediction": row["prediction"]} for row in rows]
    (tmp_path / "result.json").write_text(json.dumps(bare))
    with pytest.raises(ValueError, match=r"seen RefCOCO_testA_0, .* that the shards don't ask"):
        records_of(tmp_path / "result.json", shards, "vlmevalkit")


def test_a_missing_openpyxl_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ModuleNotFoundError, match=r"reading xlsx needs openpyxl: pip install 'ts-lightning\[xlsx\]'"):
        read_answers(tmp_path / "a.xlsx", "vlmevalkit")


def test_resized_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="codec qwen2_5_vl: seen no rule of the resized picture"):
        answer_codec("qwen2_5_vl")
    assert resize_rule()((1600, 1200)) == (1148, 840) == smart_size((1600, 1200), 28, MIN_PIXELS, MAX_PIXELS)
    assert resize_rule(max_pixels=28 * 28 * 100)((1600, 1200)) == (308, 224)
    config = {"min_pixels": 784, "max_pixels": 78400, "patch_size": 14, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert resize_rule(processor=tmp_path)((1600, 1200)) == (308, 224)
    sizes = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(sizes))
    assert resize_rule(processor=tmp_path)((1600, 1200)) == (1600, 1216)
    assert resize_rule(max_pixels=102400, processor=tmp_path)((1600, 1200)) == (352, 256)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"preprocessor_config.json: seen no min_pixels and max_pixels"):
        resize_rule(processor=tmp_path)
    half = answer_codec("qwen2_5_vl", resize=lambda size: (size[0] // 2, size[1] // 2))
    assert half.parse('{"bbox_2d": [10, 20, 30, 40]}', (200, 100))[0].boxes == [pytest.approx((0.1, 0.4, 0.3, 0.8))]


CASE = Path(__file__).parents[4] / "shared/cases/09-lmms-eval-samples"


needs_case = pytest.mark.skipif(not CASE.is_dir(), reason=f"no files in {CASE}")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("asked")
    write_shards(list(refcoco.read(CASE / "finetune_refcoco_testA.json", Pictures(CASE / "img"))), folder, "testA")
    return f"{folder}/testA-*.tar"


@needs_case
@pytest.mark.parametrize("name", ["doc_id_only.jsonl", "question_id_repeats.jsonl"])
def test_the_command_scores_samples_of_lmms_eval(name: str, asked: str, tmp_path: Path) -> None:
    args = ["evaluate", "--predictions", str(CASE / name), "--format", "lmms-eval", "--suite", "refcoco_testA"]
    written = ["--codec", "shikra", "--grid", "decimals:3", "--frame", "original"]
    assert main([*args, "--shards", asked, "--out", str(tmp_path / "out"), *written]) == 0
    figures = json.loads((tmp_path / "out/report.json").read_text())["refcoco_testA"]["figures"]
    assert figures["acc50"] == 1.0
    assert figures["miou"] > 0.99


@needs_case
def test_pixels_of_the_resized_picture(asked: str) -> None:
    answers = read_answers(CASE / "ours.jsonl", "ours")
    codec = answer_codec("qwen2_5_vl", resize=resize_rule(max_pixels=28 * 28 * 1280))
    assert score_suites(join(answers, asked, codec, "s"))["s"]["figures"]["miou"] > 0.98
    unresized = answer_codec("qwen2_5_vl", frame="original")
    assert score_suites(join(answers, asked, unresized, "s"))["s"]["figures"]["acc50"] == 0.0
