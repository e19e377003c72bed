"""MIRG-RL's trajectories (2.2): chain of thought, image-object mapping, reassembly; the other rows of its Table 3."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ts_lightning.data.sample import REGION_MARK, Answer, Sample, SampleRegion, Turn
from ts_lightning.grounding.boxes import iou
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.pipelines.claims import AGREE
from ts_lightning.pipelines.converters.source import Dropped, clean, safe_key
from ts_lightning.pipelines.llm_client import Chat, messages
from ts_lightning.pipelines.scenes import prompts
from ts_lightning.pipelines.scout_checks import Rejected

_PARTS = re.compile(r"<think>(.+?)</think>\s*<answer>(.+?)</answer>", re.DOTALL)
_OBJECT = re.compile(r"\[([^\[\]]{1,80})\]")
_SLOT = re.compile(r"\{object:(\d+)\}")
_IMAGE = re.compile(r"image[\s#-]{0,2}(\d+)", re.IGNORECASE)  # the paper writes Image-2
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
STYLES = ("trajectory", "reasoning", "answer")


@dataclass
class Trajectories:
    """One trajectory for a multi-image question with one true region, or another `style` of it.

    "answer" makes the answer-only row (of a trajectory, or of the question itself), "reasoning" rewrites a trajectory:
    the names of its objects in place of their boxes, then the answer's box. Neither asks a model.

    `reason` writes the chain of thought, `locate` places each object that it mentions in a picture (it alone writes
    boxes, in its codec), `rewrite` puts the text together. Without `rewrite` the marks are set where the objects stood.
    A trajectory whose answer object is not where the truth is (another picture, IoU below 0.5) is left out.
    """

    reason: Chat
    locate: Chat
    rewrite: Chat | None = None
    style: str = "trajectory"
    seed: int = 0
    dropped: Dropped = field(default_factory=Dropped)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style: seen {self.style!r}, expected one of {', '.join(STYLES)}")
        offline, places_offline = (bool(one.look) for one in (self.reason, self.locate))
        if self.style == "trajectory" and offline != places_offline:  # offline names objects by their numbers
            seen = f"reason {self.reason.name} beside locate {self.locate.name}"
            raise ValueError(f"mirg: seen {seen}, expected models for both, or offline for both")
        self.prompts, self.template_hash = prompts(["mirg_reason", "mirg_map", "mirg_reassemble"])

    def __call__(self, sample: Sample) -> Iterator[Sample]:
        """The sample with its new answer, or nothing."""
        if sample.answer is None or len(sample.answer.regions) != 1 or len(sample.images) < 2:
            self.dropped["records without several pictures and one true region"] += 1
            return
        if len(sample.turns) != 2:  # its answer is the last turn's, and the turns before it ask for something else
            self.dropped.note("conversations of several questions", sample.where)
            return
        true = sample.answer.regions[0]
        if "image" in (sample.meta or {}) and sample.meta["image"] is None:  # type: ignore[index]
            self.dropped["records whose answer names no picture (its place is a guess)"] += 1
            return
        try:
            text, regions = self._rendered(sample, true)
        except Rejected as reason:
            self.dropped[str(reason)] += 1
            return
        yield self._sample(sample, text, regions)

    def _rendered(self, sample: Sample, true: int) -> tuple[str, list[SampleRegion]]:
        if self.style == "answer":
            return f"<answer>{{region:{true}}}</answer>", sample.regions
        if self.style == "reasoning":
            return in_words(sample), sample.regions
        return self._trajectory(sample, true)

    def _trajectory(self, sample: Sample, true: int) -> tuple[str, list[SampleRegion]]:
        target = sample.regions[true]
        question = REGION_MARK.sub("the marked object", sample.turns[0].text.replace("<image>", "")).strip()
        if self.reason.look:
            self.reason.look(None)
            written = offline_thought(sample, true)
        else:
            prompt = self.prompts["mirg_reason"].replace("<QUESTION>", question)
            prompt = prompt.replace("<IMAGE>", str(target.image + 1)).replace("<BOX>", str(target.box))
            written = self.reason.chat(messages("reason", prompt), sample.image_bytes)
        match = _PARTS.search(clean(written))
        if match is None:
            raise Rejected("chain of thought in another form than asked for")
        regions, slots = list(sample.regions), {}
        for name in dict.fromkeys(_OBJECT.findall(match[1] + match[2])):
            slots[name] = self._place(sample, name, true, regions)
        marked = _OBJECT.sub(lambda found: f"{{object:{slots[found[1]]}}}", f"<think>{match[1]}</think>")
        if self.rewrite is not None and not self.rewrite.look:
            again = self.rewrite.chat(messages("rewrite", self.prompts["mirg_reassemble"].replace("<TEXT>", marked)))
            thought = clean(again).strip().split("</think>")[0]  # the answer is ours
            if sorted(_SLOT.findall(thought)) != sorted(_SLOT.findall(marked)) or not thought.startswith("<think>"):
                raise Rejected("reassembled text that lost an object or its form")
            marked = f"{thought}</think>"
        if f"{{object:{true}}}" not in marked:
            raise Rejected("chain of thought that never reaches the true object")
        text = _SLOT.sub(lambda found: f"{{region:{found[1]}}}", marked)
        return f"{text}<answer>{{region:{true}}}</answer>", regions

    def _place(self, sample: Sample, name: str, true: int, regions: list[SampleRegion]) -> int:
        """The region of an object that the thought mentions: the true one, a known one, or one that `locate` finds."""
        if self.locate.look:
            known = int(name.rsplit("#", 1)[-1])
            return known
        codec = get_codec(self.locate.codec)
        prompt = self.prompts["mirg_map"]
        for slot, shape in (("<BOX>", (0.1, 0.2, 0.8, 0.9)), ("<WHOLE>", (0.0, 0.0, 1.0, 1.0))):
            prompt = prompt.replace(slot, codec.format([shape], sample.sizes[0]))
        said = self.locate.chat(messages("map", prompt.replace("<OBJECT>", name)), sample.image_bytes)
        if (number := _IMAGE.search(said)) is None:
            raise Rejected("object that is placed nowhere")
        if not 0 <= (image := int(number[1]) - 1) < len(sample.images):
            raise Rejected("object in a picture that does not exist")
        mentions = codec.parse(said, sample.sizes[image])
        if not mentions or not mentions[0].boxes:
            raise Rejected("object that is placed nowhere")
        box = mentions[0].boxes[0]
        for i, region in enumerate(regions):
            if region.image == image and region.box is not None and iou(region.box, box) >= AGREE:
                if region.phrase is None:
                    regions[i] = replace(region, phrase=name)
                return i
        regions.append(SampleRegion(image=image, phrase=name, box=box))
        return len(regions) - 1

    def _sample(self, sample: Sample, text: str, regions: list[SampleRegion]) -> Sample:
        true = sample.answer.regions[0] if sample.answer else 0
        key, old = safe_key(sample.key, self.style), sample.meta or {}
        names = {"reason": self.reason.name, "locate": self.locate.name}
        wrote = {"trajectory": names, "reasoning": old.get("generator")}.get(self.style)
        meta = {"generator": wrote, "templates": self.template_hash}
        known = {name: old[name] for name in ("image", "question_id") if name in old}
        return replace(
            sample,
            id=f"mirg/{key}",
            key=key,
            source="mirg",
            tags=["answer_only" if self.style == "answer" else self.style],
            turns=[replace(sample.turns[0]), Turn("assistant", text)],
            regions=regions,
            answer=Answer(regions=[true]),
            meta=meta | {"seed": self.seed, "image": sample.regions[true].image, "origin": sample.id} | known,
            shard="",
        )


def in_words(sample: Sample) -> str:
    """A trajectory's text without boxes in its thought; Rejected for a sample that has none."""
    match = _PARTS.fullmatch(sample.turns[-1].text)
    if match is None:
        raise Rejected("records that are no trajectories (make those first)")
    thought = REGION_MARK.sub(lambda mark: sample.regions[int(mark[1])].phrase or "the object", match[1])
    return f"<think>{thought}</think><answer>{match[2]}</answer>"


def offline_thought(sample: Sample, true: int) -> str:
    """A chain of thought from the annotations: what each picture is known to show, and where the answer is."""
    target = sample.regions[true]
    parts = []
    for i, image in enumerate(sample.images):
        here = [k for k, region in enumerate(sample.regions) if region.image == i and k != true and region.box]
        shown = ", ".join(f"[object #{k}]" for k in here)
        parts.append(
            f"Image {i + 1} shows {shown}." if shown else f"Image {i + 1} ({image.width} x {image.height}) is compared."
        )
    number = target.image
    place = f"in the {ORDINALS[number]} image" if number < len(ORDINALS) else f"in image {number + 1}"
    parts.append(f"What is asked for is {place}: [object #{true}].")
    return f"<think>{' '.join(parts)}</think><answer>It is {place}: [object #{true}].</answer>"
