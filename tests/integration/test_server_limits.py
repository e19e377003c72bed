"""The real server under a crowd, under large bodies and pictures, under slow clients, and at its end."""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"),
]
ROOT = Path(__file__).parents[2]
ROOM = 500 * 2**20
PICTURE = jpeg(render(sample_scene(11)))
CHAT = "/v1/chat/completions"
RAW, JSON = {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/json"}


class Server:
    """ts-lightning serve on the tiny base, in a process of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        command = [sys.executable, "-m", "ts_lightning", "serve", "--port", str(self.port)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        for _ in range(1800):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                self.idle = self.memory()
                return
            except OSError:
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.1)
        raise TimeoutError(log.read_text())

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 120
    ) -> tuple[int, str]:
        """Status and text; status 0 where the server ended the connection before its answer could be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has answered already
                connection.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, str | bytes))
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (ConnectionResetError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
            return 0, ""
        finally:
            connection.close()

    def upload(self, data: bytes) -> tuple[int, dict[str, Any]]:
        status, text = self.send("POST", "/api/image", data, RAW)
        return status, json.loads(text)

    def ask(self, picture: str | None = None) -> tuple[int, str]:
        asked = {"images": [picture] if picture else [], "regions": [], "texts": ["What color?"], "task": "auto"}
        return self.send("POST", "/api/ask", json.dumps(asked), JSON)

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes now (VmRSS), or the most since `forget_peak` (VmHWM)."""
        (found,) = re.findall(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)
        return int(found) * 1024

    def forget_peak(self) -> None:
        """The next peak begins with what there is now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def grown(self) -> int:
        """The peak above the idle server, whatever came before."""
        print(f"{(most := self.memory('VmHWM') - self.idle) / 2**20:.0f} MB above the idle {self.idle / 2**20:.0f}")
        return most

    def lives(self) -> bool:
        """Whether the page comes within 2 s."""
        return self.send("GET", "/", timeout=2)[0] == 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server") / "log")
    name = started.upload(PICTURE)[1]["id"]
    assert '"done"' in started.ask(name)[1]
    yield started
    started.process.kill()
    started.process.wait()
    assert "Traceback" not in started.log.read_text()


def png(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def test_two_hundred_questions_at_once_are_answered_or_refused(server: Server) -> None:
    name = server.upload(PICTURE)[1]["id"]
    with ThreadPoolExecutor(200) as crowd:
        answers = list(crowd.map(lambda _: server.ask(name), range(200)))
    counts = Counter(status for status, _ in answers)
    print(counts)
    assert set(counts) == {200, 503}
    assert counts[200] >= 17  # one in work, sixteen in line
    assert all(('"done": true' in text) == (status == 200) for status, text in answers)
    assert server.lives()


def test_clients_that_go_do_not_keep_the_line_full(server: Server) -> None:
    body = json.dumps({"images": [], "regions": [], "texts": ["What color?"], "task": "auto"})
    head = f"POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(f"{head}\r\n\r\n{body}".encode())
    for _ in range(200):
        if (status := server.ask()[0]) == 200:
            break
        time.sleep(0.1)  # the server has not yet seen that they went
    assert status == 200


def test_a_body_of_800_megabytes_is_refused(server: Server) -> None:
    server.forget_peak()
    for path, headers in (("/api/ask", JSON), ("/api/image", RAW)):
        status, _ = server.send("POST", path, (b" " * 2**20 for _ in range(800)), headers)
        assert status in (0, 413)
        status, _ = server.send("POST", path, b" ", headers | {"Content-Length": "800000000"})
        assert status == 413
    assert server.grown() < ROOM
    assert server.lives()


def test_twelve_pictures_of_forty_megapixels_at_once(server: Server) -> None:
    data = png("RGBA", (12_000, 3_300))
    server.forget_peak()
    with ThreadPoolExecutor(13) as crowd:
        others = crowd.submit(server.ask)
        added = list(crowd.map(lambda _: server.upload(data), range(12)))
        assert others.result()[0] == 200
    assert all((status, one["width"]) == (200, 12_000) for status, one in added)
    assert '"done": true' in server.ask(added[-1][1]["id"])[1]
    assert server.grown() < ROOM
    assert server.lives()


def test_sixty_six_pictures_of_19_megabytes_at_once(server: Server) -> None:
    data = PICTURE + bytes(19 * 2**20)
    server.forget_peak()
    with ThreadPoolExecutor(66) as crowd:
        added = list(crowd.map(lambda _: server.upload(data), range(66)))
    assert all(status == 200 for status, _ in added)
    assert server.grown() < ROOM
    kept = [status for status, _ in (server.ask(one["id"]) for _, one in added)]
    assert kept.count(200) == 3  # 64 MB of one visitor
    assert server.lives()


def test_two_dozen_chats_with_pictures_of_19_megabytes_at_once(server: Server) -> None:
    address = "data:image/jpeg;base64," + base64.b64encode(PICTURE + bytes(19 * 2**20)).decode()
    content = [{"type": "text", "text": "What color?"}, {"type": "image_url", "image_url": {"url": address}}]
    body = json.dumps({"model": "base", "max_tokens": 4, "messages": [{"role": "user", "content": content}]})
    server.forget_peak()
    with ThreadPoolExecutor(24) as crowd:
        counts = Counter(crowd.map(lambda _: server.send("POST", CHAT, body, JSON)[0], range(24)))
    print(counts)
    assert server.grown() < ROOM  # their bodies alone have 608 MB
    assert set(counts) <= {200, 503}
    assert counts[200] >= 3
    assert server.lives()


def test_the_body_of_a_chat_may_have_32_megabytes(server: Server) -> None:
    most = 32 * 2**20
    status, text = server.send("POST", CHAT, b" " * most, JSON)
    assert (status, f"seen no JSON (Expecting value: line 1 column {most + 1} " in text) == (400, True)
    status, text = server.send("POST", CHAT, b" ", JSON | {"Content-Length": str(most + 1)})
    assert (status, "seen 32.0 MB, expected at most 32 MB" in text) == (413, True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 200_000, "nested too deep"),
        (b'{"texts": ["a"], "images": [], "regions": [{"image": 1e999, "points": [[0, 0]]}]}', "image: seen inf"),
        (b'{"texts": ["a"], "images": [], "regions": [{"image": 0, "points": [[0, %s]]}]}' % (b"9" * 400), "points"),
    ],
    ids=["deep", "infinite", "long"],
)
def test_hostile_numbers_and_depths_are_one_line(server: Server, body: bytes, said: str) -> None:
    status, text = server.send("POST", "/api/ask", body, JSON)
    assert status == 400
    assert said in json.loads(text)["error"]


