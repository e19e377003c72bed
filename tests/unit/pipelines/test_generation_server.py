"""Generation against a real HTTP server: right, slow, malformed, 429, 500, and dying midway."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.generation_samples import KINDS, LIES, Recorder, Server, input_shard, read
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.pipelines.generate import annotated
from ts_lightning.pipelines.llm_client import OpenAIChat, Pace, RequestFailed, Usage
from ts_lightning.pipelines.quality import verdict
from ts_lightning.pipelines.response_cache import CachedChat, request_hash
from ts_lightning.pipelines.scenes import picture_key, scenes
from ts_lightning.pipelines.scout import SCHEMA, Scout
from ts_lightning.pipelines.shard_work import shard_samples

pytest.importorskip("openai", reason="the extra generate is not installed")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    """An input shard, what the server says to every request, and the texts of an undisturbed offline run."""
    folder = tmp_path_factory.mktemp("world")
    path = input_shard(folder)
    backend = Recorder(codec="cogvlm", most=6, vocabulary=KINDS)
    scout = Scout(backend, backend, most=6)
    samples = [sample for scene in scenes(shard_samples(path)) for sample in scout(scene)]
    assert len(samples) > 60
    return path, backend.heard, [sample.turns[1].text for sample in samples]


def arguments(path: Path, out: Path, url: str, **more: object) -> list[str]:
    model = f"openai:m@{url}"
    options = {"questions": model, "answers": model, "most": 6, "first-wait": 0.01, "timeout": 20, **more}
    return [str(path), "--out", str(out), *(str(v) for k, one in options.items() for v in (f"--{k}", one))]


def run(arguments: list[str]) -> int:
    return main(["data", "generate", "scout", *arguments])


def texts(out: Path) -> list[str]:
    manifest = index_shards(f"{out}/*.tar")
    reader = ShardReader(manifest)
    return [reader.read(i).turns[1].text for i in range(manifest.num_samples)]


def note(out: Path) -> dict:
    (file,) = out.glob("scout-*.json")
    return json.loads(file.read_text())


def test_right_and_troubled_servers_give_the_same_samples(world, tmp_path) -> None:
    path, heard, expected = world
    calm = Server(heard)
    assert run(arguments(path, tmp_path / "calm", calm.url.replace("://", "://user:pa55@"))) == 0
    assert texts(tmp_path / "calm") == expected
    card = (tmp_path / "calm/README.md").read_text()
    assert str(calm.port) in card
    assert "pa55" not in card + json.dumps(note(tmp_path / "calm"))
    usage = note(tmp_path / "calm")["usage"]
    assert (usage["requests"], usage["tokens_in"], usage["failed"]) == (calm.requests, 10 * calm.requests, 0)

    def trouble(n: int) -> str:
        return {1: "429", 3: "500", 5: "broken body", 7: "empty", 9: "slow"}.get(n % 11, "right")

    storm = Server(heard, trouble)
    assert (
        run(
            arguments(path, tmp_path / "storm", storm.url, concurrency=3, tries=12, **{"first-wait": 0.001}),
        )
        == 0
    )
    assert texts(tmp_path / "storm") == expected
    assert note(tmp_path / "storm")["usage"]["retries"] > 10
    (one,), (two,) = (list((tmp_path / name).glob("*.tar")) for name in ("calm", "storm"))
    assert one.read_bytes() == two.read_bytes()
    before = storm.requests
    assert run(arguments(path, tmp_path / "storm", storm.url)) == 0
    assert storm.requests == before  # done before
    calm.stop()
    storm.stop()


def test_a_server_that_dies_midway_loses_nothing(world, tmp_path, capsys) -> None:
    path, heard, expected = world
    first = Server(heard, lambda n: "dead" if n > 40 else "right")
    assert run(arguments(path, tmp_path, first.url, tries=2, concurrency=2)) == 1
    assert "What was answered is kept; run again to go on" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tar"))
    first.stop()
    (cache,) = (tmp_path / "cache").glob("*.jsonl")
    with open(cache, "ab") as file:
        file.write(b'{"request": "torn')
    second = Server(heard, port=first.port)
    assert run(arguments(path, tmp_path, second.url, tries=2, concurrency=2)) == 0
    assert texts(tmp_path) == expected
    assert max((first.answered + second.answered).values()) == 1  # nothing is asked twice
    assert note(tmp_path)["usage"]["cached"] == first.answered.total()
    second.stop()


def test_a_killed_run_goes_on_without_asking_twice(world, tmp_path) -> None:
    path, heard, expected = world
    server = Server(heard, lambda n: "slow")
    command = [
        sys.executable,
        *("-m", "ts_lightning", "data", "generate", "scout"),
        *arguments(path, tmp_path, server.url, concurrency=2),
    ]
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while server.requests < 20 and child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    time.sleep(0.4)  # the requests in flight are answered to nobody
    (cache,) = (tmp_path / "cache").glob("*.jsonl")
    kept = {json.loads(line)["request"] for line in cache.read_bytes().splitlines() if line.endswith(b"}")}
    before = server.answered.total()
    assert before - 2 <= len(kept) <= before
    assert run(arguments(path, tmp_path, server.url, concurrency=8)) == 0
    assert texts(tmp_path) == expected
    assert sum(n - 1 for n in server.answered.values()) == before - len(kept)  # in flight at the kill, at most two
    server.stop()


def test_malformed_answers_are_counted_and_left_out(world, tmp_path) -> None:
    path, heard, expected = world
    server = Server(heard, lambda n: "malformed" if n % 5 == 3 else "right")
    assert run(arguments(path, tmp_path, server.url, concurrency=1, workers=1)) == 0
    dropped = note(tmp_path)["dropped"]
    assert 0 < len(texts(tmp_path)) < len(expected)
    assert sum(dropped.values()) >= server.requests // 5
    assert set(dropped) <= {
        "answer that is no numbered steps",
        "questions: answer that holds no query",
        "negatives: answer that holds no query",
    }
    assert "malformed" not in (tmp_path / "README.md").read_text()
    assert "left out because" in (tmp_path / "README.md").read_text()
    server.stop()


def test_a_server_without_json_schemas_is_asked_without_one() -> None:
    heard = {request_hash([{"role": "user", "content": "hi"}], [], None, 0): "hello"}
    server = Server(heard, lambda n: "no schema")
    chat = OpenAIChat("m", server.url, "k", first_wait=0.01)
    assert chat.chat([{"role": "user", "content": "hi"}], schema=SCHEMA) == "hello"
    assert chat.chat([{"role": "user", "content": "hi"}], schema=SCHEMA) == "hello"
    assert server.requests == 3
    server.stop()


def test_what_an_error_repeats_of_a_request_is_left_out_only_where_that_helped() -> None:
    asked = [{"role": "user", "content": "hi"}]
    server = Server({request_hash(asked, [], None, 0): "hello"}, lambda n: "no schema, echo")
    chat = OpenAIChat("m", server.url, "k", tries=1)
    assert [chat.chat(asked, schema=SCHEMA) for _ in range(2)] == ["hello", "hello"]
    assert (server.requests, chat.left_out) == (5, {"response_format"})
    server.stop()


def test_half_a_character_in_a_question_stops_no_run(world, tmp_path) -> None:
    path, heard, expected = world
    first, text = next((request, text) for request, text in heard.items() if "?" in text)
    server = Server(heard | {first: text.replace("?", " \ud83d?", 1)})
    for _ in range(2):  # the second time the question is in the cache
        assert run(arguments(path, tmp_path, server.url)) == 0
        assert note(tmp_path)["dropped"] == {"answer that is no numbered steps": 1}
        (tmp_path / f"scout-{path.stem}.json").unlink()
    assert set(texts(tmp_path)) < set(expected)
    server.stop()


def test_what_one_request_can_not_have_does_not_stop_the_rest(world, tmp_path, capsys) -> None:
    path, heard, expected = world
    steps = [request for request, text in heard.items() if text.startswith("Step 1")]
    server = Server(heard | {steps[0]: "413", steps[20]: f"CUT{heard[steps[20]]}"})
    assert run(arguments(path, tmp_path, server.url, **{"max-tokens": 99})) == 0
    made, kept = note(tmp_path), texts(tmp_path)
    assert made["dropped"] == {
        "pictures that the server refuses to answer about": 1,
        "answer cut off at --max-tokens": 1,
    }
    assert (made["usage"]["refused"], made["usage"]["cut"], made["settings"]["max_tokens"]) == (1, 1, 99)
    assert "refuses to answer about (p000000: HTTP 413" in capsys.readouterr().out
    pictures = [one.images[0].name for one in read(f"{tmp_path}/*.tar")]
    assert [*dict.fromkeys(pictures)] == [f"{i}.jpg" for i in range(1, 12)]
    assert set(kept) <= set(expected)
    assert len(kept) < len(expected)
    server.stop()
    nothing = Server(heard, lambda n: "400")
    assert run(arguments(path, tmp_path / "no", nothing.url)) == 1
    assert "stopped: seen no sample and the refusal of p0000" in capsys.readouterr().err
    assert not list((tmp_path / "no").glob("*.json"))
    nothing.stop()


@pytest.mark.parametrize(
    ("text", "why", "requests"),
    [
        ("REFUSAL", "I can't assist with that.", 1),
        ("FILTERED", "content_filter", 1),
        ("", "an empty answer after 3", 3),
    ],
)
def test_an_answer_that_is_a_refusal_leaves_out_its_picture_alone(
    text: str, why: str, requests: int, world, tmp_path, capsys
) -> None:
    path, heard, expected = world
    first = next(request for request, said in heard.items() if said.startswith("Step 1"))
    server = Server(heard | {first: text})
    assert run(arguments(path, tmp_path, server.url, tries=3)) == 0
    assert note(tmp_path)["dropped"] == {"pictures that the server refuses to answer about": 1}
    assert (server.answered[first], note(tmp_path)["usage"]["refused"]) == (requests, 1)
    assert f"refuses to answer about (p000000: {why}" in capsys.readouterr().out
    assert set(texts(tmp_path)) < set(expected)
    server.stop()


def test_a_model_without_max_tokens_and_temperature_is_asked_without_them() -> None:
    asked = [{"role": "user", "content": "hi"}]
    server = Server({request_hash(asked, [], None, 0): "hello"}, lambda n: "reasoning model")
    bodies: list[dict] = []
    chat = OpenAIChat("m", server.url, "k", tries=1, max_tokens=99)
    create = chat.client.chat.completions.create
    chat.client.chat.completions.create = lambda **body: bodies.append(body) or create(**body)
    assert [chat.chat(asked, schema=SCHEMA), *(chat.chat(asked, attempt=1) for _ in range(2))] == ["hello"] * 3
    assert [("max_tokens" in body, "temperature" in body) for body in bodies] == [
        (True, True),
        (False, True),
        (False, False),
        (True, False),  # the last one helped for sure
        (False, False),
        (False, False),
    ]
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 99, 99, None, 99, 99]
    assert ["response_format" in body for body in bodies] == [True, True, True, False, False, False]
    assert bodies[-1]["seed"] == 1
    server.stop()


def test_errors_that_no_retry_helps_and_pace(tmp_path) -> None:
    server = Server({}, lambda n: "401")
    usage = Usage()
    chat = OpenAIChat("m", server.url, "k", first_wait=0.01, usage=usage)
    with pytest.raises(RequestFailed, match="seen HTTP 401"):
        chat.chat([{"role": "user", "content": "hello"}])
    assert (server.requests, usage.failed) == (1, 1)
    server.stop()
    clock = [0.0]
    pace = Pace(60, lambda: clock[0])
    pace.wait()
    assert pace.next == 1.0
    clock[0] = 5.0
    pace.wait()
    assert pace.next == 6.0
    cached = CachedChat(chat, tmp_path / "c.jsonl")
    with pytest.raises(RequestFailed):
        cached.chat([{"role": "user", "content": "hello"}])
    assert (tmp_path / "c.jsonl").read_bytes() == b""


def test_a_lying_server_has_no_lie_counted_right_and_an_honest_one_is_kept(tmp_path: Path) -> None:
    path = input_shard(tmp_path / "in", 30)
    backend = Recorder(codec="cogvlm", most=16, vocabulary=KINDS)
    maker = Scout(backend, backend, most=16, negatives=0.0)
    for scene in scenes(shard_samples(path)):
        list(maker(scene))
    steps = {request: text for request, text in backend.heard.items() if text.startswith("Step 1")}
    lied: dict[str, str] = {}
    for number, (request, text) in enumerate(steps.items()):  # each kind of lie in turn, or the next one that fits
        told = (lie(text) for lie in (*LIES[number % 4 :], *LIES[: number % 4]))
        lied[request] = next(one for one in told if one != text)
    known = annotated([str(path)])
    counts = {}
    for name, heard in {"honest": backend.heard, "lying": backend.heard | lied}.items():
        server = Server(heard)
        assert run(arguments(path, tmp_path / name, server.url, most=16, negatives=0.0)) == 0
        server.stop()
        made = read(f"{tmp_path}/{name}/*.tar")
        counts[name] = Counter(
            verdict(one, known[picture_key(one.images[0].name, one.image_bytes[0])]).verdict for one in made
        )
    assert len(lied) == len(steps) >= 200
    assert set(counts["lying"]) == {"unchecked"}  # and tagged so; the other lies are left out
    assert counts["honest"] == {"right": counts["honest"]["right"]}
    assert counts["honest"]["right"] >= 0.95 * len(steps)
