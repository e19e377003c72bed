"""Grounded captions (GIC): a model that sees the picture writes them, the annotations check them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ts_lightning.data.sample import REGION_MARK, Answer, Sample, SampleRegion
from ts_lightning.grounding.boxes import iou
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.pipelines.claims import AGREE, findings, names_before, same_thing
from ts_lightning.pipelines.converters.source import Dropped, build, clean, pick
from ts_lightning.pipelines.llm_client import Chat, messages
from ts_lightning.pipelines.scenes import Scene, prompts
from ts_lightning.pipelines.scout import from_notation
from ts_lightning.pipelines.scout_checks import Rejected


@dataclass
class Captions:
    """One grounded caption of a scene; left out where a box agrees with no annotated object of the name before it.

    `least` is the share of boxes that must agree: 1 keeps captions without a wrong box. `templates` is a folder of
    edited prompts.
    """

    captions: Chat
    seed: int = 0
    least: float = 1.0
    dropped: Dropped = field(default_factory=Dropped)
    templates: str | None = None

    def __post_init__(self) -> None:
        self.prompts, self.template_hash = prompts(["gic"], self.templates)

    def __call__(self, scene: Scene) -> Iterator[Sample]:
        """The sample, or nothing."""
        if self.captions.look:
            self.captions.look(scene)
        codec = get_codec(self.captions.codec)
        box, other = (0.1, 0.2, 0.8, 0.9), (0.2, 0.3, 0.4, 0.5)
        prompt = self.prompts["gic"].replace("<BOXES>", codec.format([box, other], scene.size))
        asked = messages("caption", prompt.replace("<BOX>", codec.format([box], scene.size)))
        try:
            text, boxes = from_notation(
                " ".join(clean(self.captions.chat(asked, [scene.data])).split()), self.captions.codec, scene.size
            )
            if not boxes:
                raise Rejected("caption without a box")
            marks = [int(match[1]) for match in REGION_MARK.finditer(text)]
            named = [*zip(marks, names_before(text), strict=True)]  # a box may come again, under another name
            wrong = {
                i
                for i, name in named
                if not any(_agrees(name, thing.name, iou(boxes[i], thing.box)) for thing in scene.things)
            }
            unchecked = findings(text, boxes, scene).verdict != "right"
            if len(boxes) - len(wrong) < self.least * len(boxes):
                raise Rejected("caption with a box that agrees with no annotation")
        except Rejected as reason:
            self.dropped[str(reason)] += 1
            return
        things, phrases = [scene.match(box) for box in boxes], dict(reversed(named))
        regions = [
            SampleRegion(phrase=phrases[i] or None, category=thing.name if thing else None, box=box)
            for i, (box, thing) in enumerate(zip(boxes, things, strict=True))
        ]
        key = f"{scene.key}-gic"
        meta = {"generator": {"captions": self.captions.name}, "templates": self.template_hash, "seed": self.seed}
        fields = {"task": "grounding", "subtask": "caption", "regions": regions, "meta": meta | scene.meta}
        fields["tags"] = ["unchecked"] if unchecked else []
        prompt = pick("caption_grounded", key)
        answer = Answer(regions=[*range(len(boxes))])
        yield build("gic", key, [(scene.image, scene.data)], [(prompt, text)], answer=answer, **fields)


def _agrees(phrase: str, name: str, overlap: float) -> bool:
    """IoU of at least 0.5, and a phrase that may stand for the annotated name (none names nothing)."""
    return overlap >= AGREE and (not phrase or same_thing(phrase, name))
