"""What the question-answering files share: one question about one picture, accepted answers, choices."""

from collections.abc import Sequence
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.source import Picture, clean, make, pick

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question(
    source: str,
    key: str,
    picture: Picture,
    text: str,
    answers: Sequence[str],
    template: str | None = None,
    subtask: str = "vqa",
    choices: Sequence[str] | None = None,
    hint: str = "",
    **fields: Any,
) -> Sample:
    """One understanding question, its text as published; `answers` are all accepted ones, the first is the answer.

    `choices` are appended as lettered lines. `template` names a file of prompts with {question}, which is all of that:
    single_word and option_letter are LLaVA's own for its evaluations. `hint` goes first.
    """
    words = clean(text)
    if len(choices or ()) > len(LETTERS):
        raise ValueError(f"seen {len(choices or ())} choices, expected at most {len(LETTERS)}")
    for letter, choice in zip(LETTERS, choices or (), strict=False):
        words += f"\n{letter}. {clean(choice)}"
    asked = words if template is None else pick(template, key, question=words)
    if hint:
        asked = f"{clean(hint)}\n{asked}"
    accepted = [clean(answer) for answer in answers]
    said = accepted[0] if accepted else ""
    return make(
        source,
        key,
        [picture],
        [(asked, said)],
        subtask=subtask,
        answer=said if accepted else None,
        answers=accepted or None,
        choices=[clean(choice) for choice in choices] if choices else None,
        **fields,
    )


def by_frequency(answers: Sequence[str]) -> list[str]:
    """The annotators' answers, all of them, the most frequent first (first come, first served)."""
    first = {answer: i for i, answer in reversed(list(enumerate(answers)))}
    return sorted(answers, key=lambda answer: (-answers.count(answer), first[answer]))