def test_foreign_pages_are_refused(server: Server) -> None:
    assert server.send("GET", "/", headers={"Host": "evil.example"})[0] == 403
    assert server.send("POST", "/api/ask", b"{}", JSON | {"Origin": "http://evil.example"})[0] == 403
    assert server.send("POST", "/api/ask", b"{}", {"Content-Type": "text/plain"})[0] == 415


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_bodies_that_are_no_http_end_the_connection_alone(server: Server, host: str) -> None:
    head = f"POST /api/image HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
    for body in ("zz\r\n", "4\r\nabcdefgh\r\n", "-1\r\n", f"{'f' * 30}\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{body}".encode())
            with suppress(ConnectionResetError):
                while client.recv(65536):
                    pass  # until the server ends it
    assert server.lives()


def test_slow_half_requests_end(server: Server) -> None:
    beginnings = [b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "] * 150
    beginnings += [b"POST /api/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"]
    beginnings[-1] += b"Content-Length: 1000\r\n\r\nhalf"
    sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in beginnings]
    for one, beginning in zip(sockets, beginnings, strict=True):
        one.sendall(beginning)
    assert server.lives()
    ends = [one.recv(65536) for one in sockets]
    assert ends[:-1] == [b""] * 300  # closed
    assert b" 408 " in ends[-1]
    for one in sockets:
        one.close()


def test_sigterm_ends_it_in_the_middle_of_answers(tmp_path: Path) -> None:
    server = Server(tmp_path / "log")
    with ThreadPoolExecutor(10) as crowd:
        answers = [crowd.submit(server.ask) for _ in range(10)]
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"GET / HTT")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=5)
        assert {answer.result()[0] for answer in answers} <= {0, 200, 503}
        half.close()
    assert "Traceback" not in server.log.read_text()
