"""Readings of words and their scores against plain re-statements of the official scorers' rules."""

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.readings.choices import llava_option, read_option, vlmevalkit_option
from ts_lightning.metrics.readings.words import gqa_score, textvqa_score, vqa_score, vqav2_normalise, vqav2_score
from ts_lightning.metrics.readings.yes_no import lmms_eval_mme_yes_no, mme_yes_no, pope_yes_no, read_yes_no
from ts_lightning.metrics.record import Record, Truth

REAL = Path(__file__).parents[4] / "shared/real"


def figures_of(name: str, rows: list[dict[str, Any]], reading: str | None = None) -> dict[str, Any]:
    """The figures of plain rows: `text`, `truth`, `meta`, `choices`."""
    protocol = make_protocol(name, reading)
    truths = [Truth(answers=tuple(row["truth"]["answers"])) for row in rows]
    protocol.update(
        [
            Record("s", str(i), row["text"], truth, meta=row.get("meta", {}), choices=row.get("choices"))
            for i, (row, truth) in enumerate(zip(rows, truths, strict=True))
        ]
    )
    return protocol.compute()


PAIRS = """
aint ain't|arent aren't|cant can't|couldve could've|couldnt couldn't|couldn'tve couldn't've|couldnt've couldn't've
didnt didn't|doesnt doesn't|dont don't|hadnt hadn't|hadnt've hadn't've|hadn'tve hadn't've|hasnt hasn't|havent haven't
hed he'd|hed've he'd've|he'dve he'd've|hes he's|howd how'd|howll how'll|hows how's|Id've I'd've|I'dve I'd've|Im I'm
Ive I've|isnt isn't|itd it'd|itd've it'd've|it'dve it'd've|itll it'll|let's let's|maam ma'am|mightnt mightn't
mightnt've mightn't've|mightn'tve mightn't've|mightve might've|mustnt mustn't|mustve must've|neednt needn't
notve not've|oclock o'clock|oughtnt oughtn't|ow's'at 'ow's'at|'ows'at 'ow's'at|'ow'sat 'ow's'at|shant shan't
shed've she'd've|she'dve she'd've|she's she's|shouldve should've|shouldnt shouldn't|shouldnt've shouldn't've
shouldn'tve shouldn't've|somebody'd somebodyd|somebodyd've somebody'd've|somebody'dve somebody'd've
somebodyll somebody'll|somebodys somebody's|someoned someone'd|someoned've someone'd've|someone'dve someone'd've
someonell someone'll|someones someone's|somethingd something'd|somethingd've something'd've
something'dve something'd've|somethingll something'll|thats that's|thered there'd|thered've there'd've
there'dve there'd've|therere there're|theres there's|theyd they'd|theyd've they'd've|they'dve they'd've
theyll they'll|theyre they're|theyve they've|twas 'twas|wasnt wasn't|wed've we'd've|we'dve we'd've|weve we've
werent weren't|whatll what'll|whatre what're|whats what's|whatve what've|whens when's|whered where'd|wheres where's
whereve where've|whod who'd|whod've who'd've|who'dve who'd've|wholl who'll|whos who's|whove who've|whyll why'll
whyre why're|whys why's|wont won't|wouldve would've|wouldnt wouldn't|wouldnt've wouldn't've|wouldn'tve wouldn't've
yall y'all|yall'll y'all'll|y'allll y'all'll|yall'd've y'all'd've|y'alld've y'all'd've|y'all'dve y'all'd've
youd you'd|youd've you'd've|you'dve you'd've|youll you'll|youre you're|youve you've
"""
RIGHT = dict(pair.split(" ") for line in PAIRS.strip().splitlines() for pair in line.split("|"))
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
DIGITS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


def official_marks(text: str, comma: str) -> str:
    out = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        gone = mark + " " in text or " " + mark in text or re.search(comma, text) is not None
        out = out.replace(mark, "" if gone else " ")
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=32)


def official_words(text: str) -> str:
    kept = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(RIGHT.get(word, word) for word in kept if word not in ("a", "an", "the"))


def official_soft(said: str, truths: list[str]) -> float:
    """The mean over annotators of min(1, how many of the other nine said it / 3)."""
    marks = []
    for left_out in range(len(truths)):
        others = [truth for place, truth in enumerate(truths) if place != left_out]
        marks.append(min(1.0, sum(other == said for other in others) / 3))
    return sum(marks) / len(marks)


