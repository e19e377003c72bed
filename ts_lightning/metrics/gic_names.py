"""What a caption calls its boxes, asked of a language model (TWIST & SCOUT, figure A.7)."""

import re
from collections.abc import Callable

from ts_lightning.grounding.answer import Answer, brackets
from ts_lightning.metrics.gic import Pair

Ask = Callable[[list[dict[str, str]], int], str]  # (messages, attempt) -> text

PROMPT = """In the caption below each number in brackets stands for a box in the picture. Say which object each box
shows: one line a number, the number, a colon, and the object's name in the singular, without adjectives.

Caption: {caption}
Names:"""
_LINE = re.compile(r"^\W{0,3}(\d{1,3})\W{1,5}([A-Za-z][A-Za-z '-]{0,60})", re.ASCII | re.MULTILINE)
TRIES = 3


class AskedPairs:
    """(name, box) pairs of grounded captions by a language model; coordinates never pass through it.

    Asked again, `TRIES` times in all, until every box has a name; one that gets none is left out. `model`: its name.
    """

    def __init__(self, ask: Ask, model: str) -> None:
        self.ask, self.model = ask, model

    def __call__(self, text: str, answer: Answer) -> list[Pair]:
        """The pairs of one caption; several boxes in one bracket share the name."""
        mentions = brackets(answer)
        if not mentions:
            return []
        parts, end = [], 0
        for number, ((start, stop), _) in enumerate(mentions, start=1):
            parts += [text[end:start], f"[{number}]"]
            end = stop
        caption = "".join([*parts, text[end:]])
        message = {"role": "user", "content": PROMPT.replace("{caption}", caption)}
        names: dict[int, str] = {}
        for attempt in range(TRIES):
            for number, name in _LINE.findall(self.ask([message], attempt)):
                names.setdefault(int(number), name.strip().lower())
            if all(number in names for number in range(1, len(mentions) + 1)):
                break
        named = [(names[n], things) for n, (_, things) in enumerate(mentions, start=1) if n in names]
        return [(name, thing.box) for name, things in named for thing in things if thing.is_box]
