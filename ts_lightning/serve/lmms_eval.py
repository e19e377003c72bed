"""lmms-eval's model of a checkpoint, a package or a server: `python -m lmms_eval --model ts_lightning`.

Only lmms-eval imports this file; it finds it by the entry point `lmms_eval.models`.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ts_lightning.runs.ask import BATCH, ask
from ts_lightning.runs.load import load

CROWD = 16  # requests to a server at once
# lmms-eval's for a task that says nothing (0.7.3), which would cut an answer behind its thought; a task that says so
# itself looks the same
UNSAID = "\n\n"


def manifest() -> ModelManifest:
    """What the entry point gives."""
    return ModelManifest("ts_lightning", simple_class_path=f"{__name__}.TSLightning")


class TSLightning(lmms):
    """Greedy answers of `ask`, or of a server.

    Args:
        ckpt: What `load` takes: a run, a checkpoint, a package, `hub:NAME` ...
        base_url: In place of `ckpt`: a server's, such as http://127.0.0.1:7860/v1.
        task: The path that answers: auto (the task router), understanding, or a skill; of a server its `model`.
        max_new_tokens: Longest answer, where a task says nothing.
        device: auto (the GPU where there is one), cpu, cuda or cuda:N.
    """

    def __init__(
        self,
        ckpt: str = "",
        base_url: str = "",
        task: str = "auto",
        max_new_tokens: int = 256,
        device: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__()
        if bool(ckpt) == bool(base_url):
            raise ValueError("model_args: seen ckpt and base_url both or neither, expected one of them")
        self.base_url, self.path, self.limit = base_url, task, int(max_new_tokens)
        self.vlm = load(ckpt, device).vlm if ckpt else None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request; a batch has those of one length at most."""
        asked = [self._asked(request.args) for request in requests]
        if self.vlm is None:
            with ThreadPoolExecutor(CROWD) as crowd:
                texts = list(crowd.map(lambda one: self._served(*one[:3]), asked))
        else:
            texts = [""] * len(asked)
            order = sorted(range(len(asked)), key=lambda i: (asked[i][2], len(asked[i][1])))
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                longest = max(asked[i][2] for i in part)
                replies = ask(
                    self.vlm, [asked[i][0] for i in part], [asked[i][1] for i in part], self.path, longest
                )  # fmt: skip
                for i, reply in zip(part, replies, strict=True):
                    texts[i] = reply.text
        return [_before(text, until) for text, (*_, until) in zip(texts, asked, strict=True)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Tasks of multiple choice by log-likelihood are not answered."""
        raise NotImplementedError("ts_lightning answers tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Dialogues with the task in between are not answered."""
        raise NotImplementedError("ts_lightning answers tasks of output_type generate_until")

    def _asked(self, given: Any) -> tuple[list[Any], str, int, list[str]]:
        """(pictures, question, longest answer, what ends it) of a request."""
        context, settings, doc_to_visual, number, task, split = given
        pictures = doc_to_visual(self.task_dict[task][split][number]) or []
        until = settings.get("until") or []
        until = [end for end in ([until] if isinstance(until, str) else until) if end != UNSAID]
        limit = int(settings.get("max_new_tokens") or self.limit)
        return list(pictures), context, limit, until

    def _served(self, pictures: Sequence[Any], question: str, limit: int) -> str:
        from openai import OpenAI

        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        for picture in pictures:
            stream = io.BytesIO()
            picture.convert("RGB").save(stream, "PNG")
            url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
        client = OpenAI(base_url=self.base_url, api_key="none", max_retries=20)  # a full line says 503
        messages: Any = [{"role": "user", "content": content}]
        reply = client.chat.completions.create(model=self.path, messages=messages, max_tokens=limit)
        return reply.choices[0].message.content or ""


def _before(text: str, until: Sequence[str]) -> str:
    for end in until:
        text = text.split(end)[0] if end else text
    return text.strip()
