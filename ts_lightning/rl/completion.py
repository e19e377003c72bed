"""What a policy said, and the objects in its answer."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import Codec, Mention

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Object(NamedTuple):
    """A box on picture `image` (0-based; None where the answer names none and there are several)."""

    image: int | None
    box: Box


@dataclass
class Completion:
    """One sampled answer. `token_ids` end with the stop token, `text` is without the end mark.

    `stopped`: it ended by itself, before the token limit. `objects`: those of `answer_objects`.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    stopped: bool = True
    objects: list[Object] = field(default_factory=list)


def answer_objects(text: str, codec: Codec, sample: Sample) -> list[Object]:
    """The boxes inside the one `<answer>...</answer>`, in text order, read with each picture's own size.

    An id alone stands for the box that the text gave it before; of several mentions of one id the last counts. Boxes on
    pictures that the sample does not have, and everything in a text without exactly one answer, are no objects.
    """
    answers = list(_ANSWER.finditer(text))
    if len(answers) != 1 or text.count("<answer>") != 1:
        return []
    start, end = answers[0].span(1)
    sizes = [(image.width, image.height) for image in sample.images] or [(1, 1)]
    found: dict[tuple[int, int], Object] = {}
    for number, size in enumerate(sizes):
        for mention in codec.parse(text, size):
            image = _image(mention, len(sizes))
            if start <= mention.start < end and (number if image is None else image) == number:
                for i, box in enumerate(mention.boxes):
                    found.setdefault((mention.start, i), Object(image, box))
    unique: dict[tuple[str, int], Object] = {}
    for (position, i), thing in sorted(found.items()):
        name = re.match(r"<bbox_id>\[\d+-\d+\]", text[position:])
        key = (name[0], i) if name else (str(position), i)
        unique.pop(key, None)  # the last mention also takes the last place
        unique[key] = thing
    return list(unique.values())


def _image(mention: Mention, images: int) -> int | None:
    if mention.image is None:
        return 0 if images == 1 else None
    return mention.image
