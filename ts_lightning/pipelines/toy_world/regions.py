"""ChatSpot's precise referring instructions on the toy world: questions about a click, a box or a polygon."""

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.coordinates import Point
from ts_lightning.grounding.prompts import templates
from ts_lightning.grounding.region_sampling import click_in, polygon_around
from ts_lightning.pipelines.toy_world.render import OUTLINES, jpeg, render
from ts_lightning.pipelines.toy_world.scene import Scene, Thing, sample_scene
from ts_lightning.pipelines.toy_world.understanding import understanding_questions

KINDS = ("click", "box", "polygon")
ATTRIBUTES = ("color", "shape", "size")
FIRST_SEED = {"train": 20_000_000_000, "val": 30_000_000_000, "test": 32_000_000_000}  # scenes of their own
TURNS = 5
CIRCLE = [(0.5 + math.cos(i * math.pi / 8) / 2, 0.5 + math.sin(i * math.pi / 8) / 2) for i in range(16)]


def outline(scene: Scene, thing: Thing) -> list[Point]:
    """The corners of an object in [0, 1]."""
    x1, y1, x2, y2 = scene.box(thing)
    corners = CIRCLE if thing.shape == "circle" else OUTLINES[thing.shape]
    return [(x1 + u * (x2 - x1), y1 + v * (y2 - y1)) for u, v in corners]


def point_at(scene: Scene, thing: Thing, kind: str, random: Random) -> SampleRegion:
    """The region by which a person refers to `thing`."""
    region = SampleRegion(phrase=f"{thing.color} {thing.shape}", category=thing.shape)
    if kind == "click":
        region.points = list(click_in(outline(scene, thing), random).points)
    elif kind == "polygon":
        region.polygon = list(polygon_around(scene.box(thing), random).points)
    else:
        region.box = scene.box(thing)
    return region


def region_sample(scene: Scene, kind: str, what: str, random: Random) -> Sample:
    """One region-level question with a short answer; its subtask is `<kind>_<what>`."""
    thing = random.choice(scene.things)
    prompt = random.choice(templates("toy_region")).format(what=what, region="{region:0}")
    sample = _conversation(scene, [(prompt, getattr(thing, what))], [point_at(scene, thing, kind, random)])
    sample.subtask, sample.tags, sample.answers = f"{kind}_{what}", ["region", kind], [getattr(thing, what)]
    sample.answer = Answer(sample.answers[0])
    return sample


def image_sample(scene: Scene, random: Random) -> Sample:
    """Image-level questions of one scene as a conversation."""
    questions = [q for q in understanding_questions(scene, random) if not q.regions][:TURNS]
    return _conversation(scene, [(_image_prompt(q.text, random), q.answer) for q in questions], [])


def conversation(scene: Scene, random: Random) -> Sample:
    """`TURNS` turns about one scene: mostly regions of any kind, short and detailed, at times the whole image."""
    questions = [q for q in understanding_questions(scene, random) if not q.regions]
    pairs: list[tuple[str, str]] = []
    regions: list[SampleRegion] = []
    for _ in range(TURNS):
        if questions and random.random() < 0.15:
            question = questions.pop()
            pairs.append((_image_prompt(question.text, random), question.answer))
            continue
        thing = random.choice(scene.things)
        place = f"{{region:{len(regions)}}}"
        regions.append(point_at(scene, thing, random.choice(KINDS), random))
        if random.random() < 0.25:
            prompt = random.choice(templates("toy_region_detail")).format(region=place)
            pairs.append((prompt, f"a {thing.size} {thing.color} {thing.shape}"))
        else:
            what = random.choice(ATTRIBUTES)
            prompt = random.choice(templates("toy_region")).format(what=what, region=place)
            pairs.append((prompt, getattr(thing, what)))
    return _conversation(scene, pairs, regions)


def region_conversations(total: int) -> Iterator[Sample]:
    """Training data of stage 2."""
    return _with_pictures(total, FIRST_SEED["train"] + 1_000_000_000, conversation)


def image_conversations(total: int) -> Iterator[Sample]:
    """Training data of stage 1."""
    return _with_pictures(total, FIRST_SEED["train"], image_sample)


def region_questions(total: int, split: str = "val", kinds: Sequence[str] = KINDS) -> Iterator[Sample]:
    """Held-out questions of a split (val, test), each of these kinds of region and every attribute in turn."""
    cells = [(kind, what) for kind in kinds for what in ATTRIBUTES]

    def make(scene: Scene, random: Random) -> Sample:
        return region_sample(scene, *cells[scene.seed % len(cells)], random)

    return _with_pictures(total, FIRST_SEED[split], make)


def _with_pictures(total: int, first: int, make: Callable[[Scene, Random], Sample]) -> Iterator[Sample]:
    for seed in range(first, first + total):
        scene = sample_scene(seed)
        sample = make(scene, Random(seed))
        sample.image_bytes = [jpeg(render(scene))]
        yield sample


def _image_prompt(question: str, random: Random) -> str:
    return random.choice(templates("toy_image")).format(question=question)


def _conversation(scene: Scene, pairs: list[tuple[str, str]], regions: list[SampleRegion]) -> Sample:
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns[0].text = f"<image>\n{turns[0].text}"
    image = SampleImage(f"toy_{scene.seed}.jpg", scene.width, scene.height)
    return Sample(
        id=f"toy-{scene.seed}-region",
        key=f"toy{scene.seed:011d}",
        source="toy_world",
        subtask="conversation",
        tags=["region"],
        images=[image],
        turns=turns,
        regions=regions,
    )
