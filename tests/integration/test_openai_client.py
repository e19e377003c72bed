"""OpenAI's own client against the real server: text, pictures, streams, errors, and a crowd."""

import base64
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.test_server_limits import PICTURE, Server, pytestmark  # noqa: F401
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.ask import ask

openai = pytest.importorskip("openai", reason="openai is not installed")
QUESTION = "Where is the star? Answer with a box."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server") / "log")
    yield started
    started.process.kill()
    started.process.wait()
    assert "Traceback" not in started.log.read_text()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0) as made:
        yield made


def asked(question: str = QUESTION, picture: bytes | None = PICTURE) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if picture is not None:
        url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    return {"model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": 16}


def test_text_pictures_and_streams(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["base"]
    vlm = PlainVLM(TinyBackbone(), train=[]).eval()
    for picture in (None, PICTURE):
        expected = ask(vlm, [] if picture is None else picture, QUESTION, max_new_tokens=16)
        whole = client.chat.completions.create(**asked(picture=picture))
        assert whole.choices[0].message.content == expected.text
        boxes = [tuple(box["box"]) for box in whole.choices[0].message.boxes]
        assert boxes == pytest.approx(expected.pixels, abs=0.01)
        stream = client.chat.completions.create(**asked(picture=picture), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected.text


def test_errors_are_the_clients_own(client: Any) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="expected one of base"):
        create(**asked() | {"model": "gpt"})
    with pytest.raises(openai.BadRequestError, match="n: seen 2"):
        create(**asked(), n=2)
    with pytest.raises(openai.BadRequestError, match="expected a whole jpg, png or webp"):
        create(**asked(picture=PICTURE[:300]))
    foreign = openai.OpenAI(api_key="none", base_url=client.base_url, default_headers={"Origin": "http://evil.example"})
    with foreign, pytest.raises(openai.PermissionDeniedError, match="Origin"):
        foreign.models.list()


def test_two_hundred_at_once_are_answered_or_refused(client: Any, server: Server) -> None:
    expected = client.chat.completions.create(**asked()).choices[0].message.content

    def one(_: int) -> str:
        try:
            return client.chat.completions.create(**asked()).choices[0].message.content
        except openai.InternalServerError as error:
            return str(error.status_code)

    with ThreadPoolExecutor(200) as crowd:
        answers = Counter(crowd.map(one, range(200)))
    print(answers)
    assert set(answers) <= {expected, "503"}
    assert answers[expected] >= 17
    assert server.lives()


def test_a_body_above_the_limit_is_refused(server: Server) -> None:
    server.forget_peak()
    head = {"Content-Type": "application/json"}
    assert server.send("POST", "/v1/chat/completions", b" ", head | {"Content-Length": "800000000"})[0] == 413
    status, _ = server.send("POST", "/v1/chat/completions", (b" " * 2**20 for _ in range(800)), head)
    assert status in (0, 413)
    assert server.grown() < 500 * 2**20
    assert server.lives()
