"""Answers that a vLLM server writes, behind our protocol and page: `serve --engine vllm` puts it in `Batch`'s place.

vLLM batches by itself; an answer comes whole.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from http.client import HTTPConnection
from typing import Any

from ts_lightning.models.continuous import FAULT, Likely, Writing
from ts_lightning.models.generate import greedy
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.handover import model_of
from ts_lightning.rl.vllm_engine import prompts_of, sampling_of
from ts_lightning.rl.vllm_server import Prompt, Refused, Said, ServerError, VLLMServer, hang_up
from ts_lightning.serve.line import AWAY
from ts_lightning.serve.openai import Drawing

POLL_S = 0.05


class VLLMBatch:
    """As `models.continuous.Batch`: at most `rows` answers under way.

    A row's task chooses the name that the server answers by. What it can't do, such as boxes that are always finished
    and the likeliest tokens, ends an answer with a line.
    """

    def __init__(self, vlm: VLM, server: VLLMServer, rows: int) -> None:
        self.vlm, self.server, self.rows = vlm, server, rows
        self._writing: dict[Future[list[Said]], Writing] = {}
        self._connections: dict[Writing, HTTPConnection] = {}
        self._pool = ThreadPoolExecutor(rows, "vllm")

    @property
    def active(self) -> list[Writing]:
        """What is being written."""
        return [*self._writing.values()]

    @property
    def room(self) -> int:
        """How many may join."""
        return self.rows - len(self._writing)

    def join(self, batch: Mapping[str, Any], new: Sequence[Writing]) -> None:
        """Send the prompts of a batch, with the pixels that our encoder made."""
        models = [model_of(self.vlm, task) for task in batch["task"].tolist()]
        for prompt, model, one in zip(prompts_of(self.vlm, batch), models, new, strict=True):
            self._writing[self._pool.submit(self._asked, prompt, model, one)] = one

    def step(self) -> list[Writing]:
        """Wait a little; returns the answers that have come."""
        done, _ = wait(self._writing, POLL_S, FIRST_COMPLETED)
        told = {future: one for future, one in self._writing.items() if future in done or one.ended}
        for future, one in told.items():
            del self._writing[future]
            if one.ended:  # nobody waits for it
                self._leave(future, one)
                continue
            if error := future.exception():
                one.ended = _line(error)
            else:
                (said,) = future.result()
                tokens = [token for token in said.token_ids if token != self.vlm.tokenizer.eos_token_id]
                if one.top is not None:
                    one.likely += [Likely(logp, []) for logp in said.logp[: len(tokens)]]
                one.tokens += tokens
                one.ended = "stop" if said.stopped else "length"
        return [*told.values()]

    def clear(self) -> None:
        """Forget what is being written."""
        for future, one in self._writing.items():
            self._leave(future, one)
        self._writing.clear()

    def _leave(self, future: Future[list[Said]], one: Writing) -> None:
        """Take a question back from the server, which would write on and keep a place of the pool."""
        if not future.cancel() and (connection := self._connections.get(one)) is not None:
            hang_up(connection)

    def _asked(self, prompt: Prompt, model: str, one: Writing) -> list[Said]:
        if one.constrain is not None:
            raise ValueError("constrain: can't be had with vLLM, expected none")
        if one.top:
            raise ValueError(f"top_logprobs: seen {one.top} with vLLM, expected 0")
        drawing = one.sampler if isinstance(one.sampler, Drawing) else None
        assert drawing is not None or one.sampler is greedy
        temperature, top_p = (0.0, 1.0) if drawing is None else (drawing.temperature, drawing.top_p)
        if drawing is not None and drawing.seed is not None:  # vLLM 0.32 ends where such a prompt is read in parts
            raise ValueError(f"seed: seen {drawing.seed} with vLLM, expected none")
        if one.top is not None and (temperature not in (0, 1) or top_p < 1):  # it has those of the drawn distribution
            expected = "expected temperature 0, or 1 with top_p 1"
            raise ValueError(f"logprobs: seen temperature {temperature:g}, top_p {top_p:g} with vLLM, {expected}")
        sampling = sampling_of(self.vlm, one.max_new_tokens, temperature, top_p=top_p)
        try:
            return self.server.answer(prompt, sampling, model, partial(self._connections.__setitem__, one))
        finally:
            self._connections.pop(one, None)


def _line(error: BaseException) -> str:
    """How an answer ends by this: the question's fault, vLLM's, or ours."""
    line = " ".join(str(error).split())
    if isinstance(error, ValueError) or (isinstance(error, Refused) and error.status < 500):
        return line
    return f"{AWAY} ({line})" if isinstance(error, ServerError) else f"{FAULT} ({type(error).__name__})"
