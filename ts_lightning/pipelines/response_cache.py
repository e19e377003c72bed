"""Answers of models on disk by the hash of their request: what was answered is never asked again."""

import hashlib
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ts_lightning.pipelines.llm_client import Chat, Messages, Usage


class CachedChat(Chat):
    """Another backend, with every answer on disk by the hash of its request: what was answered is never asked again.

    `path` is a file of JSON lines; a line that a killed run left unfinished is cut off. Each notes its model (by the
    `identity`, or the name). Those of others, or of a version that did not note it, stay and are not used; answers may
    cost money, so a line says how many before the first request.
    """

    def __init__(self, backend: Chat, path: Path, usage: Usage | None = None) -> None:
        self.backend, self.name, self.codec = backend, backend.name, backend.codec
        self.path, self.usage = path, usage or Usage()
        self.model = hashlib.sha256(getattr(backend, "identity", backend.name).encode()).hexdigest()[:16]
        self.answers: dict[str, str] = {}
        self.others = 0
        self.lock = threading.Lock()
        self.asking: dict[str, threading.Lock] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line)
                    assert line.endswith(b"\n")
                    request, text = row["request"], row["text"]
                except (ValueError, KeyError, TypeError, AssertionError):
                    break
                if row.get("model") == self.model:
                    self.answers[request] = text
                else:
                    self.others += 1
                whole += len(line)
            with open(path, "r+b") as file:
                file.truncate(whole)
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        # half a character of an earlier answer, which no request can hold, would stop every run
        messages = [{name: text.encode("utf-8", "replace").decode() for name, text in one.items()} for one in messages]
        request = request_hash(messages, images, schema, attempt)
        with self.lock:
            mine = self.asking.setdefault(request, threading.Lock())
        with mine:  # the same request from two threads is asked once
            if request in self.answers:
                self.usage.add(cached=1)
                return self.answers[request]
            self._tell_of_others()
            text = self.backend.chat(messages, images, schema, attempt)
            line = json.dumps({"model": self.model, "request": request, "text": text}).encode() + b"\n"
            with self.lock:
                self.file.write(line)  # one write: a kill leaves a whole line or its beginning
                self.answers[request] = text
                self.asking.pop(request, None)
            return text

    def _tell_of_others(self) -> None:
        with self.lock:
            number, self.others = self.others, 0
        if number:
            whose = "of another model, server or temperature, or of a version that did not note it"
            print(f"{self.path}: {number} answers are {whose}: not used, {self.name} is asked", file=sys.stderr)

    def close(self) -> None:
        self.file.close()


def request_hash(messages: Messages, images: Sequence[bytes], schema: dict[str, Any] | None, attempt: int) -> str:
    """sha256 of everything that decides a model's answer."""
    pictures = [hashlib.sha256(one).hexdigest() for one in images]
    text = json.dumps([messages, pictures, schema, attempt], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
