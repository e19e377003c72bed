"""vLLM in the running batch's place: what is sent, and what comes of it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")
from starlette.testclient import TestClient

from ts_lightning.data.collate import collate
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Writing
from ts_lightning.rl.vllm_server import Prompt, Refused, Said, ServerError, VLLMServer
from ts_lightning.runs.ask import sample_of
from ts_lightning.serve.openai import Drawing
from ts_lightning.serve.server import make_app
from ts_lightning.serve.vllm import VLLMBatch

TWINS = TwinExpertVLM(TinyBackbone()).eval()
END = TWINS.tokenizer.eos_token_id


class Server:
    """Answers as `VLLMServer.answer` does, when it may."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.may = threading.Event()

    def answer(self, prompt: Prompt, sampling: dict[str, Any], model: str, opened: object) -> list[Said]:
        self.asked.append((model, sampling))
        assert self.may.wait(20)
        if sampling["max_tokens"] == 9:
            raise ServerError("vLLM\nis gone")
        return [Said([100, 101, END], [-0.5, -0.25, -0.1], True)]


def test_answers_come_by_the_path_of_their_task_and_who_left_is_forgotten() -> None:
    server = Server()
    batch = VLLMBatch(TWINS, server, 9)  # type: ignore[arg-type]
    tasks = ["understanding", "grounding", "grounding", "understanding", "understanding", "understanding"]
    tasks += ["understanding"] * 3
    rows = [TWINS.encode(sample_of([], "What color?", task), True, task) for task in tasks]
    drawing = Drawing(0.5, 1.0, None)
    ways: list[dict[str, Any]] = [{"top": 0}, {"sampler": drawing}, {}, {"constrain": (1, 1)}, {"top": 2}, {}]
    ways += [{"sampler": drawn, "top": 0} for drawn in (Drawing(1.0, 1.0, 7), drawing, Drawing(1.0, 0.9, None))]
    written = [Writing(9 if i == 5 else 4, **how) for i, how in enumerate(ways)]
    batch.join(collate(rows, TWINS.pad_id, "left"), written)
    assert batch.room == 0
    written[2].ended = "left"
    told = set(batch.step())
    server.may.set()
    while batch.active:
        told |= set(batch.step())
    assert told == set(written)
    assert (written[0].tokens, written[0].ended, [one.logp for one in written[0].likely]) == (
        [100, 101],
        "stop",
        [-0.5, -0.25],
    )
    assert written[2].tokens == []
    assert "constrain: can't be had" in written[3].ended
    assert "top_logprobs: seen 2" in written[4].ended
    assert written[6].ended == "seed: seen 7 with vLLM, expected none"
    expected = "with vLLM, expected temperature 0, or 1 with top_p 1"
    assert written[7].ended == f"logprobs: seen temperature 0.5, top_p 1 {expected}"
    assert written[8].ended == f"logprobs: seen temperature 1, top_p 0.9 {expected}"
    assert written[5].ended == "the server that writes the answers is away (vLLM is gone)"
    sent = {
        sampling["temperature"]: (model, sampling.get("seed")) for model, sampling in server.asked if model != "base"
    }
    assert sent[0.5] == ("grounding", None)
    assert {model for model, _ in server.asked} == {"base", "grounding"}


def test_who_left_is_taken_back_from_the_server() -> None:
    """vLLM stops where its client hangs up; it would write on, and the next questions wait for it."""
    reading, left = threading.Event(), threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            reading.set()
            self.connection.settimeout(20)
            if not self.connection.recv(1):
                left.set()

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        batch = VLLMBatch(TWINS, VLLMServer(f"http://127.0.0.1:{slow.server_port}"), 1)
        row = TWINS.encode(sample_of([], "What color?", "understanding"), True)
        one, forgotten = Writing(4), Writing(4)
        batch.join(collate([row], TWINS.pad_id, "left"), [one])
        assert reading.wait(20)
        one.ended = "left"
        assert batch.step() == [one]
        assert left.wait(10)
        for event in (reading, left):
            event.clear()
        batch.join(collate([row], TWINS.pad_id, "left"), [forgotten])
        assert reading.wait(10)
        batch.clear()
        assert left.wait(10)
        assert not batch.active
        slow.shutdown()


def test_the_web_application_asks_the_server() -> None:
    server = Server()
    server.may.set()
    with TestClient(make_app(TWINS, "tiny", server=server), base_url="http://127.0.0.1:7860") as client:  # type: ignore[arg-type]
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        reply = client.post("/v1/chat/completions", json=body).json()
        assert reply["choices"][0]["message"]["content"] == TWINS.tokenizer.decode([100, 101]).strip()
        assert len(server.asked) == 1
        refused = client.post("/v1/chat/completions", json=body | {"constrain": True})
        assert (refused.status_code, len(server.asked)) == (400, 1)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ServerError("gone"), 503), (Refused(503, "busy"), 503), (Refused(400, "too long"), 400), (KeyError("x"), 500)],
    ids=str,
)
def test_whose_fault_it_is_says_the_status(error: Exception, status: int) -> None:
    class Failing:
        def answer(self, *_: Any) -> list[Said]:
            raise error

    with TestClient(make_app(TWINS, "tiny", server=Failing()), base_url="http://127.0.0.1:7860") as client:  # type: ignore[arg-type]
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == status
