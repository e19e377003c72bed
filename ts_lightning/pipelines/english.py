"""English as a person says it: articles, plurals, numbers."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURAL = {
    "skis",
    "scissors",
    "jeans",
    "glasses",
    "sunglasses",
    "pants",
    "shorts",
    "trousers",
    "people",
    "shoes",
    "clothes",
}
ODD_PLURALS = {
    **{"person": "people", "man": "men", "woman": "women", "child": "children", "knife": "knives", "mouse": "mice"},
    **{"sheep": "sheep", "broccoli": "broccoli", "leaf": "leaves", "shelf": "shelves", "foot": "feet", "fish": "fish"},
    "tv": "televisions",
}


def be(name: str) -> str:
    """Are the skis, is the dog."""
    return "are" if name.split()[-1] in PLURAL else "is"


def plural(name: str) -> str:
    """Two dogs, two people, two wine glasses."""
    head, last = name.rsplit(" ", 1) if " " in name else ("", name)
    if last in ODD_PLURALS or last in PLURAL:
        made = ODD_PLURALS.get(last, last)
    elif last.endswith(("s", "x", "ch", "sh")):
        made = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        made = f"{last[:-1]}ies"
    else:
        made = f"{last}s"
    return f"{head} {made}".strip()


def article(name: str) -> str:
    """A dog, an apple, the leftmost dog, skis."""
    if name.split()[0] in ("leftmost", "rightmost", "largest"):
        return f"the {name}"
    if name.split()[-1] in PLURAL:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