def official_vqav2(said: str, truths: list[str]) -> float:
    def one_line(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    said, truths = one_line(said), [one_line(truth) for truth in truths]
    if len(set(truths)) > 1:
        said, *truths = (official_words(official_marks(text, r"(\d)(\,)(\d)")) for text in (said, *truths))
    return official_soft(said, truths)


def official_textvqa(said: str, truths: list[str]) -> float:
    def clean(text: str) -> str:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return official_words(official_marks(text, r"(?<=\d)(\,)+(?=\d)"))

    return official_soft(clean(said), [clean(truth) for truth in truths])


WORDS = [*RIGHT, *RIGHT.values(), *DIGITS, "the", "a", "an", "A", "The", "dog", "Cat", "yes", "Yes", "no", "3", "1,000"]
WORDS += [
    "3.5",
    "a.b",
    "dog's",
    "what",
    "now",
    "U.S.A.",
    "red-blue",
    "(left)",
    '"x"',
    "a,b",
    "-",
    "?",
    "!",
    "10:30",
    "\n",
]


def some_text(random: Random) -> str:
    joints = [" ", " ", " ", "", ",", ", ", "?", "/", ".", "\t", " - ", "-", "'s ", "! ", ";"]
    return "".join(random.choice(WORDS) + random.choice(joints) for _ in range(random.randint(1, 4)))


@pytest.mark.parametrize(
    ("ours", "official"), [(vqav2_score, official_vqav2), (textvqa_score, official_textvqa)], ids=["VQAv2", "TextVQA"]
)
def test_soft_accuracy_is_the_official_one(ours: object, official: object) -> None:
    random, scores = Random(0), []
    for number in range(5000):
        base = some_text(random)
        near = [base, base.upper(), base.strip(" .?!"), base.replace("'", ""), base.replace(",", ""), some_text(random)]
        truths = [base] * 10 if number % 5 == 0 else random.choices(near[: random.randint(2, 6)], k=10)
        said = random.choice(near)
        scores.append(official(said, truths))
        assert ours(said, truths) == pytest.approx(scores[-1], abs=1e-9), (said, truths)
    assert 0.2 < sum(scores) / len(scores) < 0.9  # right and wrong answers both


def test_more_periods_than_the_official_code_deletes() -> None:
    assert vqav2_normalise("a" + "." * 40) == "a" + "." * 8


def test_vqa_soft_accuracy_by_hand() -> None:
    # ten annotators, three say "2": leaving one of them out, two agree (2/3); leaving another out, three do (1)
    answers = ["2"] * 3 + ["4"] * 7
    assert vqa_score("two", answers) == vqav2_score("two", answers) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_score("Four.", answers) == 1.0
    assert vqa_score("five", answers) == 0.0
    assert (vqa_score("Yes", ["yes"] * 10), vqav2_score("Yes", ["yes"] * 10)) == (1.0, 0.0)
    assert (vqa_score("what?now", ["whatnow", *["x"] * 9]), textvqa_score("a,b", ["ab"] * 10)) == (0.0, 1.0)
    for text, expected in {
        "The  Dog!": "dog",
        "dont know": "don't know",
        "a man, and a dog": "man and dog",
        "1,000": "1000",
        "3.5": "3.5",
        "it's fine.": "it's fine",
        "shouldnt've": "shouldn't've",
        "none": "0",
        "wed": "wed",
    }.items():
        assert vqav2_normalise(text) == expected


def test_gqa_is_equality() -> None:
    assert [gqa_score(text, ["left"]) for text in ("left", "Left.", "left side", "lef")] == [1.0, 1.0, 0.0, 0.0]


def official_llava(text: str, options: int) -> int:
    """`eval_science_qa.py` in words: a bare letter; a letter, a period, a blank; "The answer is X." then "... X"."""
    text = text.replace("\n", ". ")
    if text.strip() in list("ABCDE"):
        said = text.strip()
    elif len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        said = text[0]
    elif match := re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text):
        said = match.group(1)
    else:
        return -1
    return "ABCDE".index(said) if said in "ABCDE"[:options] else -1


