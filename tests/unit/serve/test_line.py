"""The line: bounded, in order, answered together, left at once, and never stuck."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from tests.unit.models.hf_families import make_folder
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Batch, Writing
from ts_lightning.runs.ask import sample_of
from ts_lightning.serve import line as line_module
from ts_lightning.serve.line import Begun, Line, LineFull, Question, answer_together
from ts_lightning.serve.metrics import Metrics

VLM = PlainVLM(TinyBackbone(), train=[]).eval()


def said(
    token: int = 100, after: Callable[[], None] = lambda: None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A sampler that always says one token."""

    def sampler(logits_BV: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
        after()
        return torch.tensor([token])

    return sampler


def begun(tokens: int = 3, **how: object) -> Begun:
    row = VLM.encode(sample_of([], "What color?", "understanding"), True)
    return Begun("understanding", True, row, Writing(tokens, **({"sampler": said()} | how)))


async def ended(question: Question) -> Question:
    while not question.ended:
        await question.news()
    return question


def with_worker(
    line: Line,
    run: Callable[[], Awaitable[None]],
    rows: int = 16,
    done: Callable[[Question], None] = lambda question: None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    vlm: PlainVLM = VLM,
) -> None:
    async def whole() -> None:
        batch = Batch(vlm, rows, within)
        worker = asyncio.create_task(answer_together(line, batch, done))
        await run()
        worker.cancel()
        assert not batch.active
        line.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_questions_are_answered_in_one_thread_and_beyond_the_places_refused() -> None:
    line, threads, done = Line(places=4), set[str](), list[Question]()

    def prepare() -> Begun:
        return begun(sampler=said(after=lambda: threads.add(threading.current_thread().name)))

    async def run() -> None:
        questions = [Question(prepare) for _ in range(5)]
        for question in questions[:4]:
            line.enter(question)
        with pytest.raises(LineFull):
            line.enter(questions[4])
        line.leave(questions[1])  # its client went: the place is free
        line.enter(questions[4])
        for i in (0, 2, 3, 4):
            question = await ended(questions[i])
            assert question.begun is not None
            assert (question.begun.writing.tokens, question.error) == ([100] * 3, "")
            assert question.times == sorted(question.times)
        assert questions[1].begun is None

    with_worker(line, run, rows=2, done=done.append)
    assert len(threads) == 1
    assert len(done) == 4


def test_a_question_joins_those_that_are_being_answered() -> None:
    line, seen = Line(), list[int]()

    async def run() -> None:
        long, short = Question(lambda: begun(40)), Question(lambda: begun(2))
        line.enter(long)
        while long.begun is None or len(long.begun.writing.tokens) < 5:
            await long.news()
        line.enter(short)
        await ended(short)
        assert not long.ended
        seen.append(len(long.begun.writing.tokens))
        await ended(long)

    with_worker(line, run)
    assert 5 <= seen[0] < 40


def test_long_questions_of_a_model_that_takes_no_rows_in_later_are_answered_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers keep a recurrent state; the prompts are too long to be read at once."""
    vlm, line = PlainVLM(HFBackbone(str(make_folder("qwen3_5", tmp_path)))).eval(), Line()
    monkeypatch.setattr(line_module, "PROMPT_TOKENS", 120)

    def prepare(words: int) -> Begun:
        row = vlm.encode(sample_of([], "what " * words, "understanding"), True)
        return Begun("understanding", True, row, Writing(3, sampler=said()))

    async def run() -> None:
        questions = [Question(lambda words=words: prepare(words)) for words in (40, 60, 50, 5, 5)]
        for question in questions:
            line.enter(question)
        for question in questions:
            await ended(question)
            assert question.begun is not None
            assert (question.begun.writing.tokens, question.error) == ([100] * 3, "")

    with_worker(line, run, vlm=vlm)


def test_pictures_that_the_batch_has_read_are_not_kept_with_the_question() -> None:
    line = Line()

    async def run() -> None:
        line.enter(question := Question(begun))
        await question.news()
        assert question.begun is not None
        tokens = len(question.begun.row["input_ids"])
        await ended(question)
        assert {name: len(kept) for name, kept in question.begun.row.items()} == {"input_ids": tokens}

    with_worker(line, run)


def test_a_fault_is_a_line_and_the_next_question_is_answered() -> None:
    line = Line()

    def raising(error: Exception) -> Callable[[], None]:
        def fail() -> None:
            raise error

        return fail

    async def run() -> None:
        first, second = Question(raising(ValueError("no\nbox"))), Question(raising(KeyError("x")))
        third = Question(lambda: begun(sampler=said(after=raising(KeyError("y")))))  # in the middle of a step
        for question in (first, second, third):
            line.enter(question)
            await ended(question)
        assert first.error == "no box"
        assert second.error == "the server could not answer (KeyError)"
        assert third.error == "the server could not answer (KeyError)"
        last = Question(begun)
        line.enter(last)
        assert (await ended(last)).error == ""

    with_worker(line, run)


def test_a_row_that_fails_ends_no_other_answer() -> None:
    line = Line()

    def fail() -> None:
        raise AssertionError

    async def run() -> None:
        failing, others = Question(lambda: begun(sampler=said(after=fail))), [Question(begun), Question(begun)]
        for question in (others[0], failing, others[1]):  # together: they wait before the worker begins
            line.enter(question)
        assert (await ended(failing)).error == "the server could not answer (AssertionError)"
        for question in others:
            await ended(question)
            assert question.begun is not None
            assert (question.begun.writing.tokens, question.error) == ([100] * 3, "")

    with_worker(line, run)


def test_an_answer_ends_when_nobody_listens() -> None:
    line, written = Line(), list[int]()

    async def run() -> None:
        question, other = (
            Question(lambda: begun(10_000, sampler=said(after=lambda: written.append(1)))),
            Question(begun),
        )
        line.enter(question)
        line.enter(other)
        await question.news()
        line.leave(question)
        await ended(other)
        line.enter(last := Question(begun))
        await ended(last)

    with_worker(line, run, rows=1)
    assert len(written) < 100


@pytest.mark.parametrize("rows", [1, 2])
def test_who_goes_in_the_middle_of_a_step_stops_nobody(rows: int) -> None:
    line, gone, forwards = Line(), Question(lambda: begun(50)), list[int]()

    @contextmanager
    def within() -> Iterator[None]:
        forwards.append(1)
        if len(forwards) == 3:  # its row has its token already; the first one read the prompt
            assert gone.begun is not None
            gone.begun.writing.ended = "left"
        yield

    async def run() -> None:
        line.enter(gone)
        await ended(gone)
        line.enter(other := Question(begun))
        assert (await ended(other)).error == ""

    with_worker(line, run, rows, within=within)


def test_who_goes_while_the_question_is_read_stops_nobody() -> None:
    line, metrics = Line(), Metrics()
    reading, gone = threading.Event(), threading.Event()

    def prepare() -> Begun:
        reading.set()
        assert gone.wait(20)
        return begun()

    async def run() -> None:
        question, other = Question(prepare), Question(begun)
        line.enter(question)
        line.enter(other)
        await asyncio.to_thread(reading.wait, 20)
        line.leave(question)
        gone.set()
        await ended(other)
        assert question.begun is None

    with_worker(line, run, done=metrics.done)
    assert metrics.sums["questions"] == 2
    assert metrics.sums["generation_tokens"] == 3


def test_bytes_that_wait_are_bounded() -> None:
    line = Line()
    line.enter(Question(begun, held=line_module.HELD_BYTES + 1))  # one alone always may
    with pytest.raises(LineFull):
        line.enter(Question(begun, held=1))
    line.enter(Question(begun))
