"""What a policy said, and the objects in its answer."""

from dataclasses import dataclass, field

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.answer import Answer, Object, read_answer
from ts_lightning.grounding.codecs import Codec


@dataclass
class Completion:
    """One sampled answer. `token_ids` end with the stop token, `text` is without the end mark.

    `stopped`: it ended by itself, before the token limit. `answer`: the text as `grounding.read_answer` reads it.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    stopped: bool = True
    answer: Answer | None = None

    @property
    def objects(self) -> list[Object]:
        """The boxes of the answer, in order, each with its picture (0-based; None where none is named)."""
        return [] if self.answer is None else list(self.answer.answered)


def read_completion(text: str, codec: Codec, sample: Sample) -> Answer:
    """The text as evaluation reads it: a box that names no picture has the size of the one that was asked about."""
    return read_answer(text, codec, sample.sizes, sample.answer_image)
