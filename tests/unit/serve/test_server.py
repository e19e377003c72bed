"""The page's server: what it refuses, and in which words."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image

pytest.importorskip("starlette", reason="starlette is not installed")
from starlette.testclient import TestClient

from ts_lightning.cli.serve import serve
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Writing
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.serve.line import Begun, Line, Question
from ts_lightning.serve.server import Answer, make_app, page_events

PICTURE = jpeg(render(sample_scene(11)))
VLM = PlainVLM(TinyBackbone(), train=[]).eval()
RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(VLM, "tiny", hosts=["My.machine"]), base_url="http://127.0.0.1:7860") as opened:
        yield opened


def upload(client: TestClient, data: bytes = PICTURE) -> str:
    return client.post("/api/image", content=data, headers=RAW).json()["id"]


def test_the_server_refuses_in_one_line_and_lives_on(client: TestClient) -> None:
    ask = {"images": [upload(client)], "regions": [], "texts": ["How many objects are there?"], "task": "auto"}
    for wrong, expected in [
        ({"texts": ["  "]}, "question: seen nothing"),
        ({"images": ["no"]}, "no longer has this picture"),
        ({"regions": [{"image": 3, "points": [[0, 0]]}]}, "region #1: seen image 4"),
    ]:
        response = client.post("/api/ask", json=ask | wrong)
        assert response.status_code == 400
        assert expected in response.json()["error"]
    assert client.post("/api/ask", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert client.get("/../server.py").status_code == 404
    assert client.get("/api/ask").status_code == 404  # a file by that name, and there is none
    assert '{"done": true, "cut": ' in client.post("/api/ask", json=ask).text
    region = {"image": 0, "points": [[0.1, 0.1], [0.5, 0.5]]}
    wrong = ask | {"regions": [region], "texts": ["And #2?"]}
    assert "seen #2, expected #1 to #1" in client.post("/api/ask", json=wrong).text
    response = client.post("/metrics")
    assert (response.status_code, response.json()["error"]) == (405, "seen POST /metrics, expected another method")


def test_the_page_is_told_which_tasks_there_are(client: TestClient) -> None:
    assert client.get("/api/model").json()["skills"] == []
    ask = {"images": [], "regions": [], "texts": ["How many?"], "task": "counting"}
    assert "expected one of auto, understanding" in client.post("/api/ask", json=ask).text
    counting = TwinExpertVLM(TinyBackbone(), package="counting").eval()
    with TestClient(make_app(counting, "tiny"), base_url="http://127.0.0.1:7860") as other:
        assert other.get("/api/model").json()["skills"] == ["counting"]
        assert other.post("/api/ask", json=ask).text.startswith('{"task": "counting", "automatic": false}')


def test_a_stored_picture_is_not_opened_while_others_are_answered(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes) -> tuple[int, int]:
        raise AssertionError("opened")

    name = upload(client)
    monkeypatch.setattr("ts_lightning.serve.conversation.image_size", read)
    ask = {"images": [name] * 2, "regions": [], "texts": ["How many objects are there?"], "task": "auto"}
    assert '{"done": true' in client.post("/api/ask", json=ask).text


def test_an_answer_that_is_cut_says_so() -> None:
    async def last(ended: str) -> str:
        question = Question(lambda: Begun("understanding", True, {}, Writing(1)))
        question.begun = Begun("understanding", True, {}, Writing(1, tokens=[100], ended=ended))
        question.end()
        return [event async for event in page_events(VLM, question, [])][-1]

    assert asyncio.run(last("length")) == '{"done": true, "cut": true}\n'
    assert asyncio.run(last("stop")) == '{"done": true, "cut": false}\n'


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "http://127.0.0.1:7860"), ("::1", "http://[::1]:7860")])
def test_the_address_of_the_page_can_be_opened(
    host: str, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ts_lightning.serve.guard.run", lambda *_: None)
    serve(host=host)
    assert capsys.readouterr().out.split() == [address]


@pytest.mark.parametrize("gpu", [False, True])
def test_vllm_gets_the_dtype_of_the_machine(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own copy lies on the CPU; the server that answers takes the GPU."""
    vlm, opened = PlainVLM(TinyBackbone(), train=[]).eval(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("ts_lightning.serve.guard.run", lambda *_: None)
    monkeypatch.setattr("ts_lightning.serve.server.make_app", lambda *_: None)
    monkeypatch.setattr("ts_lightning.rl.vllm_engine.started_vllm", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr("ts_lightning.runs.load.load", lambda *given: opened.append(given) or SimpleNamespace(vlm=vlm))
    for engine in ("vllm", "own"):
        serve(ckpt=Path("folder"), engine=engine, device="auto" if engine == "vllm" else "cpu")
    assert opened == [(Path("folder"), "cpu", gpu), (Path("folder"), "cpu", None)]


@pytest.mark.parametrize("data", [PICTURE[:300], b"no picture", b""])
def test_a_broken_picture_is_a_line_without_addresses(client: TestClient, data: bytes) -> None:
    response = client.post("/api/image", content=data, headers=RAW)
    assert response.status_code == 400
    assert "expected a whole jpg, png or webp" in response.json()["error"]
    assert "0x" not in response.text
    assert "BytesIO" not in response.text


@pytest.mark.parametrize(("kind", "turned", "status"), [("WEBP", 6, 400), ("WEBP", 1, 200), ("JPEG", 6, 200)])
def test_a_picture_that_browsers_show_in_another_way_is_refused(
    client: TestClient, kind: str, turned: int, status: int
) -> None:
    """A region drawn on it would be one of another place."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    Image.new("RGB", (40, 20)).save(buffer, kind, exif=exif.tobytes())
    response = client.post("/api/image", content=buffer.getvalue(), headers=RAW)
    assert response.status_code == status
    assert status == 200 or "seen a WebP with EXIF orientation 6" in response.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:7860"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:7860.evil.example"}, 403),
        ({"Origin": "http://evil@127.0.0.1:7860"}, 403),
        ({"Host": "MY.machine", "Origin": "https://my.machine"}, 200),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
    ],
    ids=str,
)
def test_only_the_own_page_may_use_it(client: TestClient, headers: dict[str, str], status: int) -> None:
    for path in ("/", "/api/model", "/v1/models", "/metrics"):
        assert client.get(path, headers=headers).status_code == status
    assert client.post("/api/image", content=PICTURE, headers=RAW | headers).status_code == status


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""])
def test_bodies_that_a_form_can_send_are_refused(client: TestClient, kind: str) -> None:
    for path in ("/api/ask", "/api/image", "/v1/chat/completions"):
        response = client.post(path, content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 415
        assert "Content-Type: seen" in response.text


def test_every_answer_carries_the_policy(client: TestClient) -> None:
    for response in (client.get("/"), client.get("/none"), client.get("/", headers={"Host": "x"})):
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


def test_large_bodies_are_refused_while_they_come(client: TestClient) -> None:
    sent = 0

    def blanks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(2**20)

    assert client.post("/api/image", content=blanks(), headers=RAW).status_code == 413
    declared = {"Content-Type": "application/json", "Content-Length": "800000000"}
    response = client.post("/api/ask", content=b" ", headers=declared)
    assert (response.status_code, response.json()["error"]) == (413, "body: seen 762.9 MB, expected at most 0.5 MB")


def test_a_huge_picture_is_refused_before_it_is_decoded(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("1", (7_000, 7_000)).save(buffer, "PNG")
    response = client.post("/api/image", content=buffer.getvalue(), headers=RAW)
    assert "seen 7000 x 7000 pixels, expected at most 12000 a side and 40,000,000" in response.json()["error"]


def test_a_client_that_goes_frees_its_place() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def nowhere(message: dict[str, Any]) -> None:
        assert message["type"] == "http.response.start"

    async def run() -> None:
        line = Line(places=1)
        for _ in range(3):  # more than there are places
            question = Question(lambda: (_ for _ in ()).throw(ValueError))
            line.enter(question)
            events = page_events(None, question, [])
            await Answer(line, question, events, "text/plain")(
                {"type": "http", "asgi": {"spec_version": "2.3"}}, gone, nowhere
            )
            assert question.gone

    asyncio.run(run())
