"""A figure has one value: as validation logs it, from the predictions it wrote, and from a file of bare texts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.unit.data_samples import picture
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.grounding import get_codec
from ts_lightning.grounding.boxes import Box
from ts_lightning.metrics.protocols import PROTOCOLS, captions, make_protocol, plain
from ts_lightning.metrics.record import write_records
from ts_lightning.metrics.suites import SuiteMetrics
from ts_lightning.training.records import batch_records, record_of

CONFIGS = Path(__file__).parents[2] / "configs/eval"
SUITES = {
    f"{path.stem}/{name}": rule
    for path in sorted(CONFIGS.glob("*.yaml"))
    for name, rule in yaml.safe_load(path.read_text())["data"]["init_args"]["val"].items()
}
# Suites of one rule differ in their shards and names, and here all have the same questions: the first of each rule.
RULES = {(rule["protocol"], rule.get("reading")): name for name, rule in reversed(SUITES.items())}
COUNT = 200
CODEC = get_codec("shikra")  # of a padded square: read with the picture's size
SIZE = (80, 60)
BOXES = ("localization", "rec", "phrases", "mig")
REFERRING = ("ref_l4", "groundingme", "humanref")
DETECTION = ("detection", "mc_bench")
NAMES = ("dog", "cat", "car")


def letters(texts: list[str]) -> Tensor:
    """Counts of letters: similar words are similar."""
    return torch.tensor([[1.0 + text.count(chr(97 + i)) for i in range(26)] for text in texts])


def moved(box: Box, random: Random) -> Box:
    x1, y1, x2, y2 = (min(max(v + random.gauss(0, 0.06), 0.0), 1.0) for v in box)
    return (min(x1, x2), min(y1, y2), max(x1, x2) + 1e-2, max(y1, y2) + 1e-2)


def question(number: int, protocol: str) -> tuple[Sample, str]:
    """A question that `protocol` scores, and a disturbed answer."""
    random = Random(number)
    x, y = random.uniform(0, 0.5), random.uniform(0, 0.5)
    box: Box = (x, y, x + random.uniform(0.1, 0.4), y + random.uniform(0.1, 0.4))
    written = CODEC.format([moved(box, random)], SIZE)
    said = random.choice([f"It is {written}.", written, "I can't see it"])
    fields: dict[str, Any] = {"task": "grounding", "subtask": f"task{number % 3}"}
    text, turn, pictures = said, "{region:0}", 2 if protocol == "mc_bench" else 1
    if protocol in REFERRING:
        none = protocol != "ref_l4" and number % 4 == 0  # a rejection
        fields |= {"answer": Answer(regions=[] if none else [0])}
        names = {"subtask_l1": "Rejection", "domain": "rejection"} if none else {"subtask_l1": "a", "domain": "b"}
        fields["meta"] = names | {"class": NAMES[number % 2], "subtask_l2": "c", "people": 3}
        turn = "This question is invalid." if none else turn
    elif protocol in DETECTION:
        xywh = [x * SIZE[0], y * SIZE[1], (box[2] - x) * SIZE[0], (box[3] - y) * SIZE[1]]
        things = [[number % 3, *xywh, xywh[2] * xywh[3], 0]] if protocol == "detection" else [[0, 1, *xywh]]
        fields["meta"] = {"image_id": number, "image_ids": [2 * number, 2 * number + 1], "objects": things}
        fields["meta"] |= {"classes": NAMES} if protocol == "detection" else {}
        fields |= {"answer": Answer(regions=[0])}
        text = said.replace("It is", NAMES[number % 3] if protocol == "detection" else f"Image-{number % 5 // 4 + 1}:")
    elif protocol in BOXES:
        fields |= {"answer": Answer(regions=[0])}
        fields |= {"subtask": "phrase"} if protocol == "phrases" else {}
    elif protocol == "steps":
        turn = "Step 1: Find it {region:0}. Step 2: So the answer is red."
        text = f"Step 1: Find it {said}. Step 2: So the answer is {random.choice(['red', 'Red.', 'blue'])}."
        fields |= {"answer": Answer("red"), "tags": ["cot"]}
        if number % 3 == 0:
            turn, fields["answer"], fields["tags"] = "This question is invalid.", Answer(), ["negative"]
            text = random.choice([text, turn])
    elif protocol == "gic":
        fields |= {"subtask": "caption", "answer": Answer("a dog"), "meta": {"image_id": number}}
        text, turn = f"A {random.choice(NAMES)} {written}.", "a dog {region:0}"
    else:
        true = random.choice(["yes", "no"])
        fields |= {"task": "understanding", "answer": Answer(true), "answers": [true] * 3, "choices": ["yes", "no"]}
        fields["meta"] = {
            "category": ("count", "color")[number % 2],
            "image_id": number // 4 + 1,
            "question_id": number // 2,
        }
        text = random.choice(["Yes", "yes", "no", "no.", "A", "B", "I think it is no", "The answer is B.", "unknown"])
        turn = true
        if protocol == "region_class":
            bbox = [8.0, 6.0, 40.0, 30.0]
            fields["meta"] = {"image_id": number + 1, "bbox": bbox, "score": 1.0, "category_id": number % 3 + 1}
            text = random.choice(NAMES)
    sample = Sample(
        id=f"q/{number}",
        key=f"q{number:04d}",
        source="toy",
        images=[SampleImage(f"{number}_{i}.jpg", *SIZE) for i in range(pictures)],  # its own: its own record
        turns=[Turn("user", "<image>" * pictures + "\nWhat?"), Turn("assistant", turn)],
        regions=[SampleRegion(box=box)],
        image_bytes=[picture(number + i * COUNT, SIZE) for i in range(pictures)],
        **fields,
    )
    return sample, text


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A COCO file with a dog, a cat or a car in every picture."""
    notes = []
    for i in range(COUNT + 1):
        box = [8.0, 6.0, 40.0, 30.0]
        note = {"id": i + 1, "image_id": i, "category_id": i % 3 + 1, "bbox": box, "area": 1200.0, "iscrowd": 0}
        notes.append(note)
    images = [{"id": i, "width": SIZE[0], "height": SIZE[1]} for i in range(COUNT + 1)]
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return str(path)


