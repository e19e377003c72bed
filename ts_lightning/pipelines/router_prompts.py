"""Prompts for the task router: questions with and without an instruction to answer with boxes, in many wordings.

A template is a whole line with its slots open. Every fifth template is held out by its hash: no line of a held-out one
is ever trained on, while its single words are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from random import Random

from ts_lightning.grounding.prompts import templates

UNDERSTANDING, GROUNDING = "understanding", "grounding"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "circle square triangle star cross ring dog cat person man woman child car bus truck bicycle horse bird "
    "cup bottle chair table lamp book phone shirt hat shoe tree flower house door window sign ball box box box step "
    "map grid frame bag clock plate knife banana apple umbrella boat plane train laptop keyboard dress"
)
ADJECTIVES = ("", *_words("red blue green yellow purple orange white black small large old wooden striped round tall"))
RELATIONS = ("left of", "right of", "above", "below", "behind", "next to", "in front of", "on top of")
REGIONS = ("{region:0}", "{region:1}", "#1", "#2", "region #1", "the box {region:0}", "this area {region:0}")

BOXES = (
    *("a box", "boxes", "its box", "the box", "a bounding box", "bounding boxes", "its bounding box", "a bbox"),
    *(
        "the coordinates",
        "box coordinates",
        "its coordinates",
        "the box coordinates",
        "grounded boxes",
        "[x1, y1, x2, y2]",
    ),
)
SCOPES = (
    "",
    " for it",
    " for each object",
    " of each object",
    " for everything you mention",
    " in your answer",
    " too",
)
REPLY = ("Answer with {x}", "Reply with {x}", "Respond with {x}", "Answer using {x}", "Answer by giving {x}")
GIVE = tuple(f"{v} {{x}}" for v in _words("Give Provide Return Output Include Add Report Write Show Draw"))
STEPS = (
    *("Answer step by step with {x}", "Think in steps and give {x}", "Reason step by step and give {x}"),
    *("Go step by step, with {x}", "Think step by step and ground each step with {x}"),
)
LEADS = (
    "With {x}: ",
    "Using {x}, answer this: ",
    "Give {x} for every object you name. ",
    "Ground your answer with {x}. ",
)
FIND = (*_words("Locate Find Detect Mark Localize Identify Highlight Spot Ground Show"), "Point out")
BY = (" with {x}", " and give {x}", " and answer with {x}", " by {x}", " using {x}", ": {x} please", ", return {x}")
ASK: tuple[str, ...] = (
    "Give the {y} of {a}",
    "What is the {y} of {a}?",
    "What are the {y} of {a}?",
)
ASK += (
    "Draw the {y} around {a}",
    "I need the {y} of {a}",
    "Please give the {y} of {a}",
    "Can you give me the {y} of {a}?",
    "{y} of {a} please",
    "Output the {y} for {a}",
    "{a}: {y}",
    "Show the {y} of {a}",
)
PLACES = ("box", "bounding box", "bbox", "coordinates", "box coordinates", "bounding boxes", "location as a box")

STYLES = (
    *("In short", "In detail", "Answer in one word", "Answer with a word", "Answer with a number", "Be brief"),
    *("Give a short answer", "Reply with yes or no", "Answer in a full sentence", "Think in steps", "Take your time"),
    *("Answer step by step", "Think step by step", "Explain your answer", "Answer with a letter", "Return one word"),
    *("Reason step by step and give the answer", "Show your reasoning", "Answer like a pirate", "Use simple words"),
    *(
        f"{verb} {what}"
        for verb in _words("Include Add Give Write Show Mention Return Output Provide Report")
        for what in (
            *("every detail", "a reason", "one example", "the date", "your sources", "a short summary", "all colors"),
            *("a number", "the name only", "two sentences", "a title", "a short phrase", "one word", "an opinion"),
        )
    ),
)
# Boxes and coordinates that are things in the picture: asking about them asks for no grounding.
BOX_THINGS = (
    *("the box", "a box", "this box", "that old box", "the boxes", "all boxes", "these boxes", "the two boxes"),
    *("the coordinates on the sign", "the coordinates", "these coordinates", "the map coordinates"),
    *("the text box", "the mail box", "the box in {r}", "the box next to {a}", "the tool boxes"),
)
ABOUT = (
    *("What color is {x}?", "Compare {x}.", "Describe {x}.", "What is in {x}?", "Is there {x} under {a}?"),
    *("Is {x} open?", "What do you think of {x}?", "Who made {x}?", "Where does {x} stand?", "Explain {x}."),
    *("Read {x}.", "What does {x} contain?", "Tell me about {x}.", "Why is {x} there?", "Can you open {x}?"),
    *("Is {a} in {x}?", "Count {x}.", "What is the meaning of {x}?", "Who needs {x}?", "Write a joke about {x}."),
    *("Are you sure about {x}?", "Is {x} larger than {a}?", "Which of {x} is closer to {a}?", "What do {x} hold?"),
    *("How heavy is {x}?", "Is the object in {x} {a}?", "What is written on {x}?", "Which color has {x}?"),
)


def held_out(template: str) -> bool:
    """Whether a template belongs to the held-out part."""
    return hashlib.sha256(template.encode()).digest()[0] % 5 == 0


_ASKING = _words("box boxes Box Boxes coordinates bbox bounding grounded ground")  # never by chance
_ORDERS = tuple(sorted({form.split()[0] for form in (*REPLY, *GIVE, *STYLES)} | {"Include", "Add", "Give", "Mark"}))


@cache
def instructions() -> tuple[str, ...]:
    """What turns the question {q} into a grounding one: a sentence behind it or a lead before it."""
    after = [f"{{q}} {form.format(x=x)}{scope}." for form, x, scope in product((*REPLY, *GIVE), BOXES, SCOPES)]
    after += [f"{{q}} {form.format(x=x)}." for form, x in product(STEPS, BOXES)]
    return (*after, *(f"{form.format(x=x)}{{q}}" for form, x in product(LEADS, BOXES)))


@cache
def requests() -> tuple[str, ...]:
    """Requests for the place of {a} in one sentence."""
    asked = [form.replace("{y}", y) for form, y in product(ASK, PLACES)]
    return (*(f"{verb} {{a}}{by.format(x=x)}." for verb, by, x in product(FIND, BY, BOXES)), *asked)


@cache
def styles() -> tuple[str, ...]:
    """What may stand around the question {q} without asking for a box."""
    return ("{q}", *(f"{{q}} {style}." for style in STYLES), *(f"{style}: {{q}}" for style in STYLES))


def prompts(number: int, seed: int, held: bool) -> Iterator[tuple[str, str]]:
    """`number` (prompt, task) pairs, half of each task; a question comes twice in a row, without and with boxes.

    Prompts of the held-out part use held-out templates only: of the question, and of what stands around it. In the
    training part many questions have words replaced by others, real or made up, and some have a second sentence of such
    words: what counts is whether boxes are asked for, not whether the words are known.
    """
    random = Random(seed)
    parts = {name: [t for t in lines if held_out(t) == held] for name, lines in _lines().items()}
    pool = sorted({w for line in parts["questions"] for w in line.split() if w.isalpha()} - set(_ASKING))
    for _ in range(number // 2):
        question = fill(random.choice(parts["questions"]), random)
        if not held and random.random() < 0.5:
            question = _strange(question, pool, random)
        if not held and random.random() < 0.1:  # long ones: what counts may come after much else
            question = f"{_strange(question, pool, random)} " * random.randint(2, 12) + question
        if random.random() < 0.4:
            yield _varied(question, random), UNDERSTANDING
        else:
            yield _varied(random.choice(parts["styles"]).replace("{q}", question), random), UNDERSTANDING
        if random.random() < 0.6:
            yield _varied(random.choice(parts["instructions"]).replace("{q}", question), random), GROUNDING
        else:
            yield _varied(fill(random.choice(parts["requests"]), random), random), GROUNDING


def _strange(question: str, pool: Sequence[str], random: Random) -> str:
    """The question with words replaced, at times followed by an order of strange words."""
    share = random.choice((0.2, 0.5, 1.0))
    words = [_word(pool, random) if w.isalpha() and random.random() < share else w for w in question.split()]
    if random.random() < 0.4:
        order = [random.choice(_ORDERS), *(_word(pool, random) for _ in range(random.randint(1, 4)))]
        words = [*words, *order] if random.random() < 0.7 else [*order, ".", *words]
    return " ".join(words) + ("" if words[-1].endswith("?") else random.choice(("", ".", "?", "!")))


def _word(pool: Sequence[str], random: Random) -> str:
    """A word of the templates, or syllables that are none."""
    if random.random() < 0.5:
        return random.choice(pool)
    return "".join(random.choice("bcdfghklmnprstvwz") + random.choice("aeiouy") for _ in range(random.randint(1, 4)))


def _lines() -> dict[str, tuple[str, ...]]:
    about = (form.replace("{x}", x) for form, x in product(ABOUT, BOX_THINGS))
    questions = (*templates("router/questions"), *about)
    return {"questions": questions, "instructions": instructions(), "requests": requests(), "styles": styles()}


def fill(template: str, random: Random) -> str:
    """A template with its slots filled: {a}, {b} things, {n} a plural, {w} a word, {r} a region."""
    values = {"a": thing(random), "b": thing(random), "w": random.choice(NOUNS), "r": random.choice(REGIONS)}
    adjective = random.choice(ADJECTIVES)
    noun = random.choice(NOUNS)
    values["n"] = f"{adjective} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}".strip()
    for slot, value in values.items():
        template = template.replace(f"{{{slot}}}", value)
    return template


def thing(random: Random) -> str:
    """A referring expression."""
    name = " ".join(["the", random.choice(ADJECTIVES), random.choice(NOUNS)]).replace("  ", " ")
    return f"{name} {random.choice(RELATIONS)} {thing(random)}" if random.random() < 0.25 else name


def _varied(prompt: str, random: Random) -> str:
    """As people type: at times in lower case, without a final mark, with an article less."""
    if random.random() < 0.25:
        prompt = prompt.lower()
    if random.random() < 0.2:
        prompt = prompt.rstrip(".?")
    if random.random() < 0.1:
        prompt = prompt.replace(" the ", " ")
    return prompt


# Wordings of neither part, written by hand: how far it carries.
FREE = (
    *(
        (f"{text}", UNDERSTANDING)
        for text in (
            "what's that thing on the right?",
            "whats the dog up to",
            "Do you think the cat is hungry?",
            "Which of the two buses is older?",
            "how many ppl are wearing hats",
            "Is the box heavy?",
            "Please describe the scene as a poem.",
            "Can you tell me what the sign says?",
            "Guess the photographer's mood.",
            "What would you name this painting?",
            "How tall is the tree, roughly?",
            "Hello!",
            "thanks",
            "",
            "Who painted this?",
            "What's inside the wooden box?",
            "What are the opening hours?",
            "Is that a real horse?",
            "Give me a title for the photo.",
            "Is the square inside the circle?",
            "Are the boxes stacked?",
            "What is the third word on the page?",
            "What are the steps to bake this cake?",
            "Where was this taken?",
        )
    ),
    *(
        (f"{text}", GROUNDING)
        for text in (
            "bbox of the dog pls",
            "I'd like bounding boxes around all people",
            "box the cat",
            "dog bounding box",
            "where's the red car? coordinates please",
            "Give me [x1,y1,x2,y2] for the lamp.",
            "Localise the ball with a box",
            "Can you put a box around the child?",
            "Could you return the box of the second bus?",
            "What color is the hat? Show me where with a box.",
            "Describe the photo and add boxes for what you mention.",
            "Please ground every object in your caption with boxes.",
            "Which region, as a bounding box, holds the clock?",
            "Provide box coordinates for each of the birds.",
            "mark the umbrella using a bounding box",
            "Tell me the bounding box coordinates of the man in blue.",
            "Answer with the box: where is the knife?",
            "Is the door open? Reason in steps with boxes.",
            "Explain step by step, giving a box for each object you use.",
            "Find every apple and output the boxes.",
            "Output a box for the star.",
            "Where is the ring? Give a bounding box.",
            "Return the location of the dog as a bounding box.",
            "Outline the plane with a bounding box.",
        )
    ),
)
