"""Open-ended answers scored by a judge: as MM-Vet's (0 to 1) or as LLaVA-Bench's (against a reference answer)."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ts_lightning.metrics.record import Record, distinct_keys

Ask = Callable[[list[dict[str, str]], int], str]  # (messages, attempt) -> text

MM_VET = """You grade one answer to a question about a picture that you can't see. Compare it with the true answer.
In the true answer <AND> joins parts that all have to be there, <OR> joins alternatives of which one is enough.
Give a number from 0.0 (wrong) to 1.0 (wholly right) in steps of 0.1; parts that are there count in proportion.
Reply with the number alone.

Question: {question}
True answer: {truth}
Answer: {answer}
Number:"""
LLAVA_BENCH = """You compare two answers to a question about a picture that you can't see; its description is below.
Judge helpfulness, relevance, accuracy and detail. Give each a number from 1 to 10, a higher one for a better answer.
The order of the two must not matter. Reply with the two numbers alone, separated by a blank.

Description: {caption}
Question: {question}
Answer 1: {truth}
Answer 2: {answer}
Numbers:"""
INSTRUCTIONS = {"mmvet": MM_VET, "llava_bench": LLAVA_BENCH}  # by reading
_NUMBER = re.compile(r"\d{1,2}(?:\.\d{1,3})?", re.ASCII)
TRIES = 3


class Instruction(NamedTuple):
    """What a judge is told: the text, and what kind it is ("not the official prompt", or the file it comes from)."""

    text: str
    kind: str = "not the official prompt"
    few_shot: bool = False

    @property
    def sha256(self) -> str:
        """Names the instruction in a report."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def judge_reading(record: Record) -> str:
    """Whose instruction and marks judge a record: its reading; without one its data set's, else MM-Vet's."""
    return record.reading or (record.source if record.source in INSTRUCTIONS else "mmvet")


def few_shot_instruction(path: str | Path) -> Instruction:
    """MM-Vet's official form: a file with its few-shot table, below which each answer is one more row to complete.

    The table is MM-Vet's own (question, ground truth, prediction and correctness between bars); it is not in this
    project.
    """
    text = Path(path).read_text(encoding="utf-8").rstrip()
    if "|" not in text:
        raise ValueError(f"{path}: seen no table, expected MM-Vet's prompt: rows of question | truth | answer | mark")
    return Instruction(text, f"few-shot table of {Path(path).name}", few_shot=True)


def judge(records: Sequence[Record], reading: str, ask: Ask, instruction: Instruction | None = None) -> dict[str, Any]:
    """The score as MM-Vet's or LLaVA-Bench's (`reading`), by capability or category, and the verdicts by question.

    MM-Vet: 100 x the mean. LLaVA-Bench: 100 x the sum of the answers' marks over that of the references. A verdict that
    can't be read (`ask` gives "" for none) is asked for again, `TRIES` times in all; then the answer gets the lowest
    mark and is counted. A missing answer gets it unasked.
    """
    instruction = instruction or Instruction(INSTRUCTIONS[reading])
    verdicts: dict[str, list[float]] = {}
    groups: dict[str, list[list[float]]] = {}
    unread = 0
    for record in distinct_keys(records):
        verdict = None if record.missing else _verdict(record, reading, ask, instruction)
        if verdict is None:
            unread += not record.missing
            verdict = [0.0] if reading == "mmvet" else [10.0, 1.0]
        verdicts[record.key] = verdict
        names = record.meta.get("capability") or record.meta.get("category") or "all"
        for name in names if isinstance(names, list) else [names]:
            groups.setdefault(str(name), []).append(verdict)
    return {
        "score": _score(list(verdicts.values()), reading),
        "by_group": {name: _score(group, reading) for name, group in sorted(groups.items())},
        "reading": reading,
        "unread_verdicts": unread,
        "questions": len(records),
        "prompt": instruction.text,
        "prompt_kind": instruction.kind,
        "prompt_sha256": instruction.sha256,
        "verdicts": verdicts,
    }


def read_verdict(text: str, reading: str) -> list[float] | None:
    """[mark] in [0, 1] for MM-Vet, [reference, answer] in [1, 10] for LLaVA-Bench; None for anything else."""
    numbers = [float(n) for n in _NUMBER.findall(text)]
    if reading == "mmvet":
        return numbers[:1] if len(numbers) == 1 and 0 <= numbers[0] <= 1 else None
    return numbers if len(numbers) == 2 and all(1 <= n <= 10 for n in numbers) else None


def question_for_judge(record: Record, instruction: Instruction) -> str:
    """What the judge is asked about one answer."""
    truth = (record.truth.answers or ("",))[0]
    if instruction.few_shot:
        spaced = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        cells = [" ".join(cell.split()) for cell in (record.question, spaced, record.text)]
        return f"{instruction.text}\n{' | '.join(cells)} | "
    caption = str(record.meta.get("caption") or "none")
    values = {"question": record.question, "truth": truth, "answer": record.text, "caption": caption}
    text = instruction.text
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value.replace("{", "(").replace("}", ")"))
    return text


def _verdict(record: Record, reading: str, ask: Ask, instruction: Instruction) -> list[float] | None:
    text = question_for_judge(record, instruction)
    for attempt in range(TRIES):
        verdict = read_verdict(ask([{"role": "user", "content": text}], attempt), reading)
        if verdict is not None:
            return verdict
    return None


def _score(verdicts: Sequence[Sequence[float]], reading: str) -> float:
    if not verdicts:
        return float("nan")
    if reading == "mmvet":
        return 100 * sum(v[0] for v in verdicts) / len(verdicts)
    return 100 * sum(v[1] for v in verdicts) / sum(v[0] for v in verdicts)
