"""The OpenAI protocol: what a chat request may hold, and what its answer looks like."""

import base64
import binascii
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ts_lightning.grounding.answer import read_answer
from ts_lightning.models.generate import Sampler, greedy
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import tempered
from ts_lightning.rl.sampling import pick
from ts_lightning.serve.asked import MAX_IMAGES, MAX_TEXT, MAX_TEXTS, read_flag, read_json, read_list, read_text
from ts_lightning.serve.conversation import MAX_NEW_TOKENS, said
from ts_lightning.serve.line import Begun

MAX_TOP = 20
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Byte-level tokenizers write a byte that prints as itself, and the others in turn as the letters from 256 on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = sorted({*range(256)} - {*_PRINTED})
_BYTE_OF = {chr(b): b for b in _PRINTED} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}
EMPTY: tuple[Any, ...] = (None, [], {}, "")  # clients write fields that nobody set
# What changes nothing where it is empty or has these values, and can't be done where it has others.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p"), (0,)),
    "repetition_penalty": (1,),
    "top_k": (-1, 0),
    "response_format": ({"type": "text"},),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "reasoning_effort": ("none",),
    "modalities": (["text"],),
    **dict.fromkeys(("logit_bias", "stop", "tools", "functions"), ()),
}
IGNORED = {
    *("user", "store", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"),
    "parallel_tool_calls",  # there are no tools
}
READ = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "logprobs"),
    *("top_logprobs", "stream", "stream_options", "constrain"),
}
# The same of a message; clients send a reply back with all its fields, `boxes` of ours among them.
MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("tool_calls", "annotations", "function_call", "refusal", "audio"), ()
)
MESSAGE_READ = {"role", "content", "name", "boxes"}
DETAILS = ("auto", "low", "high")  # clients send one unasked; a picture is read in the size that the model has


@dataclass(frozen=True)
class Chat:
    """A request for `/v1/chat/completions`; `top` as in `Writing`, `constrain` is ours."""

    model: str
    images: list[bytes]
    texts: list[str]
    max_tokens: int
    sampler: Sampler
    top: int | None
    stream: bool
    usage: bool
    constrain: bool


class UnknownModel(ValueError):
    """A model that is not served."""


