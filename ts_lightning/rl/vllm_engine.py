"""Rollouts by vLLM: the policy's weights go there after every optimizer step, its completions come back."""

import atexit
import io
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ts_lightning.models.generate import banned_tokens
from ts_lightning.models.ranks import from_first, of_all, rank
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.handover import adapters, base_folder, model_of, served, write_adapter, write_weights
from ts_lightning.rl.sampling import Sampled, check_room
from ts_lightning.rl.vllm_server import OwnServer, Prompt, Refused, Said, ServerError, VLLMServer

log = logging.getLogger("ts_lightning.rl")
URL, FOLDER = "TS_LIGHTNING_VLLM_URL", "TS_LIGHTNING_VLLM_FOLDER"
START = "start"  # subfolder of what a server starts with: packages, adapters, and its `arguments`, one a line
UNLIKELY = -100.0  # added to the logits of banned tokens: the least that vLLM takes


class VLLMEngine:
    """What `RolloutCallback(engine=...)` takes to draw with vLLM in place of its own loop.

    Prompts go as the token ids, and pictures as the pixels, that our encoder made. Log-probabilities of the policy are
    computed again by the trainer, and every token of the loss is weighted by min(policy / sampler, `tis_cap`)
    (`rl.mismatch`). A server that is down is started again, or waited for, gets the weights again and the prompts
    again: nothing is lost; its draws are the engine's own, so a run that is resumed goes on with others.

    Args:
        tis_cap: The largest weight of a token.
        max_mismatch_kl: A larger KL(sampler || policy) stops the run.
        ahead: 1: the next batch's prompts are answered while this one is trained on, by weights that are one step old
            (`train/staleness`).
        retries: How often a step's prompts are asked for again.
        patience: Seconds that a request, or a start, may take.
        url: Address of a server that runs (with `vllm_server.ARGUMENTS` and `vllm_server.ENVIRONMENT`); None: that of
            TS_LIGHTNING_VLLM_URL, and without that variable one is started beside the run, on its machine. A YAML names
            neither this nor what follows: programs and addresses are the environment's.
        python: Interpreter that has vLLM, for a server that is started here (None: TS_LIGHTNING_VLLM_PYTHON).
        arguments: More of vLLM's own arguments for it, beside those of TS_LIGHTNING_VLLM_ARGUMENTS.
        folder: Where weights are handed over: one that the server sees, too (None: TS_LIGHTNING_VLLM_FOLDER, else this
            machine's shared memory).
    """

    def __init__(
        self,
        tis_cap: float = 2.0,
        max_mismatch_kl: float = 0.1,
        ahead: int = 0,
        retries: int = 3,
        patience: float = 900.0,
        url: str | None = None,
        python: str | None = None,
        arguments: list[str] | None = None,
        folder: str | None = None,
    ) -> None:
        for name, value in (("tis_cap", tis_cap), ("max_mismatch_kl", max_mismatch_kl), ("patience", patience)):
            if value <= 0:
                raise ValueError(f"{name}: seen {value}, expected above 0")
        if ahead not in (0, 1):
            raise ValueError(f"ahead: seen {ahead}, expected 0 or 1")
        self.url, self.folder = url or os.environ.get(URL), folder or os.environ.get(FOLDER)
        self.python, self.arguments = python, arguments or []
        self.tis_cap, self.max_mismatch_kl = tis_cap, max_mismatch_kl
        self.retries, self.patience, self.ahead = retries, patience, ahead
        self.run = uuid.uuid4().hex[:8]  # other runs' weights have other versions
        self.server: VLLMServer | None = None
        self.place: Path | None = None
        self.handed = 0
        self.given: list[Path] = []  # adapters that the server may have: more than one folder where some failed
        self.pool: ThreadPoolExecutor | None = None
        self.begun: dict[tuple[str, ...], tuple[int, Future[dict[int, list[Said]]]]] = {}
        self.staleness: list[int] = []  # optimizer steps between the draw and its use, of the last draw's prompts

    def sample_groups(
        self,
        vlm: VLM,
        batch: Mapping[str, Any],
        group: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        stop_after: str | None,
        seed: int,
        step: int,
        all_done: Callable[[Tensor], bool],
        names: Sequence[str],
        wanted: Sequence[bool] | None = None,
    ) -> Sampled:
        """As `rl.sampling.sample_groups`; every rank has to call it. ServerError in one line where no answer comes."""
        request = request_of(vlm, batch, group, max_new_tokens, temperature, top_p, stop_after)
        asked = [b for b in range(len(names)) if wanted is None or wanted[b]]
        begun, future = self.begun.pop(tuple(names), (step, None)) if wanted is None else (step, None)
        found: dict[int, list[Said]] = {}
        if future is not None:
            try:
                found = future.result()
            except ServerError as down:
                log.warning(f"{down}; asking again")
        if any(of_all(len(found) < len(asked))):
            begun = step
            self._answer(vlm, request, asked, found, step)
        self.staleness = [step - begun] * len(asked)
        blank = [Said([vlm.pad_id], [0.0], True)] * group
        said = [found.get(b, blank) for b in range(len(names))]
        flat = [one for answers in said for one in answers]
        logp_NS = torch.zeros(len(flat), max(len(one.token_ids) for one in flat))
        for row, one in enumerate(flat):
            logp_NS[row, : len(one.logp)] = torch.tensor(one.logp)
        return Sampled(
            [[one.token_ids for one in answers] for answers in said],
            logp_NS.to(batch["input_ids"].device),
            [[one.stopped for one in answers] for answers in said],
        )

    def begin(self, vlm: VLM, batch: Mapping[str, Any], names: Sequence[str], step: int, **drawing: Any) -> None:
        """Ask for what the next `sample_groups` of these names will want, with the weights of now, and go on.

        drawing: What `sample_groups` will be given beside them.
        """
        request = request_of(vlm, batch, **drawing)
        try:
            self.hand_over(vlm, step)
        except ServerError as down:
            log.warning(f"{down}; the next step asks again")
            return
        self.pool = self.pool or ThreadPoolExecutor(1, thread_name_prefix="vllm")
        asked = list(range(len(names)))
        self.begun[tuple(names)] = step, self.pool.submit(self._ask, request, asked, {})

    def _ask(self, request: "Request", asked: Sequence[int], found: dict[int, list[Said]]) -> dict[int, list[Said]]:
        """Fill in the answers to the prompts `asked`, by their numbers, but for those that are there."""
        for model in dict.fromkeys(request.models):
            left = [b for b in asked if request.models[b] == model and b not in found]
            answers = self._server.generate([request.prompts[b] for b in left], request.sampling, model)
            found |= dict(zip(left, answers, strict=True))
        return found

    def _answer(
        self, vlm: VLM, request: "Request", asked: Sequence[int], found: dict[int, list[Said]], step: int
    ) -> None:
        """`_ask` with the weights of now; ranks try again together."""
        for attempt in range(self.retries + 1):
            error: ServerError | None = None
            try:
                self.hand_over(vlm, step)
                self._ask(request, asked, found)
            except Refused as refused:
                if refused.status == 400:
                    raise
                error = refused
            except ServerError as down:
                error = down
            if not any(of_all(error is not None)):
                return
            if attempt == self.retries:
                raise error or ServerError("vLLM: another rank got no answer")
            if error is not None:
                log.warning(f"{error}; asking again ({attempt + 1} of {self.retries})")
            time.sleep(1)

    @property
    def _server(self) -> VLLMServer:
        assert self.server is not None
        return self.server

    def hand_over(self, vlm: VLM, step: int) -> None:
        """Give the server the policy as it is after `step` optimizer steps, unless it has it; every rank calls it."""
        version = f"{self.run}-{step}"
        first = rank() == 0
        needed, error = False, None
        if first:
            try:
                self._reach(vlm)
                needed = self._server.version() != version
            except ServerError as down:
                error = down
        url, needed, text = from_first((None if self.server is None else self.server.url, needed, error and str(error)))
        if text is not None:
            raise error or ServerError(text)
        if not first and (self.server is None or self.server.url != url):
            self.server = VLLMServer(url, self.patience)
        if not needed:
            return
        self.handed += 1
        parts, place = adapters(vlm), self._place() / f"{version}-{self.handed}"
        spent = [place]  # what the server reads no more
        try:
            if not parts:
                write_weights(vlm, place)
                if first:
                    self._server.load_weights(place, version)
            elif first:
                spent, self.given = [], [*self.given, place]
                for name in parts:
                    write_adapter(vlm, name, place / name)
                    self._server.load_adapter(name, place / name)
                self._server.name_version(version)
                spent, self.given = self.given[:-1], [place]
        except ServerError as down:
            error = down
        finally:
            for folder in spent if first else ():
                shutil.rmtree(folder, ignore_errors=True)
        if (text := from_first(error and str(error))) is not None:  # the others wait for it
            raise error or ServerError(text)

    def _reach(self, vlm: VLM) -> None:
        """A server that answers: the one of `url`, waited for, or one of our own, started again where it has ended."""
        if self.url is None:
            if self.server is None:
                arguments = [*written_start(vlm, self._place() / START), *self.arguments]
                file = self._place() / "vllm.log"
                self.server = OwnServer(base_folder(vlm), self.python, arguments, file, self.patience)
                atexit.register(self.server.close)
            self.server.start()  # type: ignore[attr-defined]
            return
        if self.server is None:
            if self.folder is not None:  # whoever starts the server may wait for them
                arguments = written_start(vlm, Path(self.folder) / START)
                new = Path(self.folder) / START / "new"
                new.write_text("".join(f"{line}\n" for line in arguments))
                new.rename(new.with_name("arguments"))
            self.server = VLLMServer(self.url, self.patience)
        end = time.monotonic() + self.patience
        while not self.server.is_ready():
            if time.monotonic() > end:
                raise ServerError(f"vLLM at {self.url}: no answer for {self.patience:.0f} s")
            time.sleep(1)

    def _place(self) -> Path:
        if self.place is None:
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self.place = Path(tempfile.mkdtemp(prefix="ts_lightning_", dir=self.folder or memory))
            atexit.register(shutil.rmtree, self.place, ignore_errors=True)
        return self.place


