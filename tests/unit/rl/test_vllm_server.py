"""A server of our own ends with the process that started it, however that ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ts_lightning.rl.vllm_server import VLLMServer

STUB = """#!{python}
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

signal.alarm(120)  # ends also where the test fails

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""
PARENT = """
import sys, time
from ts_lightning.rl.vllm_server import OwnServer

server = OwnServer("folder", sys.argv[1], patience=60)
server.start()
print(server.url, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_server_ends_with_its_killed_parent(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", PARENT, str(stub)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = VLLMServer(parent.stdout.readline().strip())
        assert server.is_ready()
        parent.kill()
    end = time.monotonic() + 20
    while server.is_ready():
        assert time.monotonic() < end
        time.sleep(0.1)
