"""The line of questions: bounded, in the order they came, before one worker."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Event = dict[str, Any]
PLACES = 16


class LineFull(Exception):
    """There is no place left in the line."""


class Question:
    """`begin` makes the events of the answer, in the worker's thread; `events` are those not yet read, None the end."""

    def __init__(self, begin: Callable[[], Generator[Event]]) -> None:
        self.begin = begin
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self.gone = False


class Line:
    """At most `places` waiting questions, and the one thread in which all work on pictures and models happens.

    One thread means one decoded picture in memory at a time, and no thread that waits for another.
    """

    def __init__(self, places: int = PLACES) -> None:
        self.places = places
        self._waiting: deque[Question] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "answers")

    def enter(self, question: Question) -> None:
        """Take the last place; LineFull where there is none."""
        if len(self._waiting) >= self.places:
            raise LineFull
        self._waiting.append(question)
        self._arrived.set()

    def leave(self, question: Question) -> None:
        """Nobody listens any more: the place is free, an answer that has begun ends."""
        question.gone = True
        if question in self._waiting:
            self._waiting.remove(question)

    async def next(self) -> Question:
        """The question that has waited longest."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def in_thread(self, call: Callable[..., Any], *given: Any) -> Any:
        """The result of a call in the one thread; other calls wait."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *given)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


async def answer_one_by_one(line: Line) -> None:
    """The worker: the whole answer to one question, then the next; between two tokens other calls get their turn.

    A worker that answers several at once takes more of `line.next()` and tells each question its own events.
    """
    while True:
        question = await line.next()
        events = question.begin()
        try:
            while not question.gone and (event := await line.in_thread(next, events, None)) is not None:
                question.events.put_nowait(event)
            question.events.put_nowait({"done": True})
        except ValueError as error:
            question.events.put_nowait({"error": " ".join(str(error).split())})
        except Exception as error:  # whatever it is, the page gets a line and the server lives on
            logging.getLogger(__name__).exception("a question could not be answered")
            question.events.put_nowait({"error": f"the server could not answer ({type(error).__name__})"})
        finally:
            await line.in_thread(events.close)
        question.events.put_nowait(None)
