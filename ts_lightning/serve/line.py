"""The line of questions: bounded, in the order they came, before one worker that answers several at once."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ts_lightning.models.continuous import FAULT, Writing
from ts_lightning.models.vlm import VLM
from ts_lightning.runs.batch import batch_for

PLACES = 16
AWAY = "the server that writes the answers is away"  # begins the error of a question that may be asked again
HELD_BYTES = 64 * 2**20  # of pictures that wait with their questions
PROMPT_TOKENS = 4096  # of the prompts, padding included, that are read at once: their answers wait for each other


class LineFull(Exception):
    """There is no place left in the line."""


@dataclass
class Begun:
    """A question as the model gets it: the task that answers, whether the router chose it, the row, the answer.

    Of a row that the batch has read only the tokens are kept.
    """

    task: str
    automatic: bool
    row: Mapping[str, Any]
    writing: Writing


class Question:
    """`prepare` makes what the model gets, in the worker's thread; `begun` is that, with the answer, or `error` stands.

    held: bytes that it keeps while it waits. times: when it came, when it had begun, when it had ended.
    """

    def __init__(self, prepare: Callable[[], Begun], held: int = 0) -> None:
        self.prepare: Callable[[], Begun] | None = prepare
        self.held = held
        self.begun: Begun | None = None
        self.error, self.ended, self.gone = "", False, False
        self.times = [time.monotonic()]
        self._news = asyncio.Event()

    async def news(self) -> None:
        """Wait until something is new since the last time."""
        await self._news.wait()
        self._news.clear()

    def tell(self) -> None:
        """There is something new."""
        self._news.set()

    def end(self, error: str = "") -> None:
        """It is answered, or has an error."""
        if not self.ended:
            self.error, self.ended, self.prepare = " ".join(error.split()), True, None
            self.times.append(time.monotonic())
        self.tell()


class Line:
    """At most `places` waiting questions, and the one thread in which all work on pictures and models happens.

    One thread means one decoded picture in memory at a time, and no thread that waits for another.
    """

    def __init__(self, places: int = PLACES, thread: ThreadPoolExecutor | None = None) -> None:
        self.places = places
        self._waiting: deque[Question] = deque()
        self._arrived = asyncio.Event()
        self.thread = thread or ThreadPoolExecutor(1, "answers")

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    def enter(self, question: Question) -> None:
        """Take the last place; LineFull where there is none, or none for so many bytes."""
        held = sum(one.held for one in self._waiting)
        if len(self._waiting) >= self.places or (held and question.held and held + question.held > HELD_BYTES):
            raise LineFull
        self._waiting.append(question)
        self._arrived.set()

    def leave(self, question: Question) -> None:
        """Nobody listens any more: the place is free, an answer that has begun ends."""
        question.gone = True
        if question in self._waiting:
            self._waiting.remove(question)
        if question.begun is not None:
            question.begun.writing.ended = question.begun.writing.ended or "left"
        question.end("nobody listens")

    async def next(self) -> Question:
        """The question that has waited longest."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def in_thread(self, call: Callable[..., Any], *given: Any) -> Any:
        """The result of a call in the one thread; other calls wait."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, call, *given)

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


class Together(Protocol):
    """What writes several answers: `models.continuous.Batch`, or vLLM in its place."""

    vlm: VLM

    @property
    def active(self) -> list[Writing]: ...

    @property
    def room(self) -> int: ...

    def join(self, batch: Mapping[str, Any], new: Sequence[Writing]) -> None: ...

    def step(self) -> list[Writing]: ...

    def clear(self) -> None: ...


async def answer_together(
    line: Line, batch: Together, done: Callable[[Question], None] = lambda question: None
) -> None:
    """The worker: waiting questions join the running batch between two tokens; `done` is told of each that has ended.

    Between two tokens other calls get their turn in the thread.
    """
    asked: dict[Writing, Question] = {}
    groups: deque[list[Question]] = deque()  # to be read; a batch that takes no rows in later leaves some for its end
    while True:
        joining: list[Question] = []
        while not groups and ((not asked and not joining) or (len(line) and len(joining) < batch.room)):
            question = await line.next()
            if await _prepared(line, question):
                joining.append(question)
            else:
                done(question)
        groups += _read_at_once(joining)
        try:
            while groups and len(groups[0]) <= batch.room:
                group = groups.popleft()
                asked |= {begun(question).writing: question for question in group}
                await line.in_thread(_join, batch, [begun(question) for question in group])
            told = await line.in_thread(batch.step)
        except Exception as error:  # whatever it is, the clients get a line and the server lives on
            logging.getLogger(__name__).exception("questions could not be answered")
            batch.clear()
            told = [*asked]
            for writing in told:
                writing.ended = f"{FAULT} ({type(error).__name__})"
        active = set(batch.active)
        for writing in told:
            asked[writing].tell()
            if writing not in active:  # one that its client left in the middle of the step goes with the next
                question = asked.pop(writing)
                question.end("" if writing.ended in ("stop", "length", "left") else writing.ended)
                done(question)


def begun(question: Question) -> Begun:
    """What the model got of a question that has begun."""
    assert question.begun is not None
    return question.begun


async def _prepared(line: Line, question: Question) -> bool:
    """Whether a question has begun; otherwise it has ended with its error."""
    prepare, question.prepare = question.prepare, None
    try:
        made = await line.in_thread(prepare) if prepare is not None else None
        if made is not None and not question.ended:  # its client may have gone meanwhile
            question.begun = made
            question.times.append(time.monotonic())
    except ValueError as error:
        question.end(str(error))
    except Exception as error:  # whatever it is, the client gets a line and the server lives on
        logging.getLogger(__name__).exception("a question could not be answered")
        question.end(f"{FAULT} ({type(error).__name__})")
    question.tell()
    return not question.ended


def _read_at_once(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """The questions in groups of at most `PROMPT_TOKENS`, like lengths together."""
    group: list[Question] = []
    for question in sorted(questions, key=lambda question: len(begun(question).row["input_ids"])):
        if group and (len(group) + 1) * len(begun(question).row["input_ids"]) > PROMPT_TOKENS:
            yield group
            group = []
        group.append(question)
    if group:
        yield group


def _join(batch: Together, group: Sequence[Begun]) -> None:
    batch.join(batch_for(batch.vlm, [one.row for one in group]), [one.writing for one in group])
    for one in group:  # its pictures have been read
        one.row = {"input_ids": one.row["input_ids"]}
