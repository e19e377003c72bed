"""Prediction files: what is refused, what is said about missing answers, MMBench's rotations and submission."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from tests.unit.data_samples import picture
from ts_lightning.cli import main
from ts_lightning.data.sample import Answer, Sample, SampleImage, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.grounding import get_codec
from ts_lightning.metrics.record import Record, Truth, write_records
from ts_lightning.metrics.submission import write_submission
from ts_lightning.metrics.suites import score_suites
from ts_lightning.training.answer_files import join, read_answers
from ts_lightning.training.callbacks import PredictionWriter
from ts_lightning.training.records import completeness

CODEC = get_codec("scout")


@pytest.fixture(scope="module")
def rotations(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A question of MMBench and its rotation."""
    folder = tmp_path_factory.mktemp("mmbench")
    samples = [
        Sample(
            id=f"mmbench/{index}",
            key=f"mmbench-{index}",
            source="mmbench",
            task="understanding",
            subtask="multiple_choice",
            images=[SampleImage("a.jpg", 8, 6)],
            turns=[Turn("user", f"<image>\nWhich?\nA. {choices[0]}\nB. {choices[1]}"), Turn("assistant", "cat")],
            choices=choices,
            answer=Answer(text="cat"),
            answers=["cat"],
            meta={"question_id": 241, "index": index},
            image_bytes=[picture(0)],
        )
        for index, choices in (("1000241", ["dog", "cat"]), ("241", ["cat", "dog"]))
    ]
    write_shards(samples, folder, "dev")
    return f"{folder}/dev-*.tar"


def test_rotations_keep_their_own_answers(rotations: str, tmp_path: Path) -> None:
    table = tmp_path / "result.tsv"
    table.write_text("index\tprediction\n241\tA\n1000241\tB\n")
    records = join(read_answers(table, "vlmevalkit"), rotations, CODEC, "mmbench", rule={"protocol": "circular"})
    assert {r.meta["index"]: r.text for r in records} == {"241": "A", "1000241": "B"}
    assert score_suites(records)["mmbench"]["figures"]["circular"] == 1.0
    assert write_submission(records, tmp_path / "out.tsv") == 2
    rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert rows[0] == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert ["1000241", "Which?", "dog", "cat", "", "", "B"] in rows
    with pytest.raises(ValueError, match="expected questions of MMBench"):
        write_submission([record()], tmp_path / "out.tsv")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b'[{"index": 1, "predi'), ("a.json", b"[1]"), ("a.xlsx", b"PK\x03\x04\xff"), ("a.tsv", b"\xff\x00")],
)
def test_a_file_of_another_kind_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: seen .*, expected xlsx, tsv, csv or json") as error:
        read_answers(tmp_path / name, "vlmevalkit")
    assert "\n" not in str(error.value)


def record(**changes: Any) -> Record:
    return Record(**{"suite": "s", "key": "q", "text": "", "truth": Truth(box=(0.1, 0.1, 0.5, 0.5)), **changes})


def test_ranks_go_on_when_the_parts_are_joined(tmp_path: Path) -> None:
    """As `predict` calls it on the second of two ranks, then on the first."""
    path, seen = tmp_path / "predictions.jsonl", list[tuple[str, bool]]()
    path.write_text("an older run's\n")
    for rank, key in ((1, "b"), (0, "a")):
        trainer: Any = SimpleNamespace(
            default_root_dir=str(tmp_path),
            world_size=2,
            global_rank=rank,
            is_global_zero=rank == 0,
            received_sigterm=False,
            strategy=SimpleNamespace(barrier=lambda name: seen.append((name, "older" in path.read_text()))),
        )
        writer = PredictionWriter()
        writer.on_predict_start(trainer, trainer)
        writer.on_predict_batch_end(trainer, trainer, [{"suite": "s", "shard": "x", "key": key}], None, 0)
        writer.on_predict_end(trainer, trainer)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert [name for name, _ in seen] == ["predictions", "joined predictions"] * 2
    assert seen[2:] == [("predictions", True), ("joined predictions", False)]  # the first rank's
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_sigterm_ends_predict_behind_a_batch(tmp_path: Path) -> None:
    """Its loader processes go on at a signal to all, and Lightning's loop asks for none. An earlier file stays."""
    path = tmp_path / "predictions.jsonl"
    path.write_text("an earlier run's\n")
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path), world_size=1, global_rank=0, received_sigterm=True)
    writer = PredictionWriter()
    writer.on_predict_start(trainer, trainer)
    with pytest.raises(SIGTERMException):
        writer.on_predict_batch_end(trainer, trainer, [{"key": "a"}], None, 0)
    assert path.read_text() == "an earlier run's\n"
    assert (tmp_path / ".predictions.jsonl.rank0").read_text() == '{"key": "a"}\n'


def test_an_earlier_file_outlives_an_answering_that_fails(tmp_path: Path) -> None:
    class Answering(L.LightningModule):
        fails = True

        def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, int]]:
            if self.fails and batch_idx == 1:
                raise RuntimeError("the second batch")
            return [{"key": batch_idx}]

    path, model = tmp_path / "predictions.jsonl", Answering()
    path.write_text("an earlier run's\n")
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for fails, kept in ((True, "an earlier run's\n"), (False, '{"key": 0}\n{"key": 1}\n')):
        model.fails = fails
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=[PredictionWriter()],
            use_distributed_sampler=False,
            **quiet,
        )
        with pytest.raises(RuntimeError) if fails else nullcontext():
            trainer.predict(model, DataLoader([0, 1], batch_size=1), return_predictions=False)
        assert path.read_text() == kept
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_completeness_is_told(
    rotations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shard = rotations.replace("*", "000000")
    answered = record(key="mmbench-1000241#1", shard=shard)
    assert completeness([answered]) == {"s": "1 of the 2 questions of the shards that its answers name"}
    assert completeness([record(shard="gone.tar")])["s"].startswith("not checked: the shards of its answers are not")
    with pytest.raises(ValueError, match="suite s: seen other, expected questions of their shard"):
        completeness([answered, record(key="other", shard=shard)])
    path = tmp_path / "p.jsonl"
    write_records([record(shard="gone.tar")], path)
    args = ["evaluate", "--predictions", str(path), "--out", str(tmp_path / "out")]
    assert main(args) == 0
    assert "- completeness: not checked" in capsys.readouterr().out
    assert main([*args, "--allow-missing"]) == 2
    assert capsys.readouterr().err.startswith(
        "ts-lightning: error: --allow-missing: seen without --shards, expected them"
    )
