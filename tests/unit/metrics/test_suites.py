"""Suite scores, intervals, reports, prediction files of other tools, two runs compared."""

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.unit.data_samples import picture
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.grounding import get_codec
from ts_lightning.grounding.foreign_text import visible
from ts_lightning.metrics.intervals import interval, paired
from ts_lightning.metrics.record import Record, Truth, read_records, write_records
from ts_lightning.metrics.steps import StepAnswer
from ts_lightning.metrics.suites import SuiteMetrics, compare, score_suites
from ts_lightning.reports.pictures import make_picture
from ts_lightning.reports.suite_report import against, markdown, number, write_galleries, write_suite_report
from ts_lightning.training.answer_files import join, read_answers
from ts_lightning.training.records import record_of

CODEC = get_codec("scout")
CONFIGS = Path(__file__).parents[3] / "configs/eval"
BOX = (0.1, 0.2, 0.5, 0.6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    samples = [
        Sample(
            id=f"rec/{i}",
            key=f"q{i}",
            source="toy",
            task="grounding",
            subtask="rec",
            images=[SampleImage("a.jpg", 80, 60)],
            turns=[Turn("user", "<image>\nWhere is <b>it</b>? Answer with a box."), Turn("assistant", "{region:0}")],
            regions=[SampleRegion(box=BOX)],
            answer=Answer(regions=[0]),
            meta={"question_id": 100 + i},
            image_bytes=[picture(i, (80, 60))],
        )
        for i in range(6)
    ]
    write_shards(samples, folder, "val")
    return f"{folder}/val-*.tar"


def records(shards: str, texts: list[str], suite: str = "refcoco_val") -> list[Record]:
    reader = ShardReader(index_shards(shards))
    return [record_of(reader.read(i), t, CODEC, suite, rule={"protocol": "rec"}) for i, t in enumerate(texts)]


RIGHT, WRONG = "[[10,20,50,60]]", "[[60,60,90,90]]"


def test_a_suite_carries_score_interval_convention_and_the_papers_row(shards: str) -> None:
    scores = score_suites(records(shards, [RIGHT, RIGHT, WRONG, "none", RIGHT, RIGHT]))["refcoco_val"]
    assert (scores["protocol"], scores["main"], scores["questions"]) == ("rec", "acc50", 6)
    assert scores["score"] == pytest.approx(4 / 6)
    low, high = scores["interval"]
    assert low <= 4 / 6 <= high
    assert scores["paper"]["acc50"][0][0] == 0.872
    assert [(one.theirs, one.verdict) for one in against(scores)] == [("87.2", "worse"), ("88.1", "worse")]
    assert scores["convention"]["frame"] == "100 of the original image"
    assert scores["figures"]["unparsed"] == pytest.approx(1 / 6)


def test_intervals_against_the_binomial() -> None:
    values = [1.0] * 60 + [0.0] * 40
    low, high = interval(values)  # the standard error is sqrt(.24 / 100) = .049
    assert low == pytest.approx(0.6 - 1.96 * 0.049, abs=0.015)
    assert high == pytest.approx(0.6 + 1.96 * 0.049, abs=0.015)
    same, better = paired(values, values), paired([0.0] * 100, values)
    assert (same.mean, same.p) == (0.0, 1.0)
    assert better.mean == pytest.approx(0.6)
    assert better.low > 0 == better.p


def test_a_cluster_of_one_question_is_drawn_as_a_question_is() -> None:
    values, strata = [i * i % 7 / 7 for i in range(50)], [i % 3 for i in range(50)]
    others, clusters = [*values[1:], values[0]], [f"{i}.jpg" for i in range(50)]
    assert interval(values) == interval(values, clusters=clusters) == (0.22285714285714284, 0.34)
    test = (0.0, -0.07714285714285714, 0.07721428571428532, 0.978)
    assert paired(values, others) == paired(values, others, clusters=clusters) == test
    assert interval(values, 1, strata) == interval(values, 1, strata, clusters)


def test_a_cluster_is_drawn_with_all_its_questions() -> None:
    values, thrice = [1.0] * 13 + [0.0] * 7, [number for number in range(20) for _ in range(3)]
    answers = [values[number] for number in thrice]  # three alike about a picture say no more than one
    assert interval(answers, clusters=thrice) == interval(values)
    assert paired([0.0] * 60, answers, clusters=thrice) == paired([0.0] * 20, values)
    assert interval(answers)[0] > interval(values)[0]
    assert interval(answers)[1] < interval(values)[1]
    assert interval([1.0] * 5 + [0.0], clusters=[*"aaaaab"]) == (0.0, 1.0)  # of two draws
    assert interval([1.0] * 3 + [0.0] * 3, strata=[*"xxxyyy"], clusters=[*"aaaaaa"]) == (0.5, 0.5)


def test_clusters_of_unequal_sizes_give_the_mean_over_the_questions_drawn() -> None:
    clusters, values = [*"abbcaccccd"], [0.1 * i for i in range(10)]
    members = [[v for name, v in zip(clusters, values, strict=True) if name == one] for one in "abcd"]
    generator = torch.Generator().manual_seed(3)
    drawn = [[v for n in torch.randint(4, (4,), generator=generator) for v in members[n]] for _ in range(2000)]
    means = torch.tensor([sum(some) / len(some) for some in drawn], dtype=torch.float64)
    expected = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert interval(values, 3, clusters=clusters) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("protocol", ["rec", "circular"])
def test_intervals_are_over_the_pictures_of_the_shards(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    task, answer = ("grounding", Answer(regions=[0])) if protocol == "rec" else ("understanding", Answer("a dog"))
    samples = [
        Sample(
            id=f"{i}",
            key=f"q{i:02d}",
            task=task,
            images=[SampleImage("a.jpg", 80, 60)],  # one name, as in several folders
            turns=[Turn("user", "<image>\nWhat?"), Turn("assistant", "This.")],
            regions=[SampleRegion(box=BOX)],
            answer=answer,
            choices=["a dog", "a cat"],
            image_bytes=[picture(i // 3, (80, 60))],
        )
        for i in range(12)
    ]
    reader = ShardReader(index_shards([str(path) for path in write_shards(samples, tmp_path, "val")]))
    right, wrong = (RIGHT, WRONG) if protocol == "rec" else ("a dog", "a cat")
    rule = {"protocol": protocol}
    run = [record_of(reader.read(i), (right, wrong)[i // 3 % 2], CODEC, "s", rule=rule) for i in range(12)]
    better = [replace(one, text=right) for one in run]
    old = [replace(one, pictures=None) for one in run]
    for name, some in (("run", run), ("better", better), ("old", old)):
        write_records(some, tmp_path / name)
        assert read_records(tmp_path / name) == some
    one, before = (score_suites(some)["s"] for some in (run, old))
    assert one["interval"] == interval([1.0, 0.0, 1.0, 0.0]) == (0.0, 1.0)
    assert before["interval"] == interval(([1.0] * 3 + [0.0] * 3) * 2) == (0.25, 0.75)
    assert [some["convention"]["95% interval"] for some in (one, before)] == [
        "2000 resamples of 4 pictures with all their questions",
        "2000 resamples of 12 questions (their pictures are not known)",
    ]
    found = compare(run, better)["s"]
    assert tuple(found[name] for name in ("mean", "low", "high", "p")) == paired([1.0, 0.0, 1.0, 0.0], [1.0] * 4)
    for first in ("run", "old"):  # the other run's file knows the pictures
        assert main(["compare", str(tmp_path / first), str(tmp_path / "better")]) == 0
        assert capsys.readouterr().out.splitlines()[1].endswith("6     0   4 pictures with all their questions")
    assert compare(old, [replace(one, pictures=None) for one in better])["s"]["resampled"].startswith("12 questions")


def test_two_runs_name_the_questions_that_flipped(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = records(shards, [RIGHT, WRONG, WRONG, RIGHT, WRONG, WRONG])
    b = records(shards, [WRONG, RIGHT, RIGHT, RIGHT, WRONG, WRONG])
    result = compare(a, b)["refcoco_val"]
    assert (result["gained"], result["lost"]) == (["q1", "q2"], ["q0"])
    assert result["mean"] == pytest.approx(1 / 6)
    for name, some in (("a", a), ("b", b)):
        write_records(some, tmp_path / name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "new/c.json")]) == 0
    assert "+0.167" in capsys.readouterr().out
    assert json.loads((tmp_path / "new/c.json").read_text())["refcoco_val"]["gained"] == ["q1", "q2"]
    with pytest.raises(ValueError, match="expected the same questions in both"):
        compare(a, b[:-1])


def test_suites_without_a_paired_test_are_named(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)  # as where it is not installed
    rec = records(shards, [RIGHT, WRONG, WRONG, RIGHT, WRONG, WRONG])
    strict = [replace(one, suite="other", reading="strict") for one in rec]
    mme, captions = everything("mme", {"protocol": "mme"}), everything("captions", {"protocol": "captions"})
    write_records([*rec, mme, captions, *strict, replace(mme, suite="alone")], tmp_path / "a")
    write_records([*rec, mme, captions, *[replace(one, reading=None) for one in strict]], tmp_path / "b")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    reasons = [
        "mme: mme: perception is no mean over questions",
        "captions: CIDEr needs pycocoevalcap: pip install 'ts-lightning[gic]'",
        "other: scored by rec (strict), and by rec (lenient)",
        "alone: it is in one run alone",
    ]
    assert capsys.readouterr().out.splitlines()[2:] == [f"not compared: {line}" for line in reasons]
    write_records([mme], tmp_path / "c")
    assert main(["compare", str(tmp_path / "c"), str(tmp_path / "c")]) == 2
    assert f"seen no suite to compare with {tmp_path / 'c'}, expected one ({reasons[0]})" in capsys.readouterr().err


def test_questions_of_one_key_in_two_shards_stay_apart() -> None:
    def run(*texts: str) -> list[Record]:
        one = everything("s", {"protocol": "rec"})
        return [replace(one, text=text, shard=f"{i}.tar") for i, text in enumerate(texts)]

    assert score_suites(run(RIGHT, WRONG))["s"]["score"] == 0.5
    result = compare(run(RIGHT, WRONG), run(RIGHT, RIGHT)[::-1])["s"]
    assert (result["gained"], result["lost"], result["mean"]) == (["1.tar:k"], [], 0.5)


def test_a_table_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pope = {f"pope_{n}": {"figures": {"accuracy": v, "f1": v - 0.1}} for n, v in (("random", 0.9), ("popular", 0.8))}
    figures = {"accuracy": 0.7, "f1": 0.6}
    reports = {
        "base": {"gqa": {"figures": {"accuracy": 0.614}}, "mme": {"figures": {"perception": 1423.0}}, **pope},
        "twist": {
            "mmvet": {"figures": {"score": 34.3}},
            **pope,
            "pope_adversarial": {"figures": figures},
        },
    }
    for name, report in reports.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    paths = [str(tmp_path / name / "report.json") for name in reports]
    assert main(["compare", "--table", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run | GQA | SQA | VQA^T | POPE | POPE F1 | MME | LLaVA^W | MM-Vet |"
    assert lines[2:] == [
        "| base | 61.4 | - | - | - | - | 1423.0 | - | - |",  # two of POPE's three splits are no POPE
        "| twist | - | - | - | 80.0 | 70.0 | - | - | 34.3 |",
    ]
    Path(paths[1]).write_text('{"gqa": ')
    assert main(["compare", "--table", *paths]) == 2
    assert capsys.readouterr().err.startswith(f"ts-lightning: error: {paths[1]}: seen no JSON")


def test_runs_whose_folders_have_one_name_are_rows_by_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = [tmp_path / "base/eval", tmp_path / "tuned/eval"]
    for run, accuracy in zip(runs, (0.9, 0.1), strict=True):
        run.mkdir(parents=True)
        (run / "report.json").write_text(json.dumps({"gqa": {"figures": {"accuracy": accuracy}}}))
    assert main(["compare", "--table", *map(str, runs)]) == 0
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [[f"| {runs[0]}", "90.0"], [f"| {runs[1]}", "10.0"]]


def test_report_files(shards: str, tmp_path: Path) -> None:
    some = records(shards, [RIGHT, RIGHT, WRONG, "<script>alert(1)</script>", RIGHT, RIGHT])
    page = write_suite_report(score_suites(some), some, tmp_path, "A <title>").read_text()
    assert "A &lt;title&gt;" in page
    assert "<script" not in page
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"refcoco_val_best.png", "refcoco_val_worst.png", "refcoco_val_unparsable.png"}
    assert json.loads((tmp_path / "report.json").read_text())["refcoco_val"]["questions"] == 6
    assert "87.2 (TWIST" in (tmp_path / "report.md").read_text()
    assert "-20.5 (worse)" in page  # 66.7 against 87.2
    assert page.count('<div class="figures">') == 1


def test_every_group_of_a_suite_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of region classification, and both levels of GroundingME's subtasks."""
    box, names = [8.0, 12.0, 32.0, 24.0], ("dog", "cat")
    coco = {
        "images": [{"id": 1, "width": 80, "height": 60}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": i, "bbox": box, "area": 768, "iscrowd": 0} for i in range(2)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    meta = {"image_id": 1, "bbox": box, "score": 1.0}
    rule = {"protocol": "region_class", "annotations": str(tmp_path / "coco.json"), "task": "understanding"}
    some = [
        Record("regions", key=f"k{i}", text="dog", truth=Truth(name), meta=meta | {"category_id": i}, **rule)
        for i, name in enumerate(names)
    ]
    for i, (l1, l2) in enumerate((("Spatial", "Relation"), ("Spatial", "Layout"), ("Limited", "Occlusion"))):
        meta, text = {"subtask_l1": l1, "subtask_l2": l2}, (RIGHT, WRONG, RIGHT)[i]
        about: dict[str, Any] = {"meta": meta, "sizes": ((80, 60),), "subtask": l1, "protocol": "groundingme"}
        some.append(Record("hard", key=f"k{i}", text=text, truth=Truth(box=BOX, boxes=(BOX,)), **about))
    monkeypatch.setattr(
        "ts_lightning.metrics.protocols.captions.sentence_embedder",
        lambda name: lambda texts: torch.eye(2)[[names.index(text) for text in texts]],
    )
    page = write_suite_report(score_suites(some), some, tmp_path).read_text()
    table = (tmp_path / "report.md").read_text()
    assert {"| dog | 100.0 |", "| cat | 0.0 |"} <= {*table.splitlines()}  # the second dog comes behind the right one
    assert {"| Relation | 100.0 |", "| Layout | 0.0 |", "| Occlusion | 100.0 |"} <= {*table.splitlines()}
    assert "| Spatial | 50.0 | " in table
    for name in ("dog", "Layout", "Spatial"):
        assert f"<td>{name}</td>" in page


def test_the_gallery_of_wrong_pictures_has_answers_that_name_one(shards: str, tmp_path: Path) -> None:
    (one,) = records(shards, [RIGHT])
    two = replace(one, truth=replace(one.truth, image=1), sizes=((80, 60), (80, 60)))
    for text, named in ((f"The first image: {RIGHT}", True), (f"The second image: {RIGHT}", False), (RIGHT, False)):
        folder = tmp_path / str(named)
        assert len(write_galleries([replace(two, text=text)], folder)["refcoco_val"]) == 2 + named
        assert (folder / "refcoco_val_wrong_picture.png").is_file() == named


def test_a_picture_that_a_gallery_cannot_draw_is_named(shards: str) -> None:
    (one,) = records(shards, [RIGHT])
    sample = ShardReader(index_shards(shards)).read(0)
    for pictures in ([b"none"], [sample.image_bytes[0], b"none"]):
        with pytest.raises(ValueError, match=rf"^{re.escape(one.shard)}: q0: image: seen 4 bytes"):
            make_picture(one, replace(sample, image_bytes=pictures))


def test_figures_are_printed_as_papers_print_them() -> None:
    assert [number("acc50", 0.6482), number("perception", 1423.04), number("image_known", 3767)] == [
        *("64.8", "1423.0", "3767"),
    ]
    assert number("acc50", float("nan")) == number("acc50", None) == "-"


BOXES = ("localization", "rec", "phrases", "mig", "ref_l4", "groundingme", "humanref", "mc_bench", "detection")


def everything(suite: str, rule: dict[str, Any]) -> Record:
    """A record that the suite's protocol can score."""
    rule = {name: rule.get(name) for name in ("protocol", "reading")}
    meta = {"category": "color", "image_id": 1, "bbox": [1, 1, 9, 9], "score": 1.0}
    meta |= {"class": "dog", "subtask_l1": "Spatial", "domain": "attribute", "people": 1}
    asked = {"subtask": "phrase", "choices": ("yes", "no"), "meta": meta, "key": "k", "sizes": ((80, 60),)}
    if rule["protocol"] == "detection":  # BOX in pixels, as the next
        meta |= {"classes": ["here"], "objects": [[0, 8, 12, 32, 24, 768, 0]]}
    if rule["protocol"] == "mc_bench":
        meta |= {"image_ids": [1, 2], "objects": [[0, 1, 8, 12, 32, 24]]}
        asked["sizes"] = ((80, 60), (80, 60))
    if rule["protocol"] in BOXES:
        said = "<|box_start|>(100,200),(500,600)<|box_end|>" if rule["reading"] == "official" else f"Here: {RIGHT}."
        return Record(suite, text=said, truth=Truth(box=BOX, boxes=(BOX,)), **asked, **rule)
    if rule["protocol"] == "steps":
        truth = Truth("Step 1: a. Step 2: So the answer is yes.", steps=StepAnswer("yes", [[], []], False))
        return Record(suite, text=truth.text, truth=truth, **asked, **rule)
    task = "grounding" if rule["protocol"] == "gic" else "understanding"
    answers = ("yes", "Yes, a dog.")
    asked["subtask"] = "caption"
    said = "A" if rule["reading"] in ("llava", "lmms_eval") else "Yes"  # their scripts read letters alone
    return Record(suite, text=said, truth=Truth(answers=answers), task=task, **asked, **rule)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_gets_through_a_report(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)  # as where it is not installed
    suites = yaml.safe_load(path.read_text())["data"]["init_args"]["val"]
    some = [everything(suite, rule) for suite, rule in suites.items()]
    scores = score_suites(some)
    write_suite_report(scores, some, tmp_path)
    for suite, one in scores.items():
        assert one["protocol"] == suites[suite]["protocol"], suite
        assert one["score"] > 0 or one["convention"]["scored"], suite
    table = (tmp_path / "report.md").read_text()
    if path.stem == "gic":
        assert "| gic_coco | gic | 1 | AP | - | - | 15.0 (TWIST &amp; SCOUT, Table 2) | - | 0.0 |" in table
        assert "- scored: no: it needs the data set's COCO file" in table
        assert "| AP50 | - | 49.3 (TWIST &amp; SCOUT, Table 2) | - |" in table
        assert "| AP50 | - | 49.3 (TWIST & SCOUT, Table 2) | - |" in markdown(scores, visible)


def test_a_suite_without_truth_leaves_the_others_their_scores() -> None:
    bare = Record("bare", "k", "x", Truth())
    scored = everything("refcoco_val", {"protocol": "rec"})
    scores = score_suites([bare, scored])
    assert (scores["bare"]["questions"], scores["bare"]["not_scored"]) == (0, 1)
    assert scores["refcoco_val"]["score"] == 1.0
    result = compare([bare, scored], [bare, scored])
    assert (result["refcoco_val"]["b"], result["bare"]) == (
        1.0,
        {"why": "none of its records has a truth of this kind"},
    )


def test_a_rank_without_a_question_adds_none() -> None:
    metrics = SuiteMetrics()
    metrics.update("grounding", [])
    assert metrics.compute(torch.device("cpu")) == {}


def test_answers_of_other_tools_are_joined_with_the_truth(shards: str, tmp_path: Path) -> None:
    lmms = tmp_path / "samples.jsonl"
    lines = [{"doc_id": i, "doc": {"question_id": 100 + i}, "filtered_resps": [[RIGHT]]} for i in range(6)]
    lmms.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = tmp_path / "result.tsv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([["index", "prediction"], *([f"q{i}", RIGHT] for i in range(6))])
    for path, kind in ((lmms, "lmms-eval"), (table, "vlmevalkit")):
        joined = join(read_answers(path, kind), [shards], CODEC, "refcoco_val")
        assert score_suites(joined)["refcoco_val"]["score"] == 1.0


def test_bad_prediction_files_are_named(shards: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"

    def write(answers: dict[str, str], end: str = "") -> None:
        path.write_text("".join(json.dumps({"key": k, "text": t}) + "\n" for k, t in answers.items()) + end)

    every = {f"q{i}": RIGHT for i in range(6)}
    write(every | {"other": RIGHT})
    with pytest.raises(ValueError, match=r"seen other that the shards don't ask"):
        join(read_answers(path, "ours"), [shards], CODEC, "s")
    write({k: v for k, v in every.items() if k not in ("q2", "q4")})
    with pytest.raises(ValueError, match=r"seen no answer to q2, q4, expected all \(or --allow-missing\)"):
        join(read_answers(path, "ours"), [shards], CODEC, "s")
    partial = join(read_answers(path, "ours"), [shards], CODEC, "s", allow_missing=True)
    assert score_suites(partial)["s"]["score"] == pytest.approx(4 / 6)
    write(every, json.dumps({"key": "q0", "text": RIGHT}) + "\n")
    with pytest.raises(ValueError, match=r"seen q0 more than once"):
        read_answers(path, "ours")
    write(every, '{"key": "q9", "te')
    with pytest.raises(ValueError, match=r"p.jsonl:7: seen .* \(is the file cut off\?\)"):
        read_answers(path, "ours")


def test_the_command(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"key": f"q{i}", "text": RIGHT}) + "\n" for i in range(5)))
    args = ["evaluate", "--predictions", str(path), "--shards", shards, "--out", str(tmp_path / "out"), "--suite", "s"]
    assert main(args) == 2
    assert "seen no answer to q5" in capsys.readouterr().err
    assert main([*args, "--allow-missing"]) == 0
    assert "| s | localization | 6 | miou | 83.3 |" in capsys.readouterr().out
    assert (tmp_path / "out/report.html").is_file()


def test_a_scored_file_is_kept_with_its_rule_and_can_be_compared(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    loose = RIGHT.replace(",", ", ")
    for name, text in (("a", loose), ("b", RIGHT)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"key": f"q{i}", "text": text}) + "\n" for i in range(6)))
        args = ["--predictions", str(path), "--shards", shards, "--protocol", "rec", "--reading", "strict"]
        assert main(["evaluate", *args, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["predictions", "acc50", "0.000", "1.000", "+1.000"]
    kept = tmp_path / "a/predictions.jsonl"
    before = kept.read_bytes()
    assert main(["evaluate", "--predictions", str(kept), "--reading", "lenient", "--out", str(tmp_path / "a")]) == 0
    assert kept.read_bytes() == before  # what is given stays as it is


def test_missing_answers_stay_missing_in_the_file_that_is_kept(shards: str, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    kept = out / "predictions.jsonl"

    def completeness(given: Path, *args: str, to: Path) -> str:
        assert main(["evaluate", "--predictions", str(given), "--suite", "s", *args, "--out", str(to)]) == 0
        return json.loads((to / "report.json").read_text())["s"]["convention"]["completeness"]

    path.write_text("".join(json.dumps({"key": f"q{i}", "text": RIGHT}) + "\n" for i in range(4)))
    asked = ["--shards", shards]
    told = "2 of 6 questions of --shards have no answer: wrong"
    assert completeness(path, *asked, "--allow_missing", to=out) == told
    assert [record.missing for record in read_records(kept)] == [False] * 4 + [True] * 2
    assert completeness(kept, to=out) == "4 of the 6 questions of the shards that its answers name"
    assert completeness(kept, *asked, "--allow_missing", to=tmp_path / "again") == told
    assert main(["evaluate", "--predictions", str(kept), "--shards", shards, "--out", str(out)]) == 2
    path.write_text("".join(json.dumps({"key": f"q{i}", "text": RIGHT}) + "\n" for i in range(6)))
    completeness(path, *asked, to=out)  # no answer is lost by the ones that were missing
    assert not any(record.missing for record in read_records(kept))


def test_our_own_predictions_keep_their_notation_and_rule_with_shards(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    codec, reader = get_codec("qwen3_vl"), ShardReader(index_shards(shards))
    text = codec.format([BOX], (80, 60))
    made = [record_of(reader.read(i), text, codec, "refs", i == 0, {"protocol": "rec"}) for i in range(6)]
    path, out = tmp_path / "p.jsonl", tmp_path / "out"

    def report(*args: str, out: Path = out) -> dict[str, Any]:
        assert main(["evaluate", "--predictions", str(path), "--shards", shards, "--out", str(out), *args]) == 0
        return json.loads((out / "report.json").read_text())

    write_records(made, path)
    one = report()["refs"]
    assert (one["protocol"], one["score"], one["convention"]["codec"]) == ("rec", 1.0, "qwen3_vl")
    assert one["figures"]["cut_off"] == pytest.approx(1 / 6)
    assert read_records(out / "predictions.jsonl") == made
    assert report("--codec", "scout", "--suite", "s")["s"]["score"] == 0.0  # what is said goes first
    write_records(made[:3], path)
    partial = report("--allow_missing", out=tmp_path / "partial")["refs"]
    assert (partial["protocol"], partial["questions"], partial["score"]) == ("rec", 6, 0.5)
    write_records([*made, *[replace(one, suite="other") for one in made]], path)  # of the same questions
    assert main(["evaluate", "--predictions", str(path), "--shards", shards, "--out", str(out)]) == 2
    assert f"--suite: seen None, expected one of refs, other of {path}" in capsys.readouterr().err
    assert list(report("--suite", "refs")) == ["refs"]


def test_kept_answers_outlive_a_rule_that_fails_and_other_answers(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kept, other = tmp_path / "out/predictions.jsonl", tmp_path / "other.jsonl"
    kept.parent.mkdir()
    write_records(records(shards, [RIGHT] * 6), kept)
    before = kept.read_bytes()
    args = ["evaluate", "--predictions", str(other), "--out", str(tmp_path / "out")]
    write_records(records(shards, [RIGHT] * 5 + [WRONG]), other)
    assert main(args) == 2
    assert capsys.readouterr().err == (
        f"ts-lightning: error: {kept}: seen 1 answers (refcoco_val:q5 ...) that {other} does not give, "
        "expected another folder as --out: they would be lost\n"
    )
    write_records(records(shards, [RIGHT] * 6), other)
    assert main([*args, "--reading", "vqav2"]) == 2
    assert kept.read_bytes() == before
    assert main([*args, "--reading", "strict"]) == 0
    assert {record.reading for record in read_records(kept)} == {"strict"}


def test_a_suite_asks_its_selection_alone(shards: str, tmp_path: Path) -> None:
    suite = {"shards": shards, "max_samples": 2, "protocol": "rec"}
    data = {"class_path": "ts_lightning.data.ShardDataModule", "init_args": {"val": {"few": suite}}}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"data": data}))
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"key": f"q{i}", "text": RIGHT}) + "\n" for i in range(2)))
    args = ["--predictions", str(path), "--suites", str(tmp_path / "few.yaml"), "--suite", "few"]
    assert main(["evaluate", *args, "--out", str(tmp_path / "out")]) == 0
    one = json.loads((tmp_path / "out/report.json").read_text())["few"]
    assert (one["questions"], one["score"]) == (2, 1.0)


def test_cider_of_captions() -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    texts = ["A dog runs on grass.", "Two cats sleep"]
    said = [texts[0], "a plane in the sky"]
    some = [
        Record("captions", str(i), s, Truth(answers=(t, t.lower())), task="understanding", protocol="captions")
        for i, (s, t) in enumerate(zip(said, texts, strict=True))
    ]
    scores = score_suites([replace(one, pictures="a") for one in some])["captions"]
    assert scores["figures"]["cider"] == pytest.approx(5.0)  # 10 for the same words, 0 for other ones
    assert scores["interval"] == pytest.approx((5.0, 5.0))  # both are about one picture