@dataclass(frozen=True)
class Request:
    """The prompts of a batch, who answers each, and how all are sampled.

    No seeds: vLLM 0.32 ends on a CPU where a prompt of one is read in parts.
    """

    prompts: list[Prompt]
    models: list[str]
    sampling: dict[str, Any]


def request_of(
    vlm: VLM,
    batch: Mapping[str, Any],
    group: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop_after: str | None,
    **ours: Any,
) -> Request:
    """A draw as vLLM is asked for it, without what our own loop alone needs; ValueError for what it can't draw."""
    if top_p < 1:
        raise ValueError(f"top_p: seen {top_p} with VLLMEngine, expected 1: its log-probabilities are cut off, too")
    check_room(vlm, batch, max_new_tokens)
    stop = {"stop": [stop_after], "include_stop_str_in_output": True} if stop_after else {}
    sampling = sampling_of(vlm, max_new_tokens, temperature, group, **stop)
    models = [model_of(vlm, task) for task in batch["task"].tolist()]
    return Request(prompts_of(vlm, batch), models, sampling)


def sampling_of(vlm: VLM, max_tokens: int, temperature: float, n: int = 1, **more: Any) -> dict[str, Any]:
    """How vLLM draws as our own loop does, the end mark among the tokens."""
    eos = int(vlm.tokenizer.eos_token_id)
    counts = {"n": n, "temperature": temperature, "max_tokens": max_tokens}
    return {**counts, "ignore_eos": True, "stop_token_ids": [eos], **as_our_loop(vlm), **more}


