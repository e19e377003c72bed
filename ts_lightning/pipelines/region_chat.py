"""RegionChat (ChatSpot 3.3): dialogues about one region, from Visual Genome-like annotations."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.prompts import templates
from ts_lightning.pipelines.converters.source import Dropped, build, clean, safe_key
from ts_lightning.pipelines.english import article
from ts_lightning.pipelines.llm_client import Chat, Messages, messages
from ts_lightning.pipelines.scene_grammar import SIDES, place, references, related
from ts_lightning.pipelines.scenes import Scene, describe, prompts
from ts_lightning.pipelines.scout_checks import Rejected

_ROLE = re.compile(r"^\s*(User|Assistant)\s*:", re.MULTILINE)
_REMARK = re.compile(r"\n\s*\n(?!\s*(?:[-*\u2022]|\d+[.)])\s)")  # a blank line, but not between the items of a list
_NUMBERS = re.compile(r"\[\s*\d+\s*,|\d+\s*,\s*\d+\s*,\s*\d+")


@dataclass
class RegionChat:
    """Dialogues about at most `most` objects of a scene, `turns` pairs each, through `dialogues`.

    A share of `image_level` dialogues asks about the whole picture. `mgvlid/region_chat.txt` wraps the first question.
    `templates` is a folder of edited prompts for the model.
    """

    dialogues: Chat
    most: int = 4
    turns: int = 2
    seed: int = 0
    image_level: float = 0.2
    dropped: Dropped = field(default_factory=Dropped)
    templates: str | None = None

    def __post_init__(self) -> None:
        self.prompts, self.template_hash = prompts(["region_chat", "image_chat"], self.templates)

    def __call__(self, scene: Scene) -> Iterator[Sample]:
        """Samples in an order that the seed draws; dialogues in another form than asked for are counted."""
        random = Random(crc32(f"{self.seed}-{scene.key}-chat".encode()))
        refs = [ref for ref in references(scene) if ref.thing in scene.own]
        random.shuffle(refs)
        for number, ref in enumerate(refs[: self.most]):
            whole = random.random() < self.image_level
            facts = _facts(scene, ref.thing)
            text: str | None
            if self.dialogues.look:
                text = _offline(ref.phrase, facts, whole, self.turns, random)
            else:
                prompt = self.prompts["image_chat" if whole else "region_chat"]
                told = prompt.replace("<TURNS>", str(self.turns)).replace("<DESCRIPTION>", describe(scene))
                region = f"{article(ref.phrase)}: {' '.join(facts)}"
                text = self._said(messages(f"dialogue {number}", told.replace("<REGION>", region)))
            if text is None:
                continue
            pairs = dialogue(text, whole)
            if pairs is None:
                self.dropped.note("dialogue in another form than asked for", f"{scene.key}-chat{number:02d}")
                continue
            yield self._sample(scene, number, ref.thing, pairs, whole)

    def _said(self, asked: Messages) -> str | None:
        try:
            return self.dialogues.chat(asked)
        except Rejected as reason:
            self.dropped[str(reason)] += 1
            return None

    def _sample(self, scene: Scene, number: int, thing: int, pairs: list[tuple[str, str]], whole: bool) -> Sample:
        key = safe_key(scene.key, f"chat{number:02d}")
        lines = templates("mgvlid/region_chat")
        wrapped = lines[crc32(key.encode()) % len(lines)].replace("{question}", pairs[0][0])
        pairs = [(wrapped, pairs[0][1]), *pairs[1:]]
        known = scene.things[thing]
        meta = {"generator": {"dialogues": self.dialogues.name}, "templates": self.template_hash, "seed": self.seed}
        return build(
            "region_chat",
            key,
            [(scene.image, scene.data)],
            pairs,
            subtask="image_chat" if whole else "region_chat",
            tags=["detail"] if whole else ["detail", "region", "box"],
            regions=[]
            if whole
            else [SampleRegion(phrase=known.phrase or known.name, category=known.name, box=known.box)],
            meta=meta | scene.meta,
        )


def dialogue(text: str, whole: bool) -> list[tuple[str, str]] | None:
    """Pairs of turns of a model's text, `{region}` as the mark of region 0; None for another form or coordinates.

    A turn goes on, over several lines, until the next one, the last one until a fence or a new paragraph: what stands
    before and behind the dialogue goes. In one about the whole picture nobody points.
    """
    fenced = clean(text).split("```")
    _, *parts = _ROLE.split(next((part for part in fenced if _ROLE.search(part)), ""))
    roles, said = parts[::2], [part.strip() for part in parts[1::2]]
    said[-1:] = [_REMARK.split(last)[0] for last in said[-1:]]
    if not said or not all(said) or roles != ["User", "Assistant"] * (len(said) // 2):
        return None
    pointed = ["{region}" in part for part in said]
    if (any(pointed) if whole else not pointed[0]) or any(_NUMBERS.search(part) for part in said):
        return None
    marked = [part.replace("{region}", "{region:0}") for part in said]
    return list(zip(marked[::2], marked[1::2], strict=True))


def _facts(scene: Scene, i: int) -> list[str]:
    """What is annotated about a thing, in sentences: attributes, relations, place, neighbours."""
    thing = scene.things[i]
    out = [f"It is {article(thing.name)}."]
    out += [f"It is {word}." for word in thing.words[:3]]
    out += [f"It is {how} the {scene.things[b].name}." for a, how, b in scene.relations if a == i][:3]
    if cell := place(thing):
        out.append(f"It is in the {cell} of the picture.")
    for ref in references(scene):
        how = next((how for how in SIDES if ref.thing != i and related(thing, how, scene.things[ref.thing])), None)
        if how and len(out) < 6:
            out.append(f"It is {how} the {ref.phrase}.")
    return out


def _offline(name: str, facts: list[str], whole: bool, turns: int, random: Random) -> str:
    """A dialogue by grammar."""
    if whole:
        first = ("What stands out in the picture?", f"There is {article(name)} in it. {' '.join(facts[1:2])}")
    else:
        asked = random.choice(["What is in {region}?", "What do you see at {region}?", "What is shown at {region}?"])
        first = (asked, facts[0])
    later = ["What else can you say about it?", "Where is it, compared with the rest?", "Anything more?"]
    rest = [(question, fact) for question, fact in zip(later, facts[1 + whole :], strict=False)]
    pairs = [first, *rest][:turns]
    return "\n".join(f"User: {question}\nAssistant: {answer.strip()}" for question, answer in pairs)
