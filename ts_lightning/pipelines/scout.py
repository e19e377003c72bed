"""SCOUT (section 4): caption -> questions by a language model -> stepwise answers by a model that sees the picture."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from ts_lightning.data.sample import IMAGE_MARK, Answer, Sample, SampleRegion, Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.prompts import templates
from ts_lightning.grounding.steps import REJECTION, step_spans
from ts_lightning.pipelines.converters.source import Dropped, clean, safe_key, to_box
from ts_lightning.pipelines.llm_client import Chat, messages
from ts_lightning.pipelines.scenes import Scene, describe, prompts
from ts_lightning.pipelines.scout_checks import Draft, Rejected, check_negative, check_positive, same_question

_QUERY = re.compile(
    r"\[?Query\s*\d+\]?\s*:\s*(.+?)\s*\[Answer\]\s*:\s*(.*?)\s*(?=\[?Query\s*\d+\]?\s*:|\[Description\]|\Z)", re.S
)
_PIXELS = re.compile(r"\[\s*\[[\d\s,.\[\]-]+?\]\s*\]|\[[\d\s,.-]+\]")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "queries": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["queries"],
    "additionalProperties": False,
}


class Query(NamedTuple):
    """A question and its short answer (of a negative: its refusal)."""

    question: str
    answer: str


@dataclass
class Scout:
    """Makes the samples of one scene.

    `questions` and `answers` are separate backends; `answers` None is the paper's baseline that answers from the
    caption alone. `negatives` is the share of samples about things that are not there; they never go to the model that
    sees. `second` asks again where a box fits no annotation, and keeps boxes that both answers have. `templates` is a
    folder of edited prompts.
    """

    questions: Chat
    answers: Chat | None
    negatives: float = 0.075
    most: int = 16
    seed: int = 0
    second: bool = False
    dropped: Dropped = field(default_factory=Dropped)
    templates: str | None = None

    def __post_init__(self) -> None:
        names = ("scout_questions", "scout_negatives", "scout_steps", "scout_caption_steps")
        self.prompts, self.template_hash = prompts(names, self.templates)

    def __call__(self, scene: Scene) -> Iterator[Sample]:
        """Positive samples, then negative ones, in a fixed order; what fails a check is counted in `dropped`."""
        for backend in {id(b): b for b in (self.questions, self.answers) if b is not None}.values():
            if backend.look:
                backend.look(scene)
        told = describe(scene)
        kept: list[Draft] = []
        for query in self._ask("questions", "scout_questions", told)[: self.most]:
            self._keep(kept, lambda query=query: self._positive(scene, told, query))
        random = Random(crc32(f"{self.seed}-{scene.key}".encode()))
        expected = len(kept) * self.negatives / max(1e-9, 1 - self.negatives)
        wanted = int(expected) + (random.random() < expected % 1)
        if wanted:
            queries, before = self._ask("negatives", "scout_negatives", told), len(kept)
            for query in queries:
                if len(kept) - before < wanted:
                    self._keep(kept, lambda query=query: self._negative(scene, query))
        for number, draft in enumerate(kept):
            yield self._sample(scene, number, draft)

    def _keep(self, kept: list[Draft], make: Any) -> None:
        try:
            draft = make()
            if any(same_question(draft.question, other.question) for other in kept):
                raise Rejected("near-duplicate question")
            kept.append(draft)
        except Rejected as reason:
            self.dropped[str(reason)] += 1

    def _ask(self, task: str, prompt: str, told: str) -> list[Query]:
        asked = messages(task, self.prompts[prompt].replace("<DESCRIPTION>", told))
        for attempt in range(2):
            try:
                if found := queries(self.questions.chat(asked, (), SCHEMA, attempt)):
                    return found
                self.dropped[f"{task}: answer that holds no query"] += 1
            except Rejected as reason:
                self.dropped[f"{task}: {reason}"] += 1
            if self.questions.look:
                break
        return []

    def _positive(self, scene: Scene, told: str, query: Query) -> Draft:
        if len(query.answer.split()) > 3 or not query.answer.strip(". "):
            raise Rejected("short answer is empty or longer than three words")
        first = self._answer(scene, told, query, 0)
        again = (lambda: self._answer(scene, told, query, 1)) if self.second else None
        return check_positive(scene, query.question, query.answer, first, again)

    def _answer(self, scene: Scene, told: str, query: Query, attempt: int) -> tuple[str, list[Box]]:
        """The steps with `{region:i}` marks, and the boxes; Rejected for boxes that are malformed or outside."""
        if self.answers is None:
            prompt = self.prompts["scout_caption_steps"].replace("<DESCRIPTION>", told)
            prompt = prompt.replace("<QUESTION>", query.question)
            text = self.questions.chat(messages("steps", prompt), (), None, attempt)
            return from_pixels(clean(text), scene.size)
        codec = get_codec(self.answers.codec)
        shape = codec.format([(0.1, 0.2, 0.8, 0.9)], scene.size)
        prompt = self.prompts["scout_steps"].replace("<BOX>", shape).replace("<QUESTION>", query.question)
        prompt = prompt if prompt.rstrip().endswith(query.question) else f"{prompt}\nQuestion: {query.question}"
        text = clean(self.answers.chat(messages("steps", prompt), [scene.data], None, attempt))
        return from_notation(text, self.answers.codec, scene.size)

    def _negative(self, scene: Scene, query: Query) -> Draft:
        text, boxes = from_pixels(clean(query.answer), scene.size)
        parts = [part.strip() for part in text.split(". ") if part.strip()]
        if len(parts) < 3 or not parts[0].lower().startswith("find "):
            raise Rejected("negative: refusal has another form than find, there is, invalid")
        middle = ". ".join(parts[1:-1])
        steps = f"Step 1: {parts[0]}. Step 2: {middle}. {REJECTION}"
        return check_negative(scene, query.question, steps, boxes, parts)

    def _sample(self, scene: Scene, number: int, draft: Draft) -> Sample:
        key = safe_key(scene.key, f"q{number:03d}")
        lines = templates("scout")
        prompt = lines[crc32(key.encode()) % len(lines)].replace("{question}", draft.question)
        names = [scene.match(box) for box in draft.boxes]
        regions = [
            SampleRegion(phrase=thing.name if thing else None, category=thing.name if thing else None, box=box)
            for box, thing in zip(draft.boxes, names, strict=True)
        ]
        meta = {
            "generator": {
                "questions": self.questions.name,
                "answers": self.answers.name if self.answers else "caption",
            },
            "templates": self.template_hash,
            "seed": self.seed,
            "question": draft.question,
            "short_answer": draft.short,
            **scene.meta,
        }
        return Sample(
            id=f"scout/{key}",
            key=key,
            source="scout",
            task="grounding",
            subtask="negative" if draft.negative else "scout",
            tags=[
                *(["negative"] if draft.negative else ["cot"] if self.answers else ["cot", "caption_only"]),
                *(["unchecked"] if draft.unchecked else []),
            ],
            images=[scene.image],
            turns=[
                Turn("user", f"{IMAGE_MARK}\n{prompt}"),
                Turn("assistant", draft.steps, step_spans(draft.steps)),
            ],
            regions=regions,
            answer=Answer() if draft.negative else Answer(draft.answer),
            meta=meta,
            image_bytes=[scene.data],
        )


def queries(text: str) -> list[Query]:
    """Questions and answers of a model's text: JSON of `SCHEMA`, or the lines of the paper's prompts."""
    try:
        data = json.loads(text[text.index("{") : text.rindex("}") + 1])
        found = [Query(str(one["question"]), str(one["answer"])) for one in data["queries"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = [Query(match[1], match[2]) for match in _QUERY.finditer(text)]
    made = [Query(" ".join(clean(q).split()), " ".join(a.split())) for q, a in found]
    return [Query(q[:1].upper() + q[1:], a) for q, a in made if q.endswith("?")]


def from_notation(text: str, name: str, size: tuple[int, int]) -> tuple[str, list[Box]]:
    """Text of a codec with marks in place of its boxes; Rejected for malformed brackets and numbers beyond the grid."""
    codec = get_codec(name)
    most = codec.space.encode([(1.0, 1.0)], size)[0] * (1 + 1e-6)
    out, at = "", 0
    boxes: list[Box] = []
    for mention in codec.find(text, size):
        if not mention.boxes:
            raise Rejected("box that can't be read")
        numbers = [float(n) for n in _NUMBERS.findall(text[mention.start : mention.end])]
        if codec.space.grid != "pixels" and max(numbers) > most:
            raise Rejected("box outside the picture")
        marks = [f"{{region:{_index(boxes, box)}}}" for box in mention.boxes]
        out += text[at : mention.start] + ", ".join(marks)
        at = mention.end
    return out + text[at:], boxes


def from_pixels(text: str, size: tuple[int, int]) -> tuple[str, list[Box]]:
    """Text with `[x1, y1, x2, y2]` pixel boxes, and marks in place of them; Rejected as above."""
    boxes: list[Box] = []

    def mark(match: re.Match[str]) -> str:
        numbers = [float(n) for n in _NUMBERS.findall(match[0])]
        if len(numbers) % 4 or not numbers:
            raise Rejected("box that can't be read")
        marks = []
        for k in range(0, len(numbers), 4):
            x1, y1, x2, y2 = numbers[k : k + 4]
            if min(x1, y1) < -1 or x2 > size[0] + 1 or y2 > size[1] + 1:
                raise Rejected("box outside the picture")
            if (box := to_box((x1, y1, x2, y2), size)) is None:
                raise Rejected("box that can't be read")
            marks.append(f"{{region:{_index(boxes, box)}}}")
        return ", ".join(marks)

    return _PIXELS.sub(mark, text), boxes


def _index(boxes: list[Box], box: Box) -> int:
    """The place of a box among those known; a box that is named again is one region."""
    if box not in boxes:
        boxes.append(box)
    return boxes.index(box)
