"""The suites of several overlays in one run."""

import json
import re
import shlex
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli.test_init import coco
from ts_lightning.cli import evaluation, main
from ts_lightning.cli.data.convert import arguments
from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.record import Record, Truth, write_records
from ts_lightning.training.records import record_of

CONFIGS = Path(__file__).parents[3] / "configs"


def overlay(path: Path, suites: dict[str, Any], **settings: Any) -> str:
    data = {"class_path": "ts_lightning.data.ShardDataModule", "init_args": {"val": suites, **settings}}
    path.write_text(yaml.safe_dump({"data": data}))
    return str(path)


def test_every_suite_of_every_overlay_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = overlay(tmp_path / "a.yaml", {"one": {"shards": "1.tar"}, "both": {"shards": "3.tar"}}, eval_batch_size=50)
    b = overlay(tmp_path / "b.yaml", {"two": {"shards": "2.tar"}, "both": {"shards": "3.tar"}}, eval_batch_size=16)
    given: list[str] = []
    monkeypatch.setattr("ts_lightning.cli.lightning.main", lambda args: given.extend(args) or 3)
    assert main(["evaluate", "--ckpt", "x", "--out", str(tmp_path), "--suites", a, b]) == 3
    assert given.count("-c") == 1
    settings = json.loads(given[given.index("-c") + 1])["data"]["init_args"]
    assert settings == {
        "val": {"one": {"shards": "1.tar"}, "both": {"shards": "3.tar"}, "two": {"shards": "2.tar"}},
        "eval_batch_size": 16,
        "predict": None,  # what the checkpoint's own run had to answer
        "suites": None,
    }


def test_one_of_several_processes_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = overlay(tmp_path / "a.yaml", {"one": {"shards": "1.tar"}})
    monkeypatch.setattr("ts_lightning.cli.lightning.main", lambda args: 0)
    monkeypatch.setattr("ts_lightning.runs.resume.first_process", lambda: False)
    assert main(["evaluate", "--ckpt", "x", "--out", str(tmp_path / "out"), "--suites", suites]) == 0
    assert not (tmp_path / "out").exists()


def test_a_rule_that_a_suite_cannot_have_is_refused_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rec, vqa = {"shards": "1.tar", "protocol": "rec"}, {"shards": "2.tar", "protocol": "vqa"}
    suites = overlay(tmp_path / "a.yaml", {"refs": rec, "vqa": vqa})
    monkeypatch.setattr("ts_lightning.cli.lightning.main", lambda args: pytest.fail("it answers"))
    args = ["evaluate", "--ckpt", "x", "--out", str(tmp_path / "out"), "--suites", suites]
    assert main([*args, "--reading", "lmms_eval"]) == 2
    assert capsys.readouterr().err == (
        "ts-lightning: error: suite vqa: reading of vqa: seen 'lmms_eval', "
        "expected one of vqav2, textvqa, gqa, lenient\n"
    )
    assert main([*args, "--protocol", "x"]) == 2
    assert "suite refs: protocol: seen 'x', expected one of" in capsys.readouterr().err


