"""A server with the routes of vLLM that rollouts use, whose answers say which weights it had."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FIRST = 100  # the token of an answer by the weights that were there before any hand-over


class Stub:
    """Every answer is the token FIRST + the number of hand-overs so far, with the log-probability `logp`.

    `trouble`: what becomes of a POST, by path, one entry a request: a status, "drop" (the connection is closed without
    an answer) or "wait" (no answer for `patience` seconds).
    """

    def __init__(self, image_token: int, pads: int, logp: float = -1.0) -> None:
        self.image_token, self.pads, self.logp = image_token, pads, logp
        self.names, self.version, self.handed = ["base"], "none", 0
        self.asked = list[tuple[str, int]]()  # (path, hand-overs until then) of each POST
        self.trouble = dict[str, Iterator[int | str]]()
        self.patience = 3.0
        self.url = ""

    def answer(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON of a route's answer."""
        if path == "/v1/models":
            return {"data": [{"id": name} for name in self.names]}
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/v1/unload_lora_adapter":
            self.names.remove((body or {})["lora_name"])
        if path == "/v1/load_lora_adapter":
            self.names.append((body or {})["lora_name"])
            self.handed += 1
        if path == "/update_weight_version":
            self.version = (body or {})["new_version"]
        if path == "/inference/v1/generate":
            assert body is not None
            token, number = FIRST + self.handed, body["sampling_params"]["n"]
            logprobs = {"content": [{"logprob": self.logp}]}
            choice = {"token_ids": [token], "logprobs": logprobs, "finish_reason": "length"}
            seen = list[int]()
            for one in body["token_ids"]:
                seen += [one] * (self.pads if one == self.image_token else 1)
            return {"choices": [choice | {"index": i} for i in range(number)], "prompt_token_ids": seen}
        return {}


@contextmanager
def running(stub: Stub) -> Iterator[Stub]:
    """The stub behind a free port of this machine, at `stub.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, stub.answer(self.path, None))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append((self.path, stub.handed))
            trouble = next(stub.trouble.get(self.path, iter(())), 200)
            if trouble == "drop":
                self.close_connection = True
                return
            if trouble == "wait":
                threading.Event().wait(stub.patience)
                return
            self.reply(int(trouble), stub.answer(self.path, body) if trouble == 200 else {"error": "planted"})

        def reply(self, status: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