def read_chat(body: bytes, models: Collection[str]) -> Chat:
    """A chat request, checked; ValueError in one line for what is none or can't be done here, UnknownModel for that.

    Messages are the user's and the model's in turn. Pictures are data URLs, read before the first text wherever they
    stand. Without a temperature the answer is greedy.
    """
    asked = read_json(body)
    _check_fields(asked, READ, NEUTRAL, ignored=IGNORED)
    model = read_text(asked.get("model"), "model")
    if model not in models:
        raise UnknownModel(f"model: seen {model[:80]!r}, expected one of {', '.join(models)}")
    images: list[bytes] = []
    texts = []
    for number, message in enumerate(read_list(asked, "messages", MAX_TEXTS)):
        texts.append(_message(message, number, images))
    if len(texts) % 2 == 0:
        raise ValueError(f"messages: seen {len(texts)}, expected the user's and the model's in turn, the user's last")
    if (characters := sum(map(len, texts))) > MAX_TEXT:
        raise ValueError(f"messages: seen {characters} characters, expected at most {MAX_TEXT}")
    limits = [asked.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((one for one in limits if one is not None), MAX_NEW_TOKENS)
    temperature = _number(asked, "temperature", 0, 0, 2)
    top_p = _number(asked, "top_p", 1, 0, 1)
    seed = asked.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise ValueError(f"seed: seen {str(seed)[:40]}, expected a whole number from 0 to 2^63")
    if type(limit) is not int or limit < 1:
        raise ValueError(f"max_tokens: seen {str(limit)[:40]}, expected a whole number from 1")
    top = 0 if asked.get("top_logprobs") is None else asked["top_logprobs"]
    if type(top) is not int or not 0 <= top <= MAX_TOP:
        raise ValueError(f"top_logprobs: seen {str(top)[:40]}, expected a whole number from 0 to {MAX_TOP}")
    logprobs = read_flag(asked, "logprobs")
    if top and not logprobs:
        raise ValueError(f"top_logprobs: seen {top} without logprobs, expected logprobs: true beside it")
    options = {} if asked.get("stream_options") is None else asked["stream_options"]
    if not isinstance(options, dict):
        raise ValueError(f"stream_options: seen {type(options).__name__}, expected an object")
    _check_fields(options, {"include_usage"}, {"include_obfuscation": (False,)}, "stream_options.")
    return Chat(
        model,
        images,
        texts,
        limit,
        Drawing(temperature, top_p, seed) if temperature else greedy,
        top if logprobs else None,
        read_flag(asked, "stream"),
        read_flag(options, "include_usage"),
        read_flag(asked, "constrain"),
    )


def _check_fields(
    holder: Mapping[str, Any],
    read: Collection[str],
    neutral: Mapping[str, tuple[Any, ...]],
    where: str = "",
    ignored: Collection[str] = (),
) -> None:
    """ValueError for the first field that would be left out of account; an empty one asks for nothing."""
    for name, value in holder.items():
        if value in EMPTY:
            continue
        if name in neutral:
            if value not in neutral[name]:
                raise ValueError(f"{where}{name}: seen {str(value)[:40]}, expected none: this server can't do it")
        elif name not in read and name not in ignored:
            raise ValueError(f"{where}{name[:40]}: seen in the request, expected some of {', '.join(sorted(read))}")


def _message(message: Any, number: int, images: list[bytes]) -> str:
    """The text of a message; its pictures are put behind `images`."""
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise ValueError(f"{where}: seen {type(message).__name__}, expected an object")
    expected = "assistant" if number % 2 else "user"
    if message.get("role") != expected:
        seen = str(message.get("role"))[:40]
        raise ValueError(f"{where}.role: seen {seen!r}, expected {expected}: users and model in turn, no system prompt")
    _check_fields(message, MESSAGE_READ, MESSAGE_NEUTRAL, f"{where}.")
    content = message.get("content")
    if isinstance(content, str):
        return read_text(content, where)
    texts = []
    for part in read_list(message, "content", MAX_TEXTS, where):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(read_text(part.get("text"), where))
        elif kind == "image_url" and expected == "user":
            images.append(_picture(part.get("image_url"), where))
        else:
            raise ValueError(f"{where}.content: seen a part of type {str(kind)[:40]!r}, expected text or image_url")
        _check_fields(part, {"type", kind}, {}, f"{where}.content.")
    if len(images) > MAX_IMAGES:
        raise ValueError(f"messages: seen {len(images)} pictures, expected at most {MAX_IMAGES}")
    return "\n".join(texts)


def _picture(part: Any, where: str) -> bytes:
    url = part.get("url") if isinstance(part, dict) else None
    if not isinstance(url, str) or not url.startswith("data:image/") or ";base64," not in url[:64]:
        raise ValueError(
            f"{where}.image_url: seen {str(url)[:40]!r}, expected data:image/png;base64,... (nothing is fetched)"
        )
    _check_fields(part, {"url"}, {"detail": DETAILS}, f"{where}.image_url.")
    try:
        return base64.b64decode(url[url.index(",") + 1 :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}.image_url: seen no base64 ({error}), expected a picture's") from None


def _number(asked: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name}: seen {str(value)[:40]}, expected a number from {low} to {high}")
    return float(value)


class Drawing:
    """A sampler with a generator of its own: the same draws in whatever company, and again with the same seed."""

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self.temperature, self.top_p, self.seed = temperature, max(top_p, 1e-6), seed
        self._generator = torch.Generator().manual_seed(secrets.randbits(62) if seed is None else seed)

    def __call__(self, logits_BV: Tensor, rows_B: Tensor) -> Tensor:
        """A token of each row."""
        noise_B = torch.rand(len(logits_BV), generator=self._generator, dtype=torch.float64).to(logits_BV.device)
        return pick(tempered(logits_BV, self.temperature, ()), noise_B, self.top_p)


def boxes_of(vlm: VLM, text: str, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """What an answer points at, in pixels of the sent pictures (as displayed).

    [{"image", "box": [x1, y1, x2, y2] or None, "points": [[x, y]], "phrase", "step", "start", "end"}]; start and end
    are characters of the text. Without a picture there is none.
    """
    found = []
    for thing in read_answer(text, vlm.codec, list(sizes)).objects if sizes else []:
        image = thing.image or 0
        width, height = sizes[image]
        points = [[round(x * width, 2), round(y * height, 2)] for x, y in thing.region.points]
        box = [*points[0], *points[1]] if thing.is_box else None
        about = {"phrase": thing.phrase, "step": thing.step, "start": thing.start, "end": thing.end}
        found.append({"image": image, "box": box, "points": points, **about})
    return found


class Reply:
    """The objects of one answer: a whole one, or chunks while it is written."""

    def __init__(self, vlm: VLM, model: str, sizes: Sequence[tuple[int, int]], begun: Begun) -> None:
        self.vlm, self.sizes, self.begun = vlm, sizes, begun
        self.about = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "task": begun.task,
        }
        self._role, self._sent, self._tokens = {"role": "assistant"}, 0, 0

    def whole(self) -> dict[str, Any]:
        """`chat.completion`."""
        text = said(self.vlm, self.begun.writing.tokens)
        message = {"role": "assistant", "content": text, "boxes": boxes_of(self.vlm, text, self.sizes)}
        choice = {"index": 0, "message": message, "finish_reason": self.begun.writing.ended, "logprobs": None}
        if self.begun.writing.top is not None:
            choice["logprobs"] = {"content": self._likely(0, len(self.begun.writing.tokens))}
        return {**self.about, "object": "chat.completion", "choices": [choice], "usage": self.usage()}

    def chunks(self, last: bool, usage: bool) -> Iterator[dict[str, Any]]:
        """`chat.completion.chunk`s of what is new; boxes come with the last, when all of the text is known."""
        writing, stop = self.begun.writing, len(self.begun.writing.tokens)
        text = said(self.vlm, writing.tokens[:stop])
        whole = text if last else text.rstrip("\ufffd")  # half of a character waits for its other half
        delta: dict[str, Any] = {**self._role, "content": whole[self._sent :]}
        self._role = {}  # once: clients add up what they get
        logprobs = {"content": self._likely(self._tokens, stop)} if writing.top is not None else None
        self._sent, self._tokens = max(self._sent, len(whole)), stop
        if last:
            delta["boxes"] = boxes_of(self.vlm, text, self.sizes)
        yield self._chunk(delta, logprobs, writing.ended if last else None)
        if last and usage:
            yield {**self.about, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens; an answer's end mark counts."""
        writing, prompt = self.begun.writing, len(self.begun.row["input_ids"])
        written = len(writing.tokens) + (writing.ended == "stop")
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _chunk(self, delta: dict[str, Any], logprobs: Any, ended: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": ended}
        return {**self.about, "object": "chat.completion.chunk", "choices": [choice]}

    def _likely(self, start: int, stop: int) -> list[dict[str, Any]]:
        writing = self.begun.writing
        return [
            {**self._token(token, likely.logp), "top_logprobs": [self._token(*pair) for pair in likely.top]}
            for token, likely in zip(writing.tokens[start:stop], writing.likely[start:stop], strict=True)
        ]

    def _token(self, token: int, logp: float) -> dict[str, Any]:
        data = token_bytes(self.vlm.tokenizer, token)
        return {"token": data.decode(errors="replace"), "logprob": max(logp, -9999.0), "bytes": list(data)}


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """What a token adds to a text, as UTF-8; it may be a part of a character."""
    raw = tokenizer.convert_ids_to_tokens(token)
    if raw is None:  # an id beyond the tokenizer's
        return b""
    if match := _BYTE.fullmatch(raw):
        return bytes.fromhex(match[1])
    if "\u2581" in raw:  # SentencePiece's blank, which decode() would strip
        return bytes(raw.replace("\u2581", " ").encode())
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if "\ufffd" in text and _BYTE_OF.keys() >= set(raw):
        return bytes(_BYTE_OF[letter] for letter in raw)
    return text.encode()


def error_of(status: int, line: str) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error", 500: "server_error"}
    code = {404: "model_not_found", 503: "overloaded"}.get(status)
    return {"error": {"message": line, "type": kinds.get(status, "invalid_request_error"), "param": None, "code": code}}


def models_of(names: Collection[str]) -> dict[str, Any]:
    """`/v1/models`."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "ts_lightning"} for name in names],
    }
