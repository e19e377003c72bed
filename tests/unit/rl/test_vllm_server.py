"""A server of our own ends with the process that started it, and its children with it, however that ends."""

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests import ranks
from ts_lightning.rl.vllm_server import OwnServer, VLLMServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and /proc are Linux's")
STUB = """#!{python}
import signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

signal.alarm(120)  # ends also where the test fails
engine = subprocess.Popen(["sleep", "120"])
print("engine", engine.pid, flush=True)

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


def stub(folder: Path) -> Path:
    file = folder / "python"
    file.write_text(STUB.format(python=sys.executable))
    file.chmod(0o755)
    return file


def keep_a_server(folder: Path, rank: int) -> None:
    server = OwnServer("folder", str(stub(folder)), patience=60)
    server.start()
    print(server.url)
    time.sleep(600)


def runs(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_server_ends_with_its_killed_parent(tmp_path: Path) -> None:
    log = tmp_path / "url"
    (parent,) = ranks.start(partial(keep_a_server, tmp_path), log)
    end = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.1)
    server = VLLMServer(log.read_text().strip())
    assert server.is_ready()
    parent.kill()
    parent.join()
    end = time.monotonic() + 20
    while server.is_ready():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_engine_of_a_killed_server_ends_before_the_next_one_starts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = OwnServer("folder", str(stub(tmp_path)), log=log, patience=60)
    server.start()
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    engine = int(log.read_text().split()[1])
    assert runs(engine)
    server.start()
    server.close()
    assert not runs(engine)