def official_can_infer(text: str, choices: list[str]) -> int | None:
    """`matching_util.py` in words; its False and its "Z" are None."""
    options = dict(zip("ABCDEFGH", choices, strict=False))
    spaced = text
    for mark in ".()[],:;!*#{}":
        spaced = spaced.replace(mark, " ")
    words = spaced.split()
    if "Cannot determine the answer" in text:
        return None
    if sum(letter in words for letter in options) == 1:
        for letter in options:
            if letter in words and words.index(letter) > len(words) - 5:
                return "ABCDEFGH".index(letter)
    elif "Z" in words and not any(letter in words for letter in options):
        return None
    if len(text) > 2 * sum(len(choice) for choice in choices):
        return None
    inside = [place for place, choice in enumerate(choices) if choice.lower() in text.lower()]
    return inside[0] if len(inside) == 1 else None


CHOICES = ["red apple", "green pear", "blue sky", "yellow sun"]
# what is said, our reading, VLMEvalKit's; LLaVA's is re-stated above
SAID: list[tuple[str, int | None, int | None]] = [
    ("B", 1, 1), ("b", 1, None), ("B.", 1, 1), ("B)", 1, 1), ("(B)", 1, 1), ("B:", 1, 1), ("**B**", 1, 1),
    ("{C}", 2, 2),
    ("[C]", 2, 2), (" C ", 2, 2), ("C. blue sky", 2, 2), ("C: blue", 2, 2), ("(D) yellow", 3, 3), ("E", None, None),
    ("", None, None), ("The answer is B.", 1, 1), ("The answer is B", 1, 1), ("the answer is b", 1, None),
    ("The answer is (C).", 2, 2), ("answer is **D**.", 3, 3), ("Answer: C", 2, 2), ("Answer:B", 1, 1),
    ("Answer: (B) green", 1, 1), ("The correct answer is: B", 1, 1), ("(the correct answer is: B)", 1, 1),
    ("The correct option is C.", 2, 2), ("Option B", 1, 1), ("Choice D", 3, 3), ("I think B", 1, 1),
    ("So it is D!", 3, 3),
    ("The answer is option C", 2, 2), ("The answer would be C.", 2, 2), ("The best choice is: A.", 0, 0),
    ("A man is riding. The answer is D.", 3, None), ("A planet's volume is large. The answer is B.", 1, None),
    ("A continent is one of seven.\nThe answer is D.", 3, None), ("A or B", None, None), ("Both A and C", None, None),
    ("A blue sky is seen", 2, 2), ("A red apple", 0, 0), ("a red apple", 0, 0), ("blue sky", 2, 2),
    ("It is blue sky.", 2, 2),
    ("red apple or green pear", None, None), ("red apple and A", 0, 0),
    ("The answer is A because it is round", 0, None),
    ("The answer is B because it is green", 1, None), ("The answer is a red apple", 0, 0),
    ("The answer is Dog", None, None),
    ("The answer is Alpha", None, None), ("D, as the sun is yellow", 3, None), ("I can't tell.", None, None),
    ("Cannot determine the answer", None, None), ("A.", 0, 0), ("A. B. C.", 0, None), ("A, B", 0, None),
    ("B is right", 1, 1), ("Z", None, None), ("The sky is blue.", None, None), ("blueberry skyline", None, None),
    ("C\n", 2, 2), ("The answer is\nC", 2, 2), ("Answer is E.", None, None), ("green", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ours", "vlmevalkit"), SAID)
def test_options_by_all_three_readings(text: str, ours: int | None, vlmevalkit: int | None) -> None:
    assert read_option(text, CHOICES) == ours
    assert vlmevalkit_option(text, CHOICES) == vlmevalkit == official_can_infer(text, CHOICES)
    llava = official_llava(text, len(CHOICES))
    assert llava_option(text, len(CHOICES)) == (None if llava < 0 else llava)


def test_phrasings_of_science_qa() -> None:
    assert len(SAID) >= 60
    right = sum(official_llava(text, 4) == 1 for text, _, _ in SAID)
    assert sum(llava_option(text, 4) == 1 for text, _, _ in SAID) == right >= 5
    for letter in "ABCD":  # every rule with every letter, before and behind other text
        for said in (
            "{}",
            "{}. x",
            "The answer is {}.",
            "x. The answer is {}",
            "A cat. The answer is {}.",
            "{}\nx",
            "is {}",
        ):
            text = said.format(letter)
            wanted = official_llava(text, 3)
            assert llava_option(text, 3) == (None if wanted < 0 else wanted), text


def test_circular_by_hand() -> None:
    records = [
        {"key": key, "text": text, "choices": ["x", "y"], "truth": {"answers": [true]}, "meta": {"question_id": group}}
        for key, text, true, group in (("a", "A", "x", 1), ("b", "B", "y", 1), ("c", "A", "x", 2), ("d", "A", "y", 2))
    ]
    figures = figures_of("circular", records)
    assert {k: figures[k] for k in ("accuracy", "circular", "unread")} == {
        **{"accuracy": 0.75, "circular": 0.5, "unread": 0.0}
    }


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no annotation files in {REAL}")
def test_pope_is_the_official_rule() -> None:
    random, records, said, true = Random(2), [], [], []
    for line in (REAL / "pope/coco_pope_random.json").read_text().splitlines():
        row = json.loads(line)
        text = random.choice(
            [
                "Yes, there is.",
                "No, there is not.",
                "yes",
                "no",
                "There is one. No doubt.",
                "not at all",
                "A dog.",
                "No,no",
            ]
        )
        records.append({"text": text, "truth": {"answers": [row["label"]]}})
        first = text.split(".")[0].replace(",", "").split(" ")
        said.append(0 if "No" in first or "not" in first or "no" in first else 1)
        true.append(0 if row["label"] == "no" else 1)
    tp = sum(s == t == 1 for s, t in zip(said, true, strict=True))
    fp = sum(s == 1 and t == 0 for s, t in zip(said, true, strict=True))
    fn = sum(s == 0 and t == 1 for s, t in zip(said, true, strict=True))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    figures = figures_of("yes_no", records)
    assert len(records) == 3000
    assert [pope_yes_no(r["text"]) for r in records] == [bool(s) for s in said]
    assert figures["precision"] == pytest.approx(precision, abs=1e-9)
    assert figures["recall"] == pytest.approx(recall, abs=1e-9)
    assert figures["f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-9)
    assert figures["accuracy"] == pytest.approx(sum(s == t for s, t in zip(said, true, strict=True)) / 3000, abs=1e-9)
    assert figures["yes_ratio"] == pytest.approx(sum(said) / 3000, abs=1e-9)


MME = {
    "Perception": "existence count position color posters celebrity scene landmark artwork OCR",
    "Cognition": "commonsense_reasoning numerical_calculation text_translation code_reasoning",
}


def test_mme_is_the_official_sum() -> None:
    random, records, official = Random(3), [], {}
    texts = [
        "Yes",
        "No.",
        "no",
        "yes, it is",
        "There is no cat",
        "The answer is yes",
        "I do not know",
        "None",
        "nope",
        "Y",
    ]
    for kind, names in MME.items():
        official[kind] = 0.0
        for name in names.split():
            hits, pairs = [], []
            for picture in range(15):
                both = []
                for true in ("Yes", "No"):
                    text = random.choice(texts)
                    start = text.lower()[:4]
                    read = "yes" if "yes" in start else "no" if "no" in start else "other"
                    both.append(read == true.lower())
                    meta = {"category": name, "image_id": picture}
                    records.append({"text": text, "truth": {"answers": [true]}, "meta": meta})
                hits += both
                pairs.append(sum(both) == 2)
            official[kind] += 100 * sum(hits) / len(hits) + 100 * sum(pairs) / len(pairs)
    random.shuffle(records)
    figures = figures_of("mme", records)
    assert figures["perception"] == pytest.approx(official["Perception"], abs=1e-9)
    assert figures["cognition"] == pytest.approx(official["Cognition"], abs=1e-9)
    assert len(figures["by_category"]) == 14
    pair = [
        {"text": t, "truth": {"answers": [a]}, "meta": {"category": "color", "image_id": i}}
        for i, t, a in ((1, "Yes", "yes"), (1, "no", "no"), (2, "Yes.", "yes"), (2, "maybe", "no"))
    ]
    assert figures_of("mme", pair)["by_category"] == {"color": 100 * (0.75 + 0.5)}


@pytest.mark.parametrize(
    ("text", "ours", "mme", "lmms"),
    [
        ("Yes", True, True, True), ("no.", False, False, False), ("There is no cat", False, None, None),
        ("The answer is yes", True, None, None), ("Answer: Yes", True, None, None),
        ("I do not know", False, None, None),
        ("Y", None, None, True), ("n", None, None, False), ("Nope", None, False, False), ("None", None, False, False),
        ("  yes", True, None, True), ("", None, None, None),
    ],
)  # fmt: skip
def test_yes_and_no(text: str, ours: bool | None, mme: bool | None, lmms: bool | None) -> None:
    assert (read_yes_no(text), mme_yes_no(text), lmms_eval_mme_yes_no(text)) == (ours, mme, lmms)
