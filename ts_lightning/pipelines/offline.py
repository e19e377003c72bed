"""The backend without a model: writes questions, steps, captions and dialogues from annotations, by grammar."""

import re
import threading
from collections.abc import Sequence
from random import Random
from typing import Any
from zlib import crc32

from ts_lightning.grounding.codecs import get_codec
from ts_lightning.pipelines.english import NUMBERS, article, be, plural
from ts_lightning.pipelines.llm_client import Messages
from ts_lightning.pipelines.scene_grammar import Fact, facts, negatives
from ts_lightning.pipelines.scenes import Scene, pixels

_SLOT = re.compile(r"\{(\d+)\}")


class _Shown(threading.local):
    """The picture that a thread asks about, and the facts of its questions."""

    def __init__(self) -> None:
        self.scene: Scene | None = None
        self.known: dict[str, Fact] = {}


class OfflineChat:
    """A deterministic stand-in: it can't see, so `look` tells it what is annotated before a picture is asked about.

    `codec` is the notation of its boxes. `most` questions a picture at most; `vocabulary` are the names that negatives
    are drawn from.
    """

    def __init__(self, codec: str = "cogvlm", most: int = 16, vocabulary: Sequence[str] = (), seed: int = 0) -> None:
        self.name, self.codec = f"offline-{seed}", codec
        self.most, self.vocabulary, self.seed = most, sorted(vocabulary), seed
        self.notation = get_codec(codec)
        self.shown = _Shown()

    def look(self, scene: Scene | None) -> None:
        """What the next requests of this thread are about."""
        self.shown.scene, self.shown.known = scene, {}

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        """The answer to a request of the pipelines, told apart by the first word of the system message."""
        task = messages[0]["content"].split(":", 1)[0]
        assert self.shown.scene is not None, "look(scene) comes before chat"
        if task == "questions":
            random = Random(crc32(f"{self.seed}-{self.shown.scene.key}".encode()))
            return self._list(facts(self.shown.scene, random, self.most))
        if task == "negatives":
            random = Random(crc32(f"{self.seed}-{self.shown.scene.key}-not".encode()))
            return self._negatives(negatives(self.shown.scene, self.vocabulary, random, max(1, self.most // 4)))
        if task == "caption":
            return self._caption()
        asked = messages[-1]["content"]
        from_caption = "[Question]: " in asked
        question = asked.rsplit("[Question]: " if from_caption else "Question: ", 1)[-1].split("\n")[0].strip()
        fact = self.shown.known.get(question)
        if fact is None:
            return ""
        return self._pixels(fact.steps) if from_caption else self._boxed(fact.steps)

    def _list(self, found: list[Fact]) -> str:
        self.shown.known |= {fact.question: fact for fact in found}
        return "\n".join(f"Query {i}: {f.question} [Answer]: {f.answer}" for i, f in enumerate(found, 1))

    def _negatives(self, found: list[Fact]) -> str:
        said = [self._pixels(re.sub(r"Step \d: ", "", fact.steps)) for fact in found]
        return "\n".join(
            f"[Query {i}]: {f.question} [Answer]: {s}" for i, (f, s) in enumerate(zip(found, said, strict=True), 1)
        )

    def _pixels(self, text: str) -> str:
        scene = self.shown.scene
        assert scene is not None
        return _SLOT.sub(lambda match: pixels([scene.things[int(match[1])]], scene.size), text)

    def _boxed(self, text: str) -> str:
        scene = self.shown.scene
        assert scene is not None
        return _SLOT.sub(lambda match: self.notation.format([scene.things[int(match[1])].box], scene.size), text)

    def _caption(self) -> str:
        """All objects from left to right: `A dog [[...]] and two cats [[...;...]].`"""
        scene = self.shown.scene
        assert scene is not None
        groups: dict[str, list[int]] = {}
        for i in sorted(range(len(scene.things)), key=lambda i: scene.things[i].box):
            if not scene.things[i].crowd:
                groups.setdefault(scene.things[i].name, []).append(i)
        parts, verbs = [], []
        for name, which in groups.items():
            boxes = self.notation.format([scene.things[i].box for i in which], scene.size)
            many = f"{NUMBERS[len(which)] if len(which) < len(NUMBERS) else len(which)} {plural(name)}"
            parts.append(f"{article(name) if len(which) == 1 else many} {boxes}")
            verbs.append(be(name) if len(which) == 1 else "are")
        text = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
        return f"There {verbs[0]} {text}." if text else ""
