"""What a generated text says of its boxes, held against the annotations: measured and right, wrong, or unchecked.

Only what was measured counts as right: a name must be the annotation's own, a synonym or a wider word of it, a relation
must follow from the boxes or be annotated. Everything else that a text says is unchecked.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ts_lightning.data.sample import REGION_MARK
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.pipelines.english import ODD_PLURALS
from ts_lightning.pipelines.scenes import Scene, stem

AGREE = 0.5  # IoU, as in the paper's check by hand (section 4)
WHOLE = 0.9  # a box of this share of the picture is right only where an annotation is as large
_WORD = re.compile(r"[a-z0-9]+")
_BEFORE = re.compile(r"([\w' -]+?)\s*$")
_SMALL = {"a", "an", "the", "of", "and", "with", "in", "on", "is", "are", "kind", "there", "box", "boxes", "that", "it"}
_SENTENCE = re.compile(r"Step \d+\s*[:;]\s*|(?<=[.!?])\s+")
_HOW = (
    "to the left of|left of|on the left of|to the right of|right of|on the right of|above|below|larger than"
    "|smaller than|higher than|lower than"
)
_SIDE = re.compile(
    rf"\{{region:(\d+)\}} (?:is|are|looks?|appears?) ({_HOW}) (?:the|a|an)? ?[\w' -]*?\{{region:(\d+)\}}", re.IGNORECASE
)
_PLACE = re.compile(
    r"\{region:(\d+)\} (?:is|are) in the ((?:top |bottom )?(?:left|right)|top|bottom|center) of the (?:image|picture)"
)
_HALF = re.compile(r"\{region:(\d+)\} (?:is|are) in the (left|right|top|bottom) half of the (?:image|picture)")
_CORNER = re.compile(
    r"\{region:(\d+)\} (?:is|are) closest to the (top|bottom) (left|right) corner of the (?:image|picture)"
)
_EDGE = re.compile(r"\{region:(\d+)\} is the (leftmost|rightmost|highest|lowest|largest|smallest)\b")
_COUNT = re.compile(r"((?:\{region:\d+\}(?:, | and )?)+) (?:is|are|makes?) (\w+)\b")
_THERE = re.compile(r"there (?:are|is) (\w+) [\w' -]+? ((?:\{region:\d+\}(?:, | and )?)+)", re.IGNORECASE)
_COVERS = re.compile(
    r"\{region:(\d+)\} (?:takes? up|covers?|fills?) (more|less) of the (?:picture|image) than (?:the|a|an) "
    r"[\w' -]*?\{region:(\d+)\}",
    re.IGNORECASE,
)
_FAR = re.compile(r"\{region:(\d+)\} (?:is|are) (?:furthest|nearest) to the (left|top|right|bottom)\b")
_LINK = re.compile(
    r"\{region:(\d+)\} (?:is |are )?([a-z][a-z ]*?) (?:the|a|an) [\w' -]*?\{region:(\d+)\}", re.IGNORECASE
)
_FIRST = re.compile(r"(leftmost|rightmost|largest|smallest|highest|lowest) [\w' -]*?\{region:(\d+)\}")
_FINDS = {
    *(
        "find",
        "locate",
        "check",
        "identify",
        "got",
        "get",
        "every",
        "all",
        "each",
        "object",
        "objects",
        "number",
        "count",
    ),
    *("leftmost", "rightmost", "largest", "smallest", "highest", "lowest", "to", "left", "right", "above", "below"),
    *("furthest", "nearest", "top", "bottom", "image", "picture", "its", "not", "what", "side", "here", "see", "this"),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PEOPLE = (
    "person man woman boy girl child kid baby people player lady guy gentleman adult human rider skier surfer skater "
    "skateboarder snowboarder pedestrian batter pitcher catcher umpire worker men women children"
)
_GROUPS = (  # words of one thing
    _PEOPLE,
    "couch sofa",
    "bus buses",
    "knife knives",
    "mouse mice",
    "tv television monitor screen",
    "phone cellphone smartphone mobile",
    "motorcycle motorbike",
    "airplane plane aeroplane jet aircraft",
    "bicycle bike",
    "refrigerator fridge",
    "donut doughnut",
    "boat ship",
    "cup mug",
    "tie necktie",
    "handbag purse",
    "suitcase luggage",
    "drier dryer",
    "car automobile sedan",
    "cow cattle bull",
    "skis ski",
    "remote controller",
    "glove mitt",
    "laptop computer notebook",
    "dog puppy",
    "cat kitten",
    "rug carpet",
    "oven stove",
    "racket racquet",
    "bed mattress",
)
_STEMMED = [set(map(stem, group.split())) for group in _GROUPS]
_APART = [set(group.split()) for group in ("man men guy gentleman", "woman women lady", "boy", "girl", "baby")]
_WIDER = {  # a wider word: what it may be said of
    "animal": "cat dog horse sheep cow elephant bear zebra giraffe bird",
    "pet": "cat dog",
    "vehicle": "car bus truck train motorcycle bicycle airplane boat",
    "fruit": "banana apple orange",
    "food": "banana apple sandwich orange broccoli carrot pizza donut cake dog",
    "vegetable": "broccoli carrot",
    "furniture": "chair couch bed table",
    "seat": "chair couch bench",
    "bag": "handbag backpack suitcase",
    "utensil": "fork knife spoon",
    "cutlery": "fork knife spoon",
    "device": "tv laptop mouse remote keyboard phone",
    "appliance": "microwave oven toaster refrigerator",
    "dish": "bowl cup",
}
_OWN = {("hot", "dog")}  # names that are no kind of their last word


ELSEWHERE = "meets no annotation of that name"


class Findings(NamedTuple):
    """What is wrong and what is unchecked in a text; neither: all of it was measured and is right."""

    wrong: list[str]
    unchecked: list[str]

    @property
    def reason(self) -> str:
        """The kind of the first thing that is wrong, for counting."""
        if ELSEWHERE in self.wrong[0]:
            return "box of something else than the words before it name"
        return f"{self.wrong[0].split(' is not so')[0]} that the boxes deny"

    @property
    def verdict(self) -> str:
        return "wrong" if self.wrong else "unchecked" if self.unchecked else "right"


def findings(text: str, boxes: Sequence[Box | None], scene: Scene) -> Findings:
    """What `text`, with `{region:i}` for `boxes[i]`, says against the scene's annotations or beyond them."""
    out = Findings([], [])
    names = names_before(text)
    marks = [int(match[1]) for match in REGION_MARK.finditer(text)]
    for i, name in dict.fromkeys(zip(marks, names, strict=True)):
        box = boxes[i]
        if box is not None:
            _name(name, box, scene, out)
    refusal = "question is invalid" in text.lower()
    for sentence in filter(None, (part.strip(" .") for part in _SENTENCE.split(text))):
        if refusal:  # what is not there has no box: its absence is asked of the annotations elsewhere
            sentence = sentence.split(", not ")[0] if "{region:" in sentence else ""
        _sentence(sentence, boxes, scene, out)
    return out


