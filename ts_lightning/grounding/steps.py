"""Step-by-step answers: where the steps are, and whether they call the question invalid."""

import re
from collections.abc import Sequence

STEP = re.compile(r"(?<!\w)Step \d{1,3}[:;]")
REJECTION = "This question is invalid."


def step_spans(text: str) -> list[tuple[int, int]]:
    """Character spans [start, end) of the steps; the whole text is one step where none is marked."""
    starts = [match.start() for match in STEP.finditer(text)]
    if not starts:
        return [(0, len(text))]
    starts[0] = 0  # whatever precedes "Step 1" is said in step 1
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def step_cuts(text: str, steps: Sequence[tuple[int, int]] | None) -> list[int]:
    """Where each step of an answer begins, the first at 0; `steps` are a record's own spans."""
    return [0, *(start for start, _ in (steps or step_spans(text))[1:])]


def is_rejection(text: str) -> bool:
    """Whether the answer calls the question invalid: "This question is invalid.", "The question is invalid."."""
    return "question is invalid" in text.lower()
