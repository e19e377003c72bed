"""Scenes and a server that speaks OpenAI's protocol, for the generation tests."""

import base64
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.unit.data_samples import picture
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.llm_client import Messages
from ts_lightning.pipelines.offline import OfflineChat
from ts_lightning.pipelines.response_cache import request_hash
from ts_lightning.pipelines.scenes import Scene, scene_of
from ts_lightning.pipelines.scout import Scout

KINDS = ("dog", "cat", "car", "kite", "person", "bench")
WORDS = (*KINDS, "horse", "zebra", "sheep", "cow", "boat")


def detection(number: int, size: tuple[int, int] = (160, 120)) -> Sample:
    """A picture with three to five objects in known places."""
    boxes = [
        (0.05, 0.1, 0.25, 0.4),
        (0.4, 0.45, 0.6, 0.95),
        (0.7, 0.05, 0.95, 0.3),
        (0.7, 0.5, 0.8, 0.7),
        (0.1, 0.7, 0.3, 0.9),
    ]
    names = [KINDS[(number + i) % len(KINDS)] for i in range(3 + number % 3)]
    regions = [SampleRegion(phrase=name, category=name, box=box) for name, box in zip(names, boxes, strict=False)]
    text = ", ".join(f"{name} {{region:{i}}}" for i, name in enumerate(names)) + "."
    return Sample(
        id=f"small/{number}",
        key=f"p{number:06d}",
        source="small",
        task="grounding",
        subtask="detection",
        images=[SampleImage(f"{number}.jpg", *size)],
        turns=[Turn("user", "<image>\nList all."), Turn("assistant", text)],
        regions=regions,
        answer=Answer(regions=[*range(len(regions))]),
        meta={"image_id": number, "captions": [f"Picture {number}."]},
        image_bytes=[picture(number, size)],
    )


def input_shard(folder: Path, count: int = 12) -> Path:
    (path,) = write_shards((detection(i) for i in range(count)), folder, "in")
    return path


def scene() -> Scene:
    """Dog, cat and car."""
    made = scene_of(detection(0))
    assert made is not None
    return made


def scout(most: int = 16, **options: Any) -> Scout:
    backend = OfflineChat("cogvlm", most, WORDS)
    return Scout(backend, backend, most=most, **options)


def read(pattern: str) -> list[Sample]:
    manifest = index_shards(pattern)
    reader = ShardReader(manifest)
    return [reader.read(i) for i in range(manifest.num_samples)]


class Recorder(OfflineChat):
    """The offline backend, remembering every answer by what was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard: dict[str, str] = {}

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        text = super().chat(messages, images, schema, attempt)
        self.heard[request_hash(messages, images, None, 0)] = text
        return text


class Server:
    """A real HTTP server that answers from `heard`; `trouble(n)` says what happens to request n.

    Of what is heard, a number is an HTTP status, `CUT` in front of a text ends it at the most tokens, and `REFUSAL`
    or `FILTERED` stands for an answer that is none.
    """

    def __init__(self, heard: dict[str, str], trouble: Callable[[int], str] = lambda n: "right", port: int = 0) -> None:
        self.answered: Counter[str] = Counter()
        self.requests = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with owner.lock:
                    owner.requests += 1
                    what = trouble(owner.requests)
                owner.reply(self, body, what, heard)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], what: str, heard: dict[str, str]) -> None:
        if what == "dead":
            handler.connection.close()
            return
        if what == "slow":
            time.sleep(0.05)
        if what == "no schema" and "response_format" in body:
            what = "400"
        if what == "no schema, echo" and "response_format" in body:
            return self.send(handler, 400, json.dumps({"error": {"message": f"odd request: {body}"}}).encode())
        if what == "reasoning model" and (seen := [name for name in ("max_tokens", "temperature") if name in body]):
            return self.send(handler, 400, json.dumps({"error": {"message": f"Unsupported: '{seen[0]}'"}}).encode())
        if what in ("400", "429", "500", "401"):
            return self.send(handler, int(what), b'{"error": {"message": "no"}}')
        if what == "broken body":
            return self.send(handler, 200, b'{"choices": [')
        request = asked(body)
        text = "" if what == "empty" else heard.get(request, "I cannot say.")
        if text.isdecimal():
            return self.send(handler, int(text), b'{"error": {"message": "no"}}')
        end = "length" if text.startswith("CUT") or what == "cut" else "stop"
        if what == "malformed":
            text = "Here you are: [[12, 300"
        with self.lock:
            self.answered[request] += 1
        said: dict[str, Any] = {"role": "assistant", "content": text}
        if text == "REFUSAL":
            said |= {"content": None, "refusal": "I can't assist with that."}
        if text == "FILTERED":
            end = "content_filter"
        message = {"index": 0, "finish_reason": end, "message": said}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [message],
            "usage": usage,
        }
        return self.send(handler, 200, json.dumps(reply).encode())

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        if status == 429:
            handler.send_header("retry-after", "0")
        handler.end_headers()
        handler.wfile.write(data)

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def asked(body: dict[str, Any]) -> str:
    """The hash of a request, as the recorder makes it."""
    messages, images = [], []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, list):
            images += [
                base64.b64decode(p["image_url"]["url"].split(",")[1]) for p in content if p["type"] == "image_url"
            ]
            content = content[-1]["text"]
        messages.append({"role": message["role"], "content": content})
    return request_hash(messages, images, None, 0)


def invented(text: str) -> str:
    return re.sub(rf"\b({'|'.join(KINDS)})\b(?= \[\[)", "unicorn", text)


def whole(text: str) -> str:
    return re.sub(r"\[\[[\d,]+\]\]", "[[000,000,999,999]]", text)


def swapped(text: str) -> str:
    boxes = list(dict.fromkeys(re.findall(r"\[\[[\d,]+\]\]", text)))
    if len(boxes) < 2:
        return text
    return text.replace(boxes[0], "#").replace(boxes[1], boxes[0]).replace("#", boxes[1])


def turned(text: str) -> str:
    pairs = [("to the left of", "to the right of"), ("above", "below"), ("more of", "less of"), ("larger", "smaller")]
    for one, two in pairs:
        text = re.sub(f"{one}|{two}", lambda m, one=one, two=two: two if m[0] == one else one, text)
    return text


LIES = (invented, whole, swapped, turned)
