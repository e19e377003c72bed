"""Judged suites: verdicts, their figures by hand, and the command against a local server."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.generation_samples import Server
from ts_lightning.cli import evaluation, main
from ts_lightning.grounding import get_codec, read_answer
from ts_lightning.metrics.judge import (
    LLAVA_BENCH,
    MM_VET,
    TRIES,
    Instruction,
    few_shot_instruction,
    judge,
    question_for_judge,
    read_verdict,
)
from ts_lightning.metrics.record import Record, Truth, write_records
from ts_lightning.pipelines.response_cache import request_hash


def record(key: str, text: str, **meta: Any) -> Record:
    truth = Truth(answers=("two<AND>red",))
    return Record(
        "mmvet", key, text, truth, question="What is it?", meta=meta, protocol="open_ended", task="understanding"
    )


@pytest.mark.parametrize(
    ("text", "reading", "verdict"),
    [
        ("0.5", "mmvet", [0.5]),
        ("Number: 1.0", "mmvet", [1.0]),
        ("5", "mmvet", None),
        ("0.5 or 0.6", "mmvet", None),
        ("8 6", "llava_bench", [8.0, 6.0]),
        ("8", "llava_bench", None),
        ("", "llava_bench", None),
    ],
)
def test_verdicts(text: str, reading: str, verdict: list[float] | None) -> None:
    assert read_verdict(text, reading) == verdict


def test_mm_vets_own_table_is_continued(tmp_path: Path) -> None:
    table = tmp_path / "prompt.txt"
    table.write_text("Question | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\nx? | -1 | 3 | 0.0\n")
    instruction = few_shot_instruction(table)
    asked = question_for_judge(record("a", "It is\nred."), instruction)
    assert asked == table.read_text() + "What is it? | two <AND> red | It is red. | "
    assert instruction.kind == "few-shot table of prompt.txt"
    table.write_text("nothing")
    with pytest.raises(ValueError, match=r"prompt.txt: seen no table"):
        few_shot_instruction(table)


def test_figures_by_hand() -> None:
    marks = {"a": "1.0", "b": "0.4", "c": "no idea"}
    asked: list[int] = []

    def ask(messages: list[dict[str, str]], attempt: int) -> str:
        asked.append(attempt)
        return next(v for k, v in marks.items() if f"Answer: said {k}" in messages[0]["content"])

    some = [record("a", "said a", capability=["ocr", "math"]), record("b", "said b", capability=["ocr"])]
    result = judge([*some, record("c", "said c", capability=["math"])], "mmvet", ask)
    assert result["score"] == pytest.approx(100 * 1.4 / 3)
    assert result["by_group"] == pytest.approx({"ocr": 70.0, "math": 50.0})
    assert (result["unread_verdicts"], asked) == (1, [0, 0, 0, 1, 2])
    bench = judge([record("a", "x"), record("b", "y")], "llava_bench", lambda messages, attempt: "8 6")
    assert bench["score"] == pytest.approx(75.0)


def test_the_command_asks_a_server_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    calls: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            message = {"role": "assistant", "content": "0.7"}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
            body |= {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_records([record(k, f"said {k}") for k in "ab"], tmp_path / "p.jsonl")
    address = f"http://127.0.0.1:{server.server_port}/v1"
    args = ["--predictions", str(tmp_path / "p.jsonl"), "--judge", "judge-1", "--base-url", address]
    assert [main(["evaluate", *args, "--out", str(tmp_path)]) for _ in range(2)] == [0, 0]
    server.shutdown()
    assert len(calls) == 2  # the second run reads the verdicts
    table = (tmp_path / "report.md").read_text()
    row = "| mmvet | open\\_ended, not the official prompt | 2 | score | 70.0 | - | 34.3 (TWIST"
    assert row in table.replace("open_ended", "open\\_ended")
    assert "+35.7 (better)" in table
    assert "- instruction: You grade one answer" in table
    assert "| score | 70.0 |" in capsys.readouterr().out
    report = json.loads((tmp_path / "mmvet.json").read_text())
    assert report["judge"] == "judge-1"
    assert report["prompt"] == MM_VET


def test_a_verdict_that_is_cut_off_or_refused_gets_the_lowest_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    marks = {"a": "CUT The answer is", "b": "400", "c": "REFUSAL", "d": "It deserves 0.8."}
    some = [record(key, f"said {key}") for key in marks]
    asked = [[{"role": "user", "content": question_for_judge(one, Instruction(MM_VET))}] for one in some]
    server = Server({request_hash(one, [], None, 0): mark for one, mark in zip(asked, marks.values(), strict=True)})
    write_records(some, tmp_path / "p.jsonl")
    args = ["--predictions", str(tmp_path / "p.jsonl"), "--judge", "m", "--base-url", server.url]
    assert main(["evaluate", *args, "--out", str(tmp_path)]) == 0
    server.stop()
    report = json.loads((tmp_path / "mmvet.json").read_text())
    assert (report["score"], report["unread_verdicts"]) == (pytest.approx(20.0), 3)
    told = capsys.readouterr().err.splitlines()
    assert told[::TRIES] == [
        "openai:m: an answer cut off at 1024 tokens",
        "openai:m: an answer refused: HTTP 400 (Error code: 400 - no)",
        "openai:m: an answer refused: I can't assist with that.",
    ]


def test_names_that_are_cut_off_or_refused_are_none(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    texts = ["A dog [[1,1,9,9]].", "A cat [[1,1,9,9]]."]
    for trouble in ("400", "cut"):
        server = Server({}, lambda n, trouble=trouble: trouble)
        extract = evaluation.asked_pairs(f"openai:m@{server.url}", tmp_path)
        assert [extract(text, read_answer(text, get_codec("scout"), [(9, 9)])) for text in texts] == [[], []]
        assert server.requests == 2 * TRIES
        server.stop()


def test_the_protocol_and_the_reading_say_what_is_judged_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Judge:
        name = codec = "judge-1"

        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def chat(self, messages: list[dict[str, str]], *args: Any, **options: Any) -> str:
            asked.append(messages[0]["content"])
            return "8 6" if asked[-1].startswith(LLAVA_BENCH[:30]) else "0.5"

    monkeypatch.setattr(evaluation, "OpenAIChat", Judge)
    some = [
        replace(record("a", "said a"), suite="mine"),
        replace(record("b", ""), suite="mine", missing=True),  # the lowest mark, unasked
        replace(record("c", "said c"), suite="named", reading="llava_bench"),
        replace(record("d", "said d"), suite="sourced", source="llava_bench"),
        replace(record("e", "two<AND>red"), suite="words", protocol="answers"),
    ]
    write_records(some, tmp_path / "p.jsonl")
    args = ["evaluate", "--predictions", str(tmp_path / "p.jsonl"), "--judge", "judge-1", "--out", str(tmp_path)]
    assert main(args) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: (one["score"], one["reading"]) for name, one in report.items()} == {
        "mine": (25.0, "mmvet"),
        "named": (75.0, "llava_bench"),
        "sourced": (75.0, "llava_bench"),
        "words": (1.0, "lenient"),
    }
    assert (len(asked), report["mine"]["figures"]["unread_verdicts"]) == (3, 0)


def test_a_judge_of_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_records([replace(record("a", "red"), protocol="answers")], tmp_path / "p.jsonl")
    suites = tmp_path / "suites.yaml"
    data: dict[str, Any] = {"class_path": "ts_lightning.data.ShardDataModule"}
    data["init_args"] = {"val": {"mmvet": {"shards": "1.tar", "protocol": "vqa"}}}
    suites.write_text(json.dumps({"data": data}))
    monkeypatch.setattr("ts_lightning.cli.lightning.main", lambda args: pytest.fail("it answers"))
    for given in (["--predictions", str(tmp_path / "p.jsonl")], ["--ckpt", "x", "--suites", str(suites)]):
        assert main(["evaluate", *given, "--judge", "judge-1", "--out", str(tmp_path / "out")]) == 2
        seen = "seen no suite of the protocol open_ended, expected one for it to judge"
        assert capsys.readouterr().err == f"ts-lightning: error: --judge: {seen}\n"
