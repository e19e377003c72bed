"""Grounding records of a scene: localization, referring expressions, step-by-step answers, negatives, captions."""

from random import Random

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.prompts import templates
from ts_lightning.grounding.steps import REJECTION, step_spans
from ts_lightning.pipelines.toy_world.new_objects import KINDS
from ts_lightning.pipelines.toy_world.scene import (
    COLORS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    attribute_phrases,
    relation_phrases,
)

SKILL = "grounding"


def localization(scene: Scene, thing: Thing, random: Random) -> Sample | None:
    """Where an object is that its colour and shape, or its shape alone, single out."""
    phrases = [p for p in attribute_phrases(scene, thing) if p in (thing.shape, f"{thing.color} {thing.shape}")]
    return _one_box(scene, thing, "localization", random.choice(phrases), random) if phrases else None


def rec(scene: Scene, thing: Thing, random: Random) -> Sample | None:
    """Where the object of a referring expression is; half of them need a relation, where the scene has one."""
    relations = relation_phrases(scene, thing)
    phrases = relations if relations and random.random() < 0.6 else attribute_phrases(scene, thing)[-2:]
    return _one_box(scene, thing, "rec", f"the {random.choice(phrases)}", random) if phrases else None


def no_color(scene: Scene, thing: Thing, random: Random) -> Sample | None:
    """Where the object is that a phrase without a colour singles out: by name, size or a relation."""
    phrases = [*attribute_phrases(scene, thing), *relation_phrases(scene, thing)]
    phrases = [p for p in phrases if thing.shape in p.split() and not set(p.split()) & set(COLORS)]
    return _one_box(scene, thing, "no_color", f"the {random.choice(phrases[:3])}", random, "rec") if phrases else None


def steps(scene: Scene, thing: Thing, random: Random) -> Sample | None:
    """A question answered step by step in the paper's form: anchor, object, attribute, answer."""
    anchors = [t for t in scene.things if t is not thing and attribute_phrases(scene, t)]
    random.shuffle(anchors)
    for anchor in anchors:
        relation = random.choice(RELATIONS)
        if [t for t in scene.things if scene.related(t, relation, anchor)] == [thing]:
            name = attribute_phrases(scene, anchor)[0]
            question = f"What color is the object {relation} the {name}?"
            text = (
                f"Step 1: Find the {name} {{region:0}}. "
                f"Step 2: Check the object {relation} it, got the {thing.shape} {{region:1}}. "
                f"Step 3: The {thing.shape} {{region:1}} is {thing.color}. Step 4: So the answer is {thing.color}."
            )
            return _cot(scene, [(name, anchor), (thing.shape, thing)], question, text, thing.color, random)
    names = [p for p in attribute_phrases(scene, thing) if thing.color not in p]
    if not names:
        return None
    text = (
        f"Step 1: Find the {names[0]} {{region:0}}. Step 2: The {names[0]} {{region:0}} is {thing.color}. "
        f"Step 3: So the answer is {thing.color}."
    )
    return _cot(scene, [(names[0], thing)], f"What color is the {names[0]}?", text, thing.color, random)


def negative(scene: Scene, thing: Thing, random: Random) -> Sample | None:
    """A step-by-step question about an object that is not there."""
    present = {(t.color, t.shape) for t in scene.things}
    kinds = KINDS if thing.shape in KINDS else SHAPES  # new ones beside new ones
    pairs = [(c, s) for c in COLORS for s in kinds if (c, s) not in present]
    absent = " ".join(random.choice(pairs))
    article = "an" if thing.color[0] in "aeiou" else "a"
    text = (
        f"Step 1: Find the {absent}. Step 2: There is {article} {thing.color} {thing.shape} {{region:0}} in the image, "
        f"not a {absent}. {REJECTION}"
    )
    question = f"What size is the {absent}?"
    name = f"{thing.color} {thing.shape}"
    sample = _cot(scene, [(name, thing)], question, text, "invalid", random)
    sample.subtask, sample.tags, sample.answer = "negative", ["negative"], Answer()
    return sample


def caption(scene: Scene, thing: Thing, random: Random) -> Sample | None:
    """All objects from left to right, each with its box."""
    things = sorted(scene.things, key=lambda t: scene.center(t)[0])
    parts = [f"a {t.size} {t.color} {t.shape} {{region:{i}}}" for i, t in enumerate(things)]
    named = [(f"{t.size} {t.color} {t.shape}", t) for t in things]
    prompt = random.choice(templates("caption_grounded"))
    answer = Answer(None, list(range(len(things))))
    return record(scene, SKILL, "caption", prompt, " and ".join(parts) + ".", named, answer)


def record(
    scene: Scene,
    task: str,
    subtask: str,
    prompt: str,
    text: str,
    named: list[tuple[str, Thing]],
    answer: Answer,
    tags: tuple[str, ...] = (),
) -> Sample:
    """One record about one scene, without its picture's bytes."""
    return Sample(
        id=f"toy-{scene.seed}-{subtask}",
        key=f"toy{scene.seed:08d}",
        source="toy_world",
        task=task,
        subtask=subtask,
        tags=list(tags),
        images=[SampleImage(f"toy_{scene.seed}.jpg", scene.width, scene.height)],
        turns=[
            Turn("user", f"<image>\n{prompt}"),
            Turn("assistant", text, step_spans(text) if "Step 1" in text else None),
        ],
        regions=[_region(scene, phrase, thing) for phrase, thing in named],
        answer=answer,
    )


def _region(scene: Scene, phrase: str, thing: Thing) -> SampleRegion:
    x1, y1, x2, y2 = thing.pixels
    area_px = float((x2 - x1) * (y2 - y1))
    return SampleRegion(phrase=phrase, category=thing.shape, area_px=area_px, box=scene.box(thing))


def _one_box(
    scene: Scene, thing: Thing, subtask: str, phrase: str, random: Random, prompts: str | None = None
) -> Sample:
    prompt = random.choice(templates(prompts or subtask)).format(phrase=phrase)
    return record(scene, SKILL, subtask, prompt, "{region:0}", [(phrase, thing)], Answer(None, [0]))


def _cot(scene: Scene, named: list[tuple[str, Thing]], question: str, text: str, word: str, random: Random) -> Sample:
    prompt = random.choice(templates("scout")).format(question=question)
    return record(scene, SKILL, "scout", prompt, text, named, Answer(word), ("cot",))
