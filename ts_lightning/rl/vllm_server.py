"""A vLLM server, ours or another's, as it is asked: prompts as token ids with pictures, weights from folders."""

import base64
import ctypes
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PYTHON = "TS_LIGHTNING_VLLM_PYTHON"  # the interpreter of the environment that has vLLM
MORE = "TS_LIGHTNING_VLLM_ARGUMENTS"  # vLLM's arguments for servers that are started here
BASE = "base"  # the name under which the server has its own weights
# Routes that take weights are vLLM's development ones: a server of ours listens on this machine only.
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
# Of a server of ours: token ids in and out, and log-probabilities of what was drawn from (temperature, banned tokens).
# A folder's generation_config would put its repetition_penalty and top_k on clients that name none.
ARGUMENTS = (
    *("--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--served-model-name", BASE),
    *("--generation-config", "vllm"),
)
LEAVE = 60.0  # seconds that an ending server may take
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it; looked up before any fork
_PR_SET_PDEATHSIG = 1


class ServerError(OSError):
    """A server that is not there, does not answer, or answers with an error; the message is one line."""


class Refused(ServerError):
    """The server answered with an error of the request: to ask again would not help. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Prompt:
    """`token_ids` have one placeholder a picture; `expanded` are those that the model is to see; pictures are PNGs."""

    token_ids: list[int]
    expanded: list[int]
    pictures: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Said:
    """One answer: its tokens with their log-probabilities; `stopped`: it ended by itself."""

    token_ids: list[int]
    logp: list[float]
    stopped: bool


class VLLMServer:
    """The routes of a vLLM server at `url` that rollouts and certificates need.

    `patience`: seconds that one request may take. Errors are `ServerError`s.
    """

    def __init__(self, url: str, patience: float = 600.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"url: seen {url!r}, expected http://HOST:PORT")
        self.url, self.host, self.port = url, parts.hostname, parts.port or 80
        self.patience = patience

    def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        patience: float | None = None,
        opened: Callable[[http.client.HTTPConnection], object] = lambda connection: None,
    ) -> Any:
        """GET, or POST of a body; the JSON of the answer, or its text. `opened` gets what `hang_up` takes."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=patience or self.patience)
        opened(connection)
        try:
            data = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"vLLM at {self.url}: {path}: {error!r:.200}") from None
        finally:
            connection.close()
        if response.status >= 400:
            reason = " ".join(text.split())[:300]
            raise Refused(response.status, f"vLLM at {self.url}: {path}: status {response.status}: {reason}")
        try:
            return json.loads(text)
        except ValueError:
            return text

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            self.call("/health", patience=min(10.0, self.patience))
        except ServerError:
            return False
        return True

    def models(self) -> list[str]:
        """The names that requests may ask for."""
        return [model["id"] for model in self.call("/v1/models")["data"]]

    def version(self) -> str:
        """Which weights it was given last; a server that was started again has forgotten it."""
        return str(self.call("/weight_info")["weight_version"])

    def name_version(self, version: str) -> None:
        """Say which weights it has, when it has all of them."""
        self.call("/update_weight_version", {"new_version": version})

    def load_weights(self, folder: Path, version: str) -> None:
        """Read all weights again, from a folder in the layout of the model's own."""
        self.call("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        for cache in ("prefix", "mm", "encoder"):  # the scheduler's account of pictures, too: the worker's is gone
            self.call(f"/reset_{cache}_cache", {})
        self.name_version(version)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Read a LoRA adapter or a package again under a model name; its folder has to stay while it is served.

        vLLM reads it again where other adapters took its place; with `load_inplace`, it would at every step.
        """
        if name in self.models():
            self.call("/v1/unload_lora_adapter", {"lora_name": name})
        self.call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        self.call("/reset_prefix_cache", {})

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Mapping[str, Any],
        model: str = BASE,
        width: int = 64,
    ) -> list[list[Said]]:
        """The `n` answers to each prompt, which the server batches as it likes; at most `width` prompts are under way.

        sampling: what vLLM's SamplingParams take. `Refused` where the server reads another prompt than `expanded`.
        """
        with ThreadPoolExecutor(max(1, min(width, len(prompts)))) as pool:
            return list(pool.map(lambda prompt: self.answer(prompt, sampling, model), prompts))

    def answer(
        self,
        prompt: Prompt,
        sampling: Mapping[str, Any],
        model: str = BASE,
        opened: Callable[[http.client.HTTPConnection], object] = lambda connection: None,
    ) -> list[Said]:
        """`generate` for one prompt; `opened` as in `call`."""
        body: dict[str, Any] = {"model": model, "token_ids": prompt.token_ids, "return_token_ids": True}
        body["sampling_params"] = {"logprobs": 0, **sampling}
        if prompt.pictures:
            body["content_parts"] = [{"type": "image_url", "url": data_url(picture)} for picture in prompt.pictures]
        answer = self.call("/inference/v1/generate", body, opened=opened)
        if (seen := answer.get("prompt_token_ids")) is not None and seen != prompt.expanded:
            expected = f"expected {len(prompt.expanded)} as in training (another size of pictures, or another template)"
            raise Refused(400, f"vLLM at {self.url}: seen a prompt of {len(seen)} tokens, {expected}")
        return [
            Said(
                choice["token_ids"],
                [float(token["logprob"]) for token in choice["logprobs"]["content"]],
                choice["finish_reason"] == "stop",
            )
            for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
        ]


def hang_up(connection: http.client.HTTPConnection) -> None:
    """End a request that another thread waits for, with a `ServerError` there; vLLM stops writing its answer."""
    if connection.sock is not None:
        with suppress(OSError):  # it has ended meanwhile
            connection.sock.shutdown(socket.SHUT_RDWR)


def data_url(picture: bytes) -> str:
    """An encoded picture as clients send it."""
    kind = "png" if picture[:4] == b"\x89PNG" else "webp" if picture[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


class OwnServer(VLLMServer):
    """A server that is started here, on a free port of this machine, and ends with `close`.

    Where the thread that called `start` ends in another way, be it killed, the server ends, too (on Linux).

    Args:
        folder: The base, in its public layout.
        python: Interpreter with vLLM (None: what the environment variable TS_LIGHTNING_VLLM_PYTHON says).
        arguments: More of vLLM's own, such as ["--max-model-len", "4096"].
        log: File of what it says.
        patience: As in `VLLMServer`; a start may take as long.
    """

    def __init__(
        self,
        folder: str | Path,
        python: str | None = None,
        arguments: Sequence[str] = (),
        log: Path | None = None,
        patience: float = 900.0,
    ) -> None:
        python = python or os.environ.get(PYTHON)
        if python is None or not Path(python).is_file():
            expected = f"expected the interpreter of an environment with vLLM ({PYTHON} says it, too)"
            raise ValueError(f"python: seen {python!r}, {expected}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}", patience)
        self.command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        self.command += ["--host", "127.0.0.1", "--port", str(port), *ARGUMENTS, *arguments]
        self.command += shlex.split(os.environ.get(MORE, ""))
        self.environment, self.log = {**os.environ, **ENVIRONMENT}, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers; `ServerError` with its last line if it ends."""
        if self.process is None or self.process.poll() is not None:
            self._clear()
            with open(self.log or os.devnull, "ab") as out:
                self.process = subprocess.Popen(
                    self.command,
                    env=self.environment,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
        end = time.monotonic() + self.patience
        while not self.is_ready():
            if self.process.poll() is not None:
                raise ServerError(f"vLLM ended with status {self.process.returncode}: {self.last_line()}")
            if time.monotonic() > end:
                raise ServerError(f"vLLM at {self.url}: not ready after {self.patience:.0f} s: {self.last_line()}")
            time.sleep(1)

    def last_line(self) -> str:
        """The last line of its log that tells of an error, else the last one."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log and self.log.is_file() else []
        told = [line for line in lines if "Error" in line] or lines
        return (told or ["it said nothing"])[-1].strip()[:300]

    def close(self) -> None:
        """End it, and what it started."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(LEAVE)
        self._clear()

    def _clear(self) -> None:
        """End what a server left behind: the engine of one that was killed goes on, and keeps its memory."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


def _end_with_parent() -> None:
    """In the child, before vLLM: SIGTERM comes when the thread that started it has ended."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