def as_our_loop(vlm: VLM) -> dict[str, Any]:
    """What every request says, a chat too: no token that our loop bans, and marks are text."""
    return {"logit_bias": {str(token): UNLIKELY for token in banned_tokens(vlm)}, "skip_special_tokens": False}


def started_vllm(vlm: VLM, folder: Path) -> OwnServer:
    """A server of the vlm's weights, written to `folder`: its base with packages or adapter, or all of it."""
    arguments, model = written_start(vlm, folder), base_folder(vlm)
    if not adapters(vlm):
        model = folder / "model"
        write_weights(vlm, model)
    server = OwnServer(model, arguments=arguments, log=folder / "vllm.log")
    server.start()
    return server


def written_start(vlm: VLM, folder: Path) -> list[str]:
    """Write the packages or adapters that a server has from its start; returns its arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    folders = {name: folder / name for name in adapters(vlm)}
    for name, its in folders.items():
        write_adapter(vlm, name, its)
    return served(vlm, folders)


def prompts_of(vlm: VLM, batch: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of a batch (padded on any side) as an engine takes them: one placeholder for each picture."""
    image_id, rows = vlm.backbone.image_token_id, list[Prompt]()
    numbers = batch["images_per_row"].tolist()
    pictures = iter(vlm.encoder.pictures(batch) if any(numbers) else ())
    tokens = iter(vlm.encoder.tokens_of_pictures(batch) if any(numbers) else ())
    for ids_T, valid_T, number in zip(batch["input_ids"], batch["valid"], numbers, strict=True):
        expanded = ids_T[valid_T].tolist()
        own = [next(pictures) for _ in range(number)]
        rows.append(Prompt(_one_each(expanded, image_id, [next(tokens) for _ in own]), expanded, list(map(_png, own))))
    return rows


def _one_each(ids: list[int], image_id: int, counts: Sequence[int]) -> list[int]:
    """`ids` with one placeholder in place of each picture's `counts`."""
    kept, start = list[int](), 0
    for count in counts:
        place = ids.index(image_id, start)
        assert ids[place : place + count] == [image_id] * count, "a picture's placeholders are one run"
        kept += [*ids[start:place], image_id]
        start = place + count
    return kept + ids[start:]


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
