"""What the tiny base is trained on: pictures with many understanding questions each, several pictures, and text."""

from random import Random
from typing import NamedTuple

from tools.experiments.tiny_base.patches import patch_labels
from tools.experiments.tiny_base.text import MAKERS, text_question
from tools.experiments.tiny_base.words import EVERYDAY
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.prompts import templates
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import COLORS, SHAPES, SIZES, Scene, sample_scene
from ts_lightning.pipelines.toy_world.understanding import (
    NUMBERS,
    ORDINALS,
    position_questions,
    refer,
    understanding_questions,
)

CODEC = get_codec("scout")
BLOCK = 8
HARD = ("count", "exists", "region", "relation", "shape")  # asked more often: one word carries what is to be learned
FIRST_TRAINING_SEED = 10_000_000  # below it: the scenes of shards, held-out ones included


class Lesson(NamedTuple):
    """Pictures (JPEG), the (question, answer) pairs about them, and their patch labels; no picture means pure text."""

    images: list[bytes]
    pairs: list[tuple[str, str]]
    labels: list[list[list[int]]]


def lesson(seed: int, side: int = 6) -> Lesson:
    """The lesson of one seed, with `side` x `side` patches: 85% one picture, 8% two to six pictures, 7% pure text.

    Lessons of several pictures are long; they come in blocks of `BLOCK` seeds, so that batches are of one length.
    """
    random = Random(seed)
    if Random(seed // BLOCK).random() < 0.08:
        return _many_pictures(seed, random, side)
    if random.random() < 0.08:
        return Lesson([], [text_question(random) for _ in range(8)], [])
    scene = sample_scene(FIRST_TRAINING_SEED + seed)
    return Lesson([jpeg(render(scene))], picture_pairs(scene, random), [patch_labels(scene, side)])


def picture_pairs(scene: Scene, random: Random) -> list[tuple[str, str]]:
    """Questions about one scene, where two of its objects are in words, a description, at times a caption."""
    pairs = []
    asked = understanding_questions(scene, random)[:6]
    asked += [q for q in understanding_questions(scene, random) if q.subtask in HARD]
    for question in asked:
        text = question.text
        if question.regions:
            text = text.replace("{region:0}", CODEC.format(question.regions))
        pairs.append((text, question.answer))
    for thing in random.choices(scene.things, k=2):
        facts = [(q.text, q.answer) for q in position_questions(scene, thing, random)]
        pairs += random.sample(facts, min(2, len(facts)))
    thing = random.choice(scene.things)
    if phrase := refer(scene, thing, random):
        pairs.append((f"What is the {phrase}?", f"a {thing.size} {thing.color} {thing.shape}"))
    if random.random() < 0.2:
        pairs.append((random.choice(templates("caption")), caption(scene)))
    random.shuffle(pairs)
    return pairs


def caption(scene: Scene) -> str:
    """All objects from left to right."""
    things = sorted(scene.things, key=lambda t: scene.center(t)[0])
    return " and ".join(f"a {t.size} {t.color} {t.shape}" for t in things) + "."


def _many_pictures(seed: int, random: Random, side: int) -> Lesson:
    total = random.randint(2, 6)
    scenes = [sample_scene(FIRST_TRAINING_SEED + seed * 8 + i, max_objects=4) for i in range(total)]
    pairs = [("How many images are there?", NUMBERS[total])]
    for _ in range(8):
        index = random.randrange(total)
        thing = random.choice(scenes[index].things)
        name = f"{thing.color} {thing.shape}"
        where = [
            i for i, s in enumerate(scenes) if any((t.color, t.shape) == (thing.color, thing.shape) for t in s.things)
        ]
        phrase = refer(scenes[index], thing, random, without="color")
        if len(where) == 1 and random.random() < 0.6:
            pairs.append((f"In which image is the {name}?", f"in the {ORDINALS[index]} image"))
        elif phrase:
            pairs.append((f"In the {ORDINALS[index]} image, what color is the {phrase}?", thing.color))
    return Lesson([jpeg(render(s)) for s in scenes], pairs, [patch_labels(s, side) for s in scenes])


def tokenizer_lines() -> list[str]:
    """Text whose words the tokenizer should know whole."""
    random = Random(0)
    lines = [pair for i in range(400) for pair in _flat(picture_pairs(sample_scene(i), Random(i)))]
    lines += [text for make in MAKERS for _ in range(100) for text in make(random)]
    names = ("localization", "rec", "scout", "caption", "caption_grounded")
    lines += [line for name in names for line in templates(name)] * 50
    words = (*COLORS, *SHAPES, *SIZES, *NUMBERS, *ORDINALS, *" ".join(EVERYDAY).split())
    return [*lines, *[f"{w} {w}s the {w}. USER: ASSISTANT: {w}" for w in words] * 30]


def _flat(pairs: list[tuple[str, str]]) -> list[str]:
    return [text for pair in pairs for text in pair]