def names_before(text: str) -> list[str]:
    """The words before each mark; marks that follow each other share them."""
    names: list[str] = []
    at = 0
    for match in REGION_MARK.finditer(text):
        between = text[at : match.start()].strip(" ,;")
        found = _BEFORE.search(between)
        if (between and between != "and") or not names:
            words = (found[1] if found else "").split()
            while words and words[0].lower() in _SMALL:
                words.pop(0)
            while words and words[-1].lower() in _SMALL:
                words.pop()
            names.append(" ".join(words[-4:]))
        else:
            names.append(names[-1])
        at = match.end()
    return names


def same_thing(phrase: str, name: str) -> bool:
    """Whether a phrase may stand for an annotated name: the name, a synonym, or a wider word, plural or not."""
    words, wanted = _stems(phrase), _stems(name)
    while words and words[-1] in _SMALL:
        words.pop()
    if not words or not wanted:
        return False
    if words[-len(wanted) :] == wanted:
        return not any(tuple(words[-len(own) :]) == own != tuple(wanted) for own in _OWN)
    if tuple(wanted) in _OWN:
        return words[-1] == "food"
    head, kind = words[-1], wanted[-1]
    if head == kind and len(words) == 1:
        return True  # "table" of a dining table
    alike = any({head, kind} <= group for group in _STEMMED)
    return alike or (kind in _stems(_WIDER.get(head, "")) and len(wanted) <= 2)


