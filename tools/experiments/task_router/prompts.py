"""Prompts for the task router: questions that want a place in the picture, and all others, in many wordings.

Where / find / locate / point / show / detect, a request for boxes and a bare referring expression are grounding. All
else is understanding, and so is a question about a region that the user gives. A template is a whole line with open
slots. Every fifth template is held out by its hash: no line of a held-out one is ever trained on, while its words are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from random import Random

from ts_lightning.grounding.prompts import templates
from ts_lightning.grounding.tasks import GROUNDING, UNDERSTANDING


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@cache
def words(kind: str) -> tuple[str, ...]:
    """The words of one kind (nouns, adjectives, gerunds, verbs, traits, kinds, places, openers, closers)."""
    lines = (line.partition(": ") for line in templates("router/words"))
    return tuple(word for name, _, rest in lines if name == kind for word in rest.split(", "))


DETERMINERS = ("the", "the", "the", "a", "a", "my", "this", "that", "his", "her", "their", "your", "")
RELATIONS = (
    *(
        "left of",
        "to the left of",
        "right of",
        "to the right of",
        "above",
        "below",
        "behind",
        "next to",
        "near",
        "with",
    ),
    *("in front of", "on top of", "on", "under", "in", "of", "by", "holding", "wearing", "between", "closest to"),
)

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
BEHIND = (" with {x}", ", with {x}", " using {x}", " and give {x}", ", giving {x}", " and add {x}")
STEPS = (
    *("Reason in steps with {x}", "Use {x} in each step", "Answer in steps with {x}", "Explain it with {x}"),
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
    *(
        "Provide the {y} of {a}",
        "Please provide the {y} for {a}",
        "Please return the {y} of {a}",
        "Tell me the {y} of {a}",
    ),
    *("Give the {y} of the area with {a}", "Return the {y} of the part that shows {a}", "{y} for: {a}", "{y}: {a}"),
    *("Provide {y} for the thing described as {a}", "Please output the {y} of what this says: {a}"),
    *(
        "Please give the {y} of the region this phrase names: {a}.",
        "Provide the {y} of the region in this description: {a}",
    ),
    *(
        "Please provide the {y} of the object that this expression means: {a}",
        "The {y} of what this sentence says: {a}",
    ),
    *("Return the {y} of the area this caption talks about: {a}.", "Please provide the {y} this text describes: {a}."),
    *(
        "Please output the {y} for the region described by these words: {a}",
        "Provide the {y} that fits the sentence: {a}.",
    ),
    *("Which region does this expression describe? Give the {y}: {a}", "Describe where it is by the {y}: {a}"),
    "Draw the {y} around {a}",
    "I need the {y} of {a}",
    "Please give the {y} of {a}",
    "Can you give me the {y} of {a}?",
    "{y} of {a} please",
    "Output the {y} for {a}",
    "{a}: {y}",
    "Show the {y} of {a}",
)
PLACES = (
    *("box", "bounding box", "bbox", "coordinates", "box coordinates", "bounding boxes", "location as a box"),
    *("bounding box coordinates", "box coordinate", "bounding box coordinate", "x and y coordinates"),
)

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
    *("Is {x} open?", "What do you think of {x}?", "Who made {x}?", "How does {x} look?", "Explain {x}."),
    *("Read {x}.", "What does {x} contain?", "Tell me about {x}.", "Why is {x} there?", "Can you open {x}?"),
    *("Is {a} in {x}?", "Count {x}.", "What is the meaning of {x}?", "Who needs {x}?", "Write a joke about {x}."),
    *("Are you sure about {x}?", "Is {x} larger than {a}?", "Which of {x} is closer to {a}?", "What do {x} hold?"),
    *("How heavy is {x}?", "Is the object in {x} {a}?", "What is written on {x}?", "Which color has {x}?"),
)


@cache
def instructions() -> tuple[str, ...]:
    """What turns the question {q} into a grounding one: a sentence behind it or a lead before it."""
    after = [f"{{q}} {form.format(x=x)}{scope}." for form, x, scope in product((*REPLY, *GIVE), BOXES, SCOPES)]
    after += [f"{{q}} {form.format(x=x)}." for form, x in product(STEPS, BOXES)]
    after += [f"{{q}}{form.format(x=x)}{scope}." for form, x, scope in product(BEHIND, BOXES, SCOPES)]
    return (*after, *(f"{form.format(x=x)}{{q}}" for form, x in product(LEADS, BOXES)))


@cache
def requests() -> tuple[str, ...]:
    """Requests for the box of {a} in one sentence."""
    asked = [form.replace("{y}", y) for form, y in product(ASK, PLACES)]
    return (*(f"{verb} {{a}}{by.format(x=x)}." for verb, by, x in product(FIND, BY, BOXES)), *asked)


@cache
def styles() -> tuple[str, ...]:
    """What may stand around the question {q} without asking for a box."""
    return ("{q}", *(f"{{q}} {style}." for style in STYLES), *(f"{style}: {{q}}" for style in STYLES))


@cache
def _lines() -> dict[str, tuple[str, ...]]:
    about = tuple(form.replace("{x}", x) for form, x in product(ABOUT, BOX_THINGS))
    files = {
        name: tuple(templates(f"router/{name}")) for name in ("questions", "plain", "regions", "chat", "find", "calls")
    }
    return files | {"about": about, "instructions": instructions(), "requests": requests(), "styles": styles()}


@cache
def _part(held: bool) -> dict[str, tuple[str, ...]]:
    return {name: tuple(t for t in lines if held_out(t) == held) for name, lines in _lines().items()}


def prompts(number: int, seed: int, held: bool, expressions: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """`number` (prompt, task) pairs, half of each task; a question often comes twice, without and with boxes.

    Prompts of the held-out part use held-out templates only: of the question, and of what stands around it. In the
    training part things may have a made-up name, and there are typing errors. `expressions` are referring expressions
    that people wrote: they stand alone and in the place of things.
    """
    random = Random(seed)
    part, fill = _part(held), _Fill(random, made_up=not held, expressions=expressions)
    ends = {"questions": 0.15, "about": 0.15, "plain": 0.4, "regions": 0.1, "chat": 0.2}
    for _ in range(number // 2):
        question = fill(random.choice(part[random.choices([*ends], [*ends.values()])[0]]))
        long = random.random() < 0.05  # what counts may come after much else
        if long:
            question = f"{question} " * random.randint(2, 30) + question
        bare, style = random.random() < 0.7, random.choice(part["styles"])
        yield fill.typed(question if bare else style.replace("{q}", question)), UNDERSTANDING
        draw = random.random()
        if draw < 0.27 or long:
            form = random.choice(part["instructions"])
            request = form.replace("{q}", question.rstrip(".?") if form[3:].lstrip(", ")[:1].islower() else question)
        elif draw < 0.45:
            request = fill(random.choice(part["requests"]))
        elif draw < 0.77:
            request = fill(random.choice(part["find"]))
            if random.random() < 0.05:
                request = style.replace("{q}", request)
        else:
            request = fill.call(part["calls"])
        yield fill.typed(request), GROUNDING


class _Fill:
    """Fills the slots of templates, and dresses a line as people type.

    {a}, {b} things, {n} plural, {w} noun, {j} adjective, {g} gerund, {v} verb, {t} trait, {k} kind, {p} place and
    {r} region
    """

    def __init__(self, random: Random, made_up: bool, expressions: Sequence[str]) -> None:
        self.random, self.made_up, self.expressions = random, made_up, expressions

    def __call__(self, template: str) -> str:
        slots = {"w": self.noun, "n": self.plural, "a": self.thing, "b": self.thing, "r": self.region}
        kinds = {"j": "adjectives", "g": "gerunds", "v": "verbs", "t": "traits", "k": "kinds", "p": "places"}
        for slot in (*slots, *kinds):
            while f"{{{slot}}}" in template:
                value = slots[slot]() if slot in slots else self.random.choice(words(kinds[slot]))
                template = template.replace(f"{{{slot}}}", value, 1)
        return template

    def noun(self) -> str:
        """One noun, at times a pair of them or a made-up word."""
        random = self.random
        if self.made_up and random.random() < 0.1:
            return "".join(
                random.choice("bcdfghklmnprstvwz") + random.choice("aeiouy") for _ in range(random.randint(1, 4))
            )
        noun = random.choice(words("nouns"))
        return f"{random.choice(words('nouns'))} {noun}" if random.random() < 0.08 else noun

    def plural(self) -> str:
        """Several things."""
        noun = self.noun()
        adjective = f"{self.random.choice(words('adjectives'))} " if self.random.random() < 0.3 else ""
        return f"{adjective}{noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"

    def thing(self, alone: bool = False) -> str:
        """A thing that is spoken of, at times told by another (not where `alone`)."""
        random = self.random
        if self.expressions and random.random() < 0.25:
            phrase = random.choice(self.expressions)
            return phrase if phrase.startswith("the ") or random.random() < 0.3 else f"the {phrase}"
        if random.random() < 0.06:
            return random.choice(
                ("it", "this", "that", "he", "she", "him", "her", "them", "the other one", "everything")
            )
        adjectives = (random.choice(words("adjectives")) for _ in range(random.choice((0, 0, 1, 1, 2))))
        name = " ".join((random.choice(DETERMINERS), *adjectives, self.noun())).strip()
        draw = random.random()
        if draw < 0.2 and not alone:
            return f"{name} {random.choice(RELATIONS)} {self.thing(alone=True)}"
        if draw < 0.3:
            return f"{name} {random.choice(words('places'))}"
        if draw < 0.4:
            return f"{name} {random.choice(('', 'that is ', 'who is '))}{random.choice(words('gerunds'))}"
        return name

    def call(self, calls: Sequence[str]) -> str:
        """A referring expression alone, as in RefCOCO."""
        if self.expressions and self.random.random() < 0.5:
            return self.random.choice(self.expressions)
        return self(self.random.choice(calls)).lower()

    def region(self) -> str:
        """A region that the user gives: a mark of the prompt, numbers, or words around them."""
        random = self.random
        numbers = [random.choice((random.randint(0, 999), random.randint(0, 99), random.random())) for _ in range(4)]
        x, y, w, h = (f"{n:.2f}" if isinstance(n, float) else str(n) for n in numbers)
        mark = random.choice((f"[{x}, {y}, {w}, {h}]", f"({x}, {y})", "{region:0}", "#1"))
        spelled = random.choice((f"x1={x} y1={y} x2={w} y2={h}", f"x={x}, y={y}", f"{x} {y} {w} {h}", f"pixel {x} {y}"))
        around = (
            *("{m}", "{m}", "{m}", "region {m}", "the region {m}", "the box {m}", "this area {m}", "the area {m}"),
            *("box {m}", "bbox {m}", "point {m}", "the point {m}", "this region: {m}", "the bounding box {m}"),
            *("the object in {m}", "the marked region {m}", "the location {m}", "the user's box {m}"),
        )
        return random.choice(around).replace("{m}", spelled if random.random() < 0.1 else mark)

    def typed(self, prompt: str) -> str:
        """As people type: words before and behind, lower case, no final mark, an article less, a typing error."""
        random = self.random
        if random.random() < 0.12:
            opener = random.choice(words("openers"))
            prompt = f"{opener}{random.choice((' ', ', '))}{prompt if random.random() < 0.5 else _lower_first(prompt)}"
        if random.random() < 0.12:
            prompt = f"{prompt.rstrip('.?')}{random.choice((' ', ', '))}{random.choice(words('closers'))}"
        if random.random() < 0.3:
            prompt = prompt.lower()
        if random.random() < 0.25:
            prompt = prompt.rstrip(".?")
        if random.random() < 0.1:
            prompt = prompt.replace(" the ", " ").replace(" a ", " ")
        if random.random() < 0.3:
            prompt = prompt.replace("'", "")
        if self.made_up and random.random() < 0.1:
            prompt = self._mistyped(prompt)
        return prompt

    def _mistyped(self, prompt: str) -> str:
        """Two letters swapped, one left out, or one twice."""
        at = self.random.randrange(max(1, len(prompt) - 1))
        a, b = prompt[at : at + 1], prompt[at + 1 : at + 2]
        if not (a + b).isalpha():
            return prompt
        return prompt[:at] + self.random.choice((b + a, b, a + a + b)) + prompt[at + 2 :]


def held_out(template: str) -> bool:
    """Whether a template belongs to the held-out part."""
    return hashlib.sha256(template.encode()).digest()[0] % 5 == 0


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


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
