"""The line: bounded, in order, left at once, and never stuck."""

import asyncio
import threading
from collections.abc import Generator

import pytest

from ts_lightning.serve.line import Event, Line, LineFull, Question, answer_one_by_one


def counting(threads: set[str], closed: list[int]) -> Generator[Event]:
    try:
        for i in range(3):
            threads.add(threading.current_thread().name)
            yield {"n": i}
    finally:
        closed.append(1)


async def heard(question: Question) -> list[Event]:
    found = []
    while (event := await question.events.get()) is not None:
        found.append(event)
    return found


def test_questions_are_answered_in_order_in_one_thread_and_beyond_the_places_refused() -> None:
    threads: set[str] = set()
    closed: list[int] = []

    async def run() -> list[list[Event]]:
        line = Line(places=4)
        questions = [Question(lambda: counting(threads, closed)) for _ in range(5)]
        for question in questions[:4]:
            line.enter(question)
        with pytest.raises(LineFull):
            line.enter(questions[4])
        line.leave(questions[1])  # its client went: the place is free
        line.enter(questions[4])
        worker = asyncio.create_task(answer_one_by_one(line))
        answers = [await heard(q) for q in (questions[0], questions[2], questions[3], questions[4])]
        assert questions[1].events.empty()
        worker.cancel()
        line.close()
        return answers

    assert asyncio.run(run()) == [[{"n": 0}, {"n": 1}, {"n": 2}, {"done": True}]] * 4
    assert len(threads) == 1
    assert len(closed) == 4


def test_a_fault_is_a_line_and_the_next_question_is_answered() -> None:
    def broken(error: Exception) -> Generator[Event]:
        yield {"n": 0}
        raise error

    async def run() -> list[list[Event]]:
        line = Line()
        begun = [lambda: broken(ValueError("no\nbox")), lambda: broken(KeyError("x")), lambda: counting(set(), [])]
        questions = [Question(begin) for begin in begun]
        for question in questions:
            line.enter(question)
        worker = asyncio.create_task(answer_one_by_one(line))
        answers = [await heard(question) for question in questions]
        worker.cancel()
        line.close()
        return answers

    first, second, third = asyncio.run(run())
    assert first == [{"n": 0}, {"error": "no box"}]
    assert second == [{"n": 0}, {"error": "the server could not answer (KeyError)"}]
    assert third[-1] == {"done": True}


def test_an_answer_ends_when_nobody_listens() -> None:
    said: list[int] = []

    def endless() -> Generator[Event]:
        while True:
            said.append(1)
            yield {}

    async def run() -> None:
        line = Line()
        question, other = Question(endless), Question(lambda: counting(set(), []))
        line.enter(question)
        line.enter(other)
        worker = asyncio.create_task(answer_one_by_one(line))
        await question.events.get()
        line.leave(question)
        assert (await heard(other))[-1] == {"done": True}
        worker.cancel()
        line.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert said
