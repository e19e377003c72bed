"""A conversation about pictures with numbered regions: the engine behind the page, without any web code."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleImage, SampleRegion, Turn, hidden
from ts_lightning.grounding.answer import brackets, read_answer
from ts_lightning.grounding.prompts import carries_grounding_instruction
from ts_lightning.grounding.regions import Region
from ts_lightning.grounding.tasks import GROUNDING, UNDERSTANDING
from ts_lightning.models.continuous import Writing
from ts_lightning.models.pixels import image_size
from ts_lightning.models.vlm import VLM
from ts_lightning.serve.line import Begun

MAX_NEW_TOKENS = 256
_NUMBER = re.compile(r"#(\d{1,3})\b", re.ASCII)


def task_by_instruction(prompt: str) -> str:
    """The task of a prompt by the templates alone, where no trained router decides."""
    return GROUNDING if carries_grounding_instruction(prompt) else UNDERSTANDING


@dataclass
class Conversation:
    """Pictures (encoded bytes), numbered regions as (picture, region), and the texts so far, user and model in turn.

    Texts name regions as #1, #2 ...; ValueError for a number without a region. Where no region is given, "#7" is text.
    sizes: (width, height) of the pictures as they are displayed (none: they are read from the bytes).
    """

    images: Sequence[bytes]
    regions: Sequence[tuple[int, Region]] = ()
    texts: Sequence[str] = ()
    sizes: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        self.sizes = self.sizes or [image_size(data) for data in self.images]
        for number, (image, _) in enumerate(self.regions, 1):
            if not 0 <= image < len(self.images):
                raise ValueError(f"region #{number}: seen image {image + 1}, expected 1 to {len(self.images)}")

    def sample(self, vlm: VLM, task: str) -> Sample:
        """The conversation as a record whose last answer is still open."""
        regions = [_region(image, region.points) for image, region in self.regions]
        given, turns = len(regions), []
        for i, text in enumerate([*self.texts, ""]):
            if i % 2:
                turns.append(Turn("assistant", self._answer(vlm, text, regions)))
            else:
                marks = f"{IMAGE_MARK}\n" * len(self.images) if i == 0 else ""
                turns.append(Turn("user", marks + self._question(text, given)))
        images = [SampleImage(f"image {i + 1}", *size) for i, size in enumerate(self.sizes)]
        sample = Sample("page", task=task, images=images, turns=turns, regions=regions, key="page")
        sample.image_bytes = list(self.images)
        sample.validate()
        return sample

    def _question(self, text: str, given: int) -> str:
        def place(match: re.Match[str]) -> str:
            number = int(match[1])
            if not 1 <= number <= given:
                raise ValueError(f"question: seen {match[0]}, expected #1 to #{given}")
            return f"{{region:{number - 1}}}"

        return _NUMBER.sub(place, hidden(text)) if given else hidden(text)

    def _answer(self, vlm: VLM, text: str, regions: list[SampleRegion]) -> str:
        """An earlier answer with its regions as placeholders, so that they are encoded as they were said."""
        pieces, end = [], 0
        for (start, stop), things in brackets(read_answer(text, vlm.codec, self.sizes)):
            if len(things) == 1 and self.images:
                pieces += [hidden(text[end:start]), f"{{region:{len(regions)}}}"]
                regions.append(_region(things[0].image or 0, things[0].region.points, things[0].phrase))
                end = stop
        return "".join(pieces) + hidden(text[end:])


def begin(
    vlm: VLM,
    conversation: Conversation,
    task: str = "auto",
    task_of: Callable[[str], str] = task_by_instruction,
    max_new_tokens: int = MAX_NEW_TOKENS,
    constrain: bool = False,
    **how: Any,
) -> Begun:
    """What the model gets of a conversation whose last text is to be answered; `how` are arguments of `Writing`.

    The task is decided from the last user text alone (one without a package is understanding's), and the whole
    conversation is encoded again on its path: nothing is kept between turns, so no cache crosses paths. constrain: a
    begun box is always finished; pictures are taken to have the first one's size.
    """
    question = conversation.texts[-1] if conversation.texts else ""
    if not question.strip():
        raise ValueError("question: seen nothing, expected a question")
    chosen = vlm.chosen_task(question, task, task_of)
    row = vlm.encode(conversation.sample(vlm, chosen), for_generation=True)
    room = vlm.encoder.max_length - len(row["input_ids"])
    if room < 1:
        raise ValueError(f"conversation: seen {len(row['input_ids'])} tokens, expected room for an answer")
    size = (conversation.sizes or [(1, 1)])[0] if constrain else None
    return Begun(chosen, task == "auto", row, Writing(min(max_new_tokens, room), constrain=size, **how))


def said(vlm: VLM, tokens: Sequence[int]) -> str:
    """The text of an answer: marks of the codecs stay in it."""
    return vlm.tokenizer.decode(list(tokens), skip_special_tokens=False).strip()


def found_boxes(vlm: VLM, text: str, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Every region of a text about pictures of these sizes, with its picture, its step and its characters.

    Without a picture there is none.
    """
    if not sizes:
        return []
    return [
        {
            "image": thing.image or 0,
            "step": thing.step,
            "start": thing.start,
            "end": thing.end,
            "points": [list(point) for point in thing.region.points],
        }
        for thing in read_answer(text, vlm.codec, list(sizes)).objects
    ]


def _region(image: int, points: Sequence[tuple[float, float]], phrase: str | None = None) -> SampleRegion:
    if len(points) == 2:
        return SampleRegion(image=image, phrase=phrase, box=(*points[0], *points[1]))
    if len(points) == 1:
        return SampleRegion(image=image, phrase=phrase, points=list(points))
    return SampleRegion(image=image, phrase=phrase, polygon=list(points))
