"""Pure text for the base's training: numbers, brackets, step phrases and markup that belong to no picture."""

from random import Random

from tools.experiments.tiny_base.words import EVERYDAY
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.pipelines.toy_world.scene import COLORS, RELATIONS, SHAPES, SIZES
from ts_lightning.pipelines.toy_world.understanding import NUMBERS

CODEC = get_codec("scout")


def text_question(random: Random) -> tuple[str, str]:
    """One (question, answer) of pure text; its boxes are random numbers."""
    return random.choice(MAKERS)(random)


def random_box(random: Random) -> Box:
    """A box that no picture has."""
    (x1, x2), (y1, y2) = (sorted(random.sample(range(101), 2)) for _ in range(2))
    return x1 / 100, y1 / 100, x2 / 100, y2 / 100


def box_text(random: Random) -> str:
    """A random box in the toy codec."""
    return CODEC.format([random_box(random)])


def noun(random: Random) -> str:
    """A noun phrase without an article."""
    if random.random() < 0.25:
        return random.choice(EVERYDAY)
    words = [random.choice(COLORS), random.choice(SHAPES)]
    return " ".join(words if random.random() < 0.7 else [random.choice(tuple(SIZES)), *words])


def step_text(random: Random) -> str:
    """A step-by-step answer about nothing, in the paper's form, with random numbers."""
    anchor, target = random.choice(SHAPES), random.choice(SHAPES)
    first, second, color = box_text(random), box_text(random), random.choice(COLORS)
    if random.random() < 0.25:
        found = f"Step 1: Find the {anchor} {first}. Step 2: The {anchor} {first} is {color}."
        return f"{found} Step 3: So the answer is {color}."
    relation = random.choice(RELATIONS)
    return (
        f"Step 1: Find the {anchor} {first}. Step 2: Check the object {relation} it, got the {target} {second}. "
        f"Step 3: The {target} {second} is {color}. Step 4: So the answer is {color}."
    )


def rejection_text(random: Random) -> str:
    """A rejection about nothing, in the paper's form, with random numbers."""
    absent = noun(random)
    return (
        f"Step 1: Find the {absent}. Step 2: There is a {noun(random)} {box_text(random)} in the image, "
        f"not a {absent}. This question is invalid."
    )


def caption_text(random: Random) -> str:
    """A grounded caption about nothing."""
    return " and ".join(f"a {noun(random)} {box_text(random)}" for _ in range(random.randint(1, 4))) + "."


def _markup(random: Random) -> str:
    a, b, c, d = (random.randint(0, 999) for _ in range(4))
    name, region = noun(random), f"{random.randint(1, 4)}-{random.randint(1, 4)}"
    pair = f"<|box_start|>({a},{b}),({c},{d})<|box_end|>"
    return random.choice(
        (
            f"<box>0.{a:03d},0.{b:03d},0.{c:03d},0.{d:03d}</box>",
            f"<box>0.{a:03d},0.{b:03d}</box>",
            f"<|object_ref_start|>{name}<|object_ref_end|>{pair}",
            f"<bbox_id>[{region}]</bbox_id><|object_ref_start|>{name}<|object_ref_end|>{pair}",
            f"<think>the {name} is <bbox_id>[{region}]</bbox_id></think><answer>{pair}</answer>",
            f"[0.{a:03d},0.{b:03d},0.{c:03d},0.{d:03d}]",
        )
    )


def _copy(random: Random) -> tuple[str, str]:
    text = random.choice((box_text, box_text, _markup, step_text, caption_text, rejection_text))(random)
    return f"Copy {text}", text


def _larger(random: Random) -> tuple[str, str]:
    a, b = random.sample(range(101), 2)
    word = random.choice(("larger", "smaller"))
    return f"Which is {word}, {a} or {b}?", str(max(a, b) if word == "larger" else min(a, b))


def _before(random: Random) -> tuple[str, str]:
    a, b = random.sample(range(101), 2)
    return f"Does {a} come before {b}?", "yes" if a < b else "no"


def _continue(random: Random) -> tuple[str, str]:
    start, step = random.randint(0, 80), random.choice((1, 1, 2, 5))
    numbers = [str(n) for n in range(start, 101, step)][:6]
    cut = random.randint(1, len(numbers))
    return f"Continue {','.join(numbers[:cut])}", ",".join(numbers[cut:]) or "end"


def _count(random: Random) -> tuple[str, str]:
    total = random.randint(1, 8)
    return f"How many numbers in {','.join(str(random.randint(0, 100)) for _ in range(total))}?", NUMBERS[total]


def _words(random: Random) -> tuple[str, str]:
    n = random.randint(0, 20)
    pairs = ((f"Write {NUMBERS[n]} in digits", str(n)), (f"Write {n} in words", NUMBERS[n]))
    hundredths = (f"Write {NUMBERS[n]} twentieths in hundredths", str(n * 5))
    twentieths = (f"Write {n * 5} hundredths in twentieths", NUMBERS[n])
    return random.choice((*pairs, hundredths, twentieths))


def _measure(random: Random) -> tuple[str, str]:
    box = random_box(random)
    x1, y1, x2, y2 = (round(v * 100) for v in box)
    facts = {"left edge": x1, "top edge": y1, "right edge": x2, "bottom edge": y2, "width": x2 - x1, "height": y2 - y1}
    name = random.choice(tuple(facts))
    if random.random() < 0.5:
        return f"What is the {name} of {CODEC.format([box])}?", str(facts[name])
    return f"What is the {name} of {CODEC.format([box])} in twentieths?", NUMBERS[int(facts[name] / 5 + 0.5)]


def _write(random: Random) -> tuple[str, str]:
    kinds = {"steps": step_text, "a list": box_text, "a caption with boxes": caption_text, "a refusal": rejection_text}
    name = random.choice(tuple(kinds))
    return f"Write {name}.", kinds[name](random)


MAKERS = (_copy, _copy, _larger, _before, _continue, _count, _words, _words, _measure, _measure, _write, _write)
