"""Models that write data: `chat(messages, images) -> text`, over a server or a local model."""

import base64
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ts_lightning.data.images import sniff_extension
from ts_lightning.data.remote import without_secrets
from ts_lightning.grounding.still_pictures import open_still, upright
from ts_lightning.pipelines.scenes import Scene
from ts_lightning.pipelines.scout_checks import Rejected

Messages = list[dict[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
REFUSED = {400, 413, 422}  # about this request alone: its picture or its length


class RequestFailed(RuntimeError):
    """A request that got no answer after all tries; what was answered before is in the cache."""


class RequestRefused(RequestFailed):
    """A request that the server will never answer; others may be answered."""


class CutAnswer(Rejected):
    """An answer that ended at the most tokens."""


class Chat(Protocol):
    """A model behind one call. `name` goes into the record, `codec` is its box notation.

    Its answers are kept apart by `name`, or `identity` where a backend has one: models that differ may be called alike.
    """

    name: str
    codec: str

    @property
    def look(self) -> Callable[[Scene | None], None] | None:
        """Of a backend without a model: what tells it the annotations of the picture that it is asked about next."""
        return None

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        """The answer; `schema` asks for JSON of that form, another `attempt` for another sample."""


def messages(task: str, prompt: str) -> Messages:
    """A request of the pipelines; a backend without a model tells them apart by the first word."""
    return [
        {"role": "system", "content": f"{task}: answer in the form that is asked for."},
        {"role": "user", "content": prompt},
    ]


@dataclass
class Usage:
    """What a run asked for: requests, retries, failures, refused and cut ones, tokens and their price per million."""

    price_in: float = 0.0
    price_out: float = 0.0
    requests: int = 0
    cached: int = 0
    retries: int = 0
    failed: int = 0
    refused: int = 0
    cut: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, number in counts.items():
                setattr(self, name, getattr(self, name) + number)

    def as_dict(self) -> dict[str, float]:
        """Counts, and `cost` in the currency of the prices."""
        counts = ("requests", "cached", "retries", "failed", "refused", "cut", "tokens_in", "tokens_out")
        cost = (self.tokens_in * self.price_in + self.tokens_out * self.price_out) / 1e6
        return {name: getattr(self, name) for name in counts} | {"cost": round(cost, 6)}


class OpenAIChat(Chat):
    """Any OpenAI-compatible server, through the `openai` client.

    `concurrency` requests run at once, `per_minute` at most start in a minute (0: no limit). 429 and 5xx answers,
    time-outs and lost connections are tried `tries` times with growing pauses (Retry-After is obeyed, up to
    `longest_wait` seconds), then RequestFailed. A server that refuses a JSON schema, `temperature` or `max_tokens` (as
    OpenAI's reasoning models, which take `max_completion_tokens`) is asked without it from then on. RequestRefused are
    400, 413, 422, a refusal in place of the answer, one that a content filter ended, and one without text after all
    tries. An answer of `max_tokens` that isn't at its end is CutAnswer.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        codec: str = "scout",
        concurrency: int = 8,
        per_minute: float = 0,
        tries: int = 6,
        timeout: float = 120,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        max_tokens: int = 512,
        temperature: float = 0.0,
        usage: Usage | None = None,
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise ModuleNotFoundError("a server needs the extra: pip install 'ts-lightning[generate]'") from None
        self.errors = openai
        self.client = openai.OpenAI(
            api_key=api_key or "none" if base_url else api_key, base_url=base_url, max_retries=0, timeout=timeout
        )
        self.name, self.codec, self.model = f"openai:{model}", codec, model
        self.tries, self.first_wait, self.longest_wait = tries, first_wait, longest_wait
        self.options = {"max_tokens": max_tokens, "temperature": temperature}
        # Two servers may call their models alike. No `max_tokens`: an answer that they cut off is not kept.
        self.identity = json.dumps([self.name, without_secrets(str(self.client.base_url)), temperature])
        self.usage = usage or Usage()
        self.slots, self.pace = threading.Semaphore(concurrency), Pace(per_minute)
        self.left_out: set[str] = set()  # what the server does not take

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        body: dict[str, Any] = {"model": self.model, "messages": _with_images(messages, images), **self.options}
        if attempt:
            body |= {"seed": attempt, "temperature": max(0.7, float(self.options["temperature"]))}
        if schema is not None:
            form = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        with self.slots:
            for number in range(self.tries):
                try:
                    return self._ask(body)
                except (self.errors.APIConnectionError, self.errors.APIStatusError, NoAnswer) as error:
                    last, status = error, getattr(error, "status_code", None)
                    if status in REFUSED:
                        self.usage.add(refused=1)
                        raise RequestRefused(f"HTTP {status} ({_line(error)})") from None
                    if status is not None and status not in RETRIED:
                        self.usage.add(failed=1)
                        raise RequestFailed(f"{self.name}: seen HTTP {status} ({_line(error)}), expected 200") from None
                if number + 1 < self.tries:
                    self.usage.add(retries=1)
                    time.sleep(self._pause(number, last))
        if isinstance(last, EmptyAnswer):  # the server is well: it has nothing to say to this
            self.usage.add(refused=1)
            raise RequestRefused(f"{_line(last)} after {self.tries} tries")
        self.usage.add(failed=1)
        raise RequestFailed(f"{self.name}: seen {_line(last)} after {self.tries} tries, expected an answer")

    def _ask(self, body: dict[str, Any]) -> str:
        try:
            reply = self._reply(body)
            message, end = reply.choices[0].message, reply.choices[0].finish_reason
            text, refusal = message.content, message.refusal
        except (json.JSONDecodeError, IndexError, AttributeError, TypeError) as error:  # a broken body
            raise NoAnswer(f"an unreadable answer ({type(error).__name__})") from None
        if reply.usage is not None:
            self.usage.add(tokens_in=reply.usage.prompt_tokens or 0, tokens_out=reply.usage.completion_tokens or 0)
        if refusal or end == "content_filter":
            self.usage.add(refused=1)
            raise RequestRefused(" ".join(str(refusal or end).split())[:200])
        if end == "length":  # asked again, it would end there again
            self.usage.add(cut=1)
            raise CutAnswer("answer cut off at --max-tokens")
        if not isinstance(text, str) or not text.strip():
            raise EmptyAnswer("an empty answer")
        return text

    def _reply(self, body: dict[str, Any]) -> Any:
        """The server's reply; what it does not take is left out, and from then on where that is what helped."""
        tried: list[str] = []
        while True:
            left_out = {*self.left_out, *tried}
            sent = {name: value for name, value in body.items() if name not in left_out}
            if "max_tokens" in left_out:
                sent["max_completion_tokens"] = body["max_tokens"]
            self.pace.wait()
            self.usage.add(requests=1)
            try:
                reply = self.client.chat.completions.create(**sent)
            except self.errors.APIStatusError as error:
                named = [name for name in ("max_tokens", "temperature") if name in str(error)]
                blamed = next((name for name in (*named, "response_format") if name in sent), None)
                if error.status_code not in (400, 422) or blamed is None:
                    raise
                tried.append(blamed)
            else:
                self.left_out |= {*tried[-1:]}  # an error that repeats the request names them all
                return reply

    def _pause(self, number: int, error: Exception) -> float:
        response = getattr(error, "response", None)
        try:
            asked = float(response.headers.get("retry-after", 0)) if response is not None else 0.0
        except ValueError:
            asked = 0.0
        grown = self.first_wait * 2**number * random.Random(number).uniform(0.8, 1.2)
        return min(max(asked, grown), self.longest_wait)


class NoAnswer(RuntimeError):
    """A reply that holds no answer; asked again."""


class EmptyAnswer(NoAnswer):
    """An answer without text."""


class Pace:
    """Lets `per_minute` calls through in a minute, evenly; 0 lets all through."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.gap = 60.0 / per_minute if per_minute else 0.0
        self.next, self.clock, self.lock = 0.0, clock, threading.Lock()

    def wait(self) -> None:
        with self.lock:
            now = self.clock()
            start = max(now, self.next)
            self.next = start + self.gap
        if start > now:
            time.sleep(start - now)


class LocalChat(Chat):
    """A vision-language (or text) model of transformers in `folder`, greedy, one request at a time.

    ValueError for a vision-language model whose processor needs torchvision.
    """

    def __init__(self, folder: str, codec: str = "scout", max_tokens: int = 256, device: str | None = None) -> None:
        import torch
        from transformers import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoTokenizer,
        )

        from ts_lightning.models.backbones.hf_processor import load_processor, stored_template

        if not Path(folder).is_dir():  # the name of a model would be looked for in the network
            raise ValueError(f"{folder}: seen no such folder, expected a model of transformers in it")
        self.name, self.codec, self.max_tokens = f"local:{Path(folder).name}", codec, max_tokens
        files = [(one.name, one.stat()) for one in sorted(Path(folder).iterdir()) if one.is_file()]
        held = [str(Path(folder).resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)]
        self.identity = json.dumps([self.name, max_tokens, held])
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.tokenizer.chat_template = stored_template(Path(folder)) or self.tokenizer.chat_template
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        self.processor: Any = load_processor(Path(folder), config, self.tokenizer) if sees else None
        kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = kind.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        self.model: Any = model.to(self.device).eval()
        self.lock = threading.Lock()

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        import torch

        with self.lock, torch.inference_mode():
            if images and self.processor is None:
                raise RequestFailed(
                    f"{self.name}: seen a picture, expected text alone (a model without a vision tower)"
                )
            pictures = [upright(open_still(one)).convert("RGB") for one in images]
            prompt = self._prompt(messages, len(pictures))
            if pictures:
                batch = self.processor(text=prompt, images=pictures, return_tensors="pt").to(self.device)
            else:
                batch = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(self.device)
            torch.manual_seed(attempt)
            sampled = {"do_sample": True, "temperature": 0.7} if attempt else {"do_sample": False}
            out = self.model.generate(**batch, max_new_tokens=self.max_tokens, **sampled)
            text = self.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            return str(text)

    def _prompt(self, messages: Messages, pictures: int) -> str:
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        if self.tokenizer.chat_template:
            parts = [
                {
                    **m,
                    "content": [
                        *[{"type": "image"}] * (pictures if i == first else 0),
                        {"type": "text", "text": m["content"]},
                    ],
                }
                for i, m in enumerate(messages)
            ]
            told: Any = parts if self.processor is not None else messages
            return str(self.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True))
        mark = getattr(self.processor, "image_token", "<image>")
        lines = [
            f"{m['role'].upper()}: {(mark + chr(10)) * (pictures if i == first else 0)}{m['content']}"
            for i, m in enumerate(messages)
        ]
        return "\n".join([*lines, "ASSISTANT:"])


def _with_images(messages: Messages, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """The messages with the pictures as data addresses before the first user text."""
    out: list[dict[str, Any]] = [dict(message) for message in messages]
    if images:
        first = next(message for message in out if message["role"] == "user")
        kinds = {"jpg": "jpeg", "png": "png", "webp": "webp"}
        parts: list[dict[str, Any]] = []
        for one in images:
            address = f"data:image/{kinds[sniff_extension(one)]};base64,{base64.b64encode(one).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": address}})
        first["content"] = [*parts, {"type": "text", "text": first["content"]}]
    return out


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