def may_be(phrase: str, name: str) -> bool:
    """`same_thing`, where a man is no woman and no boy: whether what is called `name` may be what is asked for."""
    heads = [_stems(words)[-1:] for words in (phrase, name)]
    kinds = [next((i for i, kind in enumerate(_APART) if kind & {*head}), None) for head in heads]
    return same_thing(phrase, name) and (None in kinds or kinds[0] == kinds[1])


def called(name: str, words: Collection[str]) -> tuple[bool, bool]:
    """Whether one of `words` (lower case) is a thing's name or a synonym of it: in the singular, in the plural."""
    *before, head = name.lower().split()
    alike = {stem(head)}.union(*(group for group in _STEMMED if stem(head) in group))
    if head == "tv":
        alike = {"tv", "television"}  # no one but COCO calls a computer's screen so
    if (*before, head) in _OWN and not set(before) & {*words}:
        return False, False
    found = {word for word in words if stem(word) in alike}
    several = {word for word in found if word != stem(word) or word in ODD_PLURALS.values()}
    return bool(found - several), bool(several)


def _name(phrase: str, box: Box, scene: Scene, out: Findings) -> None:
    last = [word for word in _stems(phrase) if word not in _SMALL][-1:]
    mine = [thing for thing in scene.things if same_thing(phrase, thing.name) or _ends(phrase, thing.phrase)]
    best = max((iou(box, thing.box) for thing in mine), default=0.0)
    if _area(box) >= WHOLE and best < 0.8 and not (mine and best < AGREE):
        out.unchecked.append(f"box of nearly the whole picture ({phrase or 'unnamed'})")
    elif best >= AGREE:
        return
    elif mine:
        out.wrong.append(f"box of {phrase!r} {ELSEWHERE} (IoU {best:.2f})")
    elif last and last[0] not in ("answer", "got"):
        out.unchecked.append(f"no annotation is called {phrase!r}")
    elif scene.match(box, AGREE) is None:
        out.unchecked.append("box that agrees with no annotation")


def _sentence(sentence: str, boxes: Sequence[Box | None], scene: Scene, out: Findings) -> None:
    """Every relation, place and count that can be measured; what a sentence says beyond them is unchecked."""
    if re.match(r"(so )?the answer is\b", sentence, re.IGNORECASE) or re.search(r"question is invalid", sentence):
        return
    left = list(sentence)  # what no measure covers
    for pattern, holds in _MEASURES:
        for match in pattern.finditer(sentence):
            true = holds(match, boxes, scene)
            if true is False:
                kind = (
                    "place"
                    if pattern in (_PLACE, _HALF, _CORNER)
                    else "count"
                    if pattern in (_COUNT, _THERE)
                    else "relation"
                )
                out.wrong.append(f"{kind} is not so: {match[0]}")
            if true is not None:
                left[match.start() : match.end()] = " " * len(match[0])
    for match in _LINK.finditer(sentence):
        if _linked(match, boxes, scene):
            left[match.start() : match.end()] = " " * len(match[0])
    named = {word for thing in scene.things for word in _stems(f"{thing.name} {thing.phrase} {' '.join(thing.words)}")}
    named |= {word for word, kinds in _WIDER.items() if named & set(map(stem, kinds.split()))}
    spoken = {word for name in names_before(sentence) for word in _stems(name)[-1:]}
    words = set(_stems(REGION_MARK.sub(" ", "".join(left))))
    if beyond := words - {*_FINDS, *map(stem, _FINDS), *_SMALL, *named, *spoken}:
        out.unchecked.append(f"said without a measure: {' '.join(sorted(beyond))}")


def _side(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    a, b = boxes[int(match[1])], boxes[int(match[3])]
    if a is None or b is None:
        return None
    (ax, ay), (bx, by) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b))
    size_a, size_b = _area(a), _area(b)
    how = match[2].lower().removeprefix("to the ").removeprefix("on the ")
    return {
        "left of": ax < bx,
        "right of": ax > bx,
        "above": ay < by,
        "higher than": ay < by,
        "below": ay > by,
        "lower than": ay > by,
        "larger than": size_a > size_b,
        "smaller than": size_a < size_b,
    }[how]