@pytest.mark.parametrize("name", sorted(RULES.values()))
def test_every_command_gives_the_same_figure(
    name: str, coco: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    monkeypatch.setattr(captions, "sentence_embedder", lambda folder: letters)
    suite = name.split("/")[1]
    rule = {key: SUITES[name].get(key) for key in ("protocol", "reading")} | {"annotations": coco}
    main_figure = PROTOCOLS[rule["protocol"]].main
    asked = [question(i, rule["protocol"]) for i in range(COUNT)]
    write_shards((sample for sample, _ in asked), tmp_path / "shards", "val")
    shards = f"{tmp_path}/shards/val-*.tar"
    reader = ShardReader(index_shards(shards))

    metrics, records = SuiteMetrics(), []  # as validate and test do
    for start in range(0, COUNT, 7):
        samples = [reader.read(i) for i in range(start, min(start + 7, COUNT))]
        batch = {"samples": samples, "row_valid": torch.tensor([True] * len(samples))}
        texts = [text for _, text in asked[start : start + 7]]
        records += batch_records(batch, texts, CODEC, suite, rule=rule)
        metrics.update(suite, records[start:])
    logged = metrics.compute(torch.device("cpu"))
    write_records(records, tmp_path / "predictions.jsonl")
    lines = [json.dumps({"key": sample.key, "text": text}) + "\n" for sample, text in asked]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    overlay = tmp_path / "suite.yaml"
    known = {"val": {suite: {"shards": shards, **{k: v for k, v in rule.items() if v}}}}
    overlay.write_text(
        yaml.safe_dump({"data": {"class_path": "ts_lightning.data.ShardDataModule", "init_args": known}})
    )
    texts = ["--suites", str(overlay), "--suite", suite, "--codec", "shikra"]
    for given in (["predictions.jsonl"], ["texts.jsonl", *texts]):
        args = ["evaluate", "--predictions", str(tmp_path / given[0]), *given[1:], "--out", str(tmp_path / "out")]
        assert main(args) == 0
        report = json.loads((tmp_path / "out/report.json").read_text())[suite]
        assert (report["protocol"], report["main"]) == (rule["protocol"], main_figure)
        assert report["questions"] > 60
        parts = {suite: report["figures"]} | {f"{suite}/{sub}": one for sub, one in report["subtasks"].items()}
        told = {f"{part}/{name}": value for part, one in parts.items() for name, value in plain(one).items()}
        assert logged == pytest.approx(told, abs=1e-12)  # without the NaN ones in both
        if main_figure != "score":  # a judge's
            assert 0 < report["figures"][main_figure] != 1
            assert logged[f"{suite}/{main_figure}"] == report["score"]


ALL_WRONG = ("unparsed", "unread", "empty", "none_stated", "rejected_wrongly")  # the share of such answers
COUNTS = ("questions", "known", "ceiling_miou", "warning", "sets", "boxes", "pairs", "captions", "names")


def scores(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """What a right answer raises, the figures of groups and subtasks too; nothing that is NaN."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from scores(value, f"{above}{name}/")
        elif not any(word in name for word in (*ALL_WRONG, *COUNTS)) and value == value:
            yield f"{above}{name}", value


@pytest.mark.parametrize(
    ("protocol", "reading"), [(name, reading) for name, one in PROTOCOLS.items() for reading in one.readings]
)
def test_a_missing_answer_is_wrong_in_every_figure(
    protocol: str, reading: str, coco: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    monkeypatch.setattr(captions, "sentence_embedder", lambda folder: letters)
    asked = [record_of(question(i, protocol)[0], "", CODEC, "s") for i in range(24)]
    if asked[1].truth.box:  # one at the corner, where lmms-eval's scorer has the box of no answer
        asked[1] = replace(asked[1], truth=replace(asked[1].truth, box=(0.0, 0.0, 0.3, 0.3)))
    if protocol == "mc_bench":  # pictures that have nothing of the kind
        asked[0] = replace(asked[0], meta=asked[0].meta | {"objects": []})
    if protocol in ("contains", "answers", "vqa"):  # an article is nothing after normalisation
        asked[0] = replace(asked[0], truth=replace(asked[0].truth, answers=("the",)))
    made = make_protocol(protocol, reading, coco)
    made.update([replace(record, missing=True) for record in asked])
    figures = dict(scores(made.compute()))
    assert made.main in figures or protocol == "open_ended"  # a judge's
    assert {name: value for name, value in figures.items() if value} == {}