def test_answers_of_other_suites_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    one, two = (overlay(tmp_path / f"{name}.yaml", {name: {"shards": f"{name}.tar"}}) for name in ("one", "two"))
    kept = tmp_path / "out/predictions.jsonl"
    answers = [Record("one", f"k{i}", "", Truth(), missing=i == 2) for i in range(3)]
    write_records([*answers, replace(answers[2], suite="gone")], kept)
    with kept.open("a") as file:
        file.write('{"suite": "th')  # cut off by a killed run of before
    before = kept.read_bytes()
    given: list[list[str]] = []
    monkeypatch.setattr("ts_lightning.cli.lightning.main", lambda args: given.append(args) or 3)
    args = ["evaluate", "--ckpt", "x", "--out", str(tmp_path / "out"), "--suites"]
    assert main([*args, two]) == 2
    assert capsys.readouterr().err == (
        f"ts-lightning: error: {kept}: seen 2 answers of suite one, which --suites do not ask, "
        "expected another folder as --out: they would be lost\n"
    )
    assert not given
    assert kept.read_bytes() == before
    assert [main([*args, *suites]) for suites in ([one], [one, two])] == [3, 3]  # it answers


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ({"shards": "1.tar", "protocl": "rec"}, "suite one: seen protocl, expected some of shards, max_samples, "),
        ({"protocol": "rec"}, "suite one: seen no shards, expected them"),
    ],
)
def test_a_misspelled_key_of_a_suite_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, suite: dict[str, Any], said: str
) -> None:
    suites = overlay(tmp_path / "a.yaml", {"one": suite})
    args = ["--predictions", "p.jsonl", "--suites", suites, "--suite", "one", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *args]) == 2
    assert capsys.readouterr().err.startswith(f"ts-lightning: error: {said}")


def test_the_command_takes_the_merged_overlay(capsys: pytest.CaptureFixture) -> None:
    paths = [str(CONFIGS / "eval" / name) for name in ("pope.yaml", "mme.yaml")]
    merged = json.dumps(evaluation.merged_overlays(paths))
    with pytest.raises(SystemExit):
        main(["predict", "-c", str(CONFIGS / "fit/toy_twist.yaml"), "-c", merged, "--print_config"])
    suites = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["val"]
    assert {"pope_random", "pope_popular", "pope_adversarial", "mme"} == suites.keys()


def test_overlays_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = overlay(tmp_path / "a.yaml", {"one": {"shards": "1.tar"}})
    b = overlay(tmp_path / "b.yaml", {"one": {"shards": "2.tar"}})
    assert main(["evaluate", "--ckpt", "x", "--out", str(tmp_path), "--suites", a, b]) == 2
    seen = "suite one: seen {'shards': '2.tar'}, expected {'shards': '1.tar'} as in"
    assert capsys.readouterr().err == f"ts-lightning: error: {b}: {seen} {a}\n"
    (tmp_path / "c.yaml").write_text("trainer: {}\n")
    with pytest.raises(ValueError, match=r"c.yaml: seen no data.init_args.val, expected an overlay"):
        evaluation.merged_overlays([str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("eval/*.yaml")), ids=lambda path: path.stem)
def test_the_head_of_an_overlay_has_commands_that_parse(path: Path) -> None:
    text = path.read_text()
    head = text[: text.index("\ndata:")].replace(" \\\n#", "")
    sources = yaml.safe_load(text)["data"]["init_args"]["val"].values()
    wanted = [source["shards"] for source in sources]
    for name, rest in re.findall(r"data generate (\S+) ([^#\n]*)", head):
        photos, _, out = shlex.split(rest)
        shard = f"{out}/{name}-data-000000-000000.tar"
        assert any(fnmatch(shard, pattern) for pattern in wanted), shard
        wanted.append(photos)
    for name, rest in re.findall(r"data convert (\S+) ([^#\n]*)", head):
        told, _ = arguments(name, shlex.split(rest))
        shard = f"{told.out}/{told.prefix}-000000.tar"
        assert any(fnmatch(shard, pattern) for pattern in wanted), shard
    assert "--help" not in head


def test_the_head_of_gic_makes_a_question_of_every_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CONFIGS / "eval/gic.yaml").read_text()
    coco(tmp_path / "COCO", 3)
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"ts-lightning (data .*)", text):
        assert main(shlex.split(command)) == 0
    manifest = index_shards(yaml.safe_load(text)["data"]["init_args"]["val"]["gic_coco"]["shards"])
    reader = ShardReader(manifest)
    asked = [record_of(reader.read(i), "", get_codec("scout"), "gic_coco") for i in range(manifest.num_rows)]
    assert [record.meta["image_id"] for record in asked if make_protocol("gic").takes(record)] == [0, 1, 2]