def _place(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    box = boxes[int(match[1])]
    if box is None:
        return None
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    words = match[2].split()
    across = 0 if "left" in words else 2 if "right" in words else 1
    down = 0 if "top" in words else 2 if "bottom" in words else 1
    return across / 3 - 0.01 <= x <= (across + 1) / 3 + 0.01 and down / 3 - 0.01 <= y <= (down + 1) / 3 + 0.01


def _half(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    box = boxes[int(match[1])]
    if box is None:
        return None
    along = 0 if match[2] in ("left", "right") else 1
    return ((box[along] + box[along + 2]) / 2 <= 0.5) == (match[2] in ("left", "top"))


def _corner(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    box = boxes[int(match[1])]
    if box is None:
        return None
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return (y <= 0.5) == (match[2] == "top") and (x <= 0.5) == (match[3] == "left")


def _edge(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    """The outermost of its kind, or of all things where no kind follows."""
    return _outermost(boxes[int(match[1])], match[2], scene)


def _first(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    return _outermost(boxes[int(match[2])], match[1], scene)


def _outermost(box: Box | None, how: str, scene: Scene) -> bool | None:
    mine = None if box is None else scene.match(box, AGREE)
    if box is None or mine is None:
        return None
    rivals = [thing.box for thing in scene.things if thing.name == mine.name and thing is not mine]
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in rivals]
    return {
        "leftmost": all(x <= other for other, _ in centres),
        "rightmost": all(x >= other for other, _ in centres),
        "highest": all(y <= other for _, other in centres),
        "lowest": all(y >= other for _, other in centres),
        "largest": all(_area(box) >= _area(other) for other in rivals),
        "smallest": all(_area(box) <= _area(other) for other in rivals),
    }[how]


def _number(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    number = len(REGION_MARK.findall(match[1]))
    said = match[2].lower()
    if said not in NUMBERS and not said.isdecimal():
        return None
    if number >= len(NUMBERS):
        return said == str(number)
    return said in (NUMBERS[number], str(number))


def _there(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    said, number = match[1].lower(), len(REGION_MARK.findall(match[2]))
    if said not in NUMBERS and not said.isdecimal():
        return None
    return said in (str(number), NUMBERS[number] if number < len(NUMBERS) else "")


def _covers(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    a, b = boxes[int(match[1])], boxes[int(match[3])]
    return None if a is None or b is None else (_area(a) > _area(b)) == (match[2].lower() == "more")


def _far(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool | None:
    """The outermost of all annotated things, by its edge on that side."""
    if (box := boxes[int(match[1])]) is None:
        return None
    edge = ("left", "top", "right", "bottom").index(match[2])
    sides = [thing.box[edge] for thing in scene.things]
    return box[edge] <= min(sides) + 0.02 if edge < 2 else box[edge] >= max(sides) - 0.02


_MEASURES = (
    *(
        (_SIDE, _side),
        (_PLACE, _place),
        (_HALF, _half),
        (_CORNER, _corner),
        (_EDGE, _edge),
        (_FIRST, _first),
        (_THERE, _there),
        (_COUNT, _number),
    ),
    *((_COVERS, _covers), (_FAR, _far)),
)


def _linked(match: re.Match[str], boxes: Sequence[Box | None], scene: Scene) -> bool:
    """Whether an annotated relationship says so."""
    ends = [boxes[int(match[1])], boxes[int(match[3])]]
    a, b = ([i for i, thing in enumerate(scene.things) if box and iou(thing.box, box) >= AGREE] for box in ends)
    how = match[2].lower().strip()
    return any(x in a and y in b and said.lower().strip() == how for x, said, y in scene.relations)


def _ends(phrase: str, other: str) -> bool:
    words, wanted = _stems(phrase), _stems(other)
    return bool(words) and bool(wanted) and words[-len(wanted) :] == wanted


def _stems(text: str) -> list[str]:
    return [stem(word) for word in _WORD.findall(text.lower())]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
