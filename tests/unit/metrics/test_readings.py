"""Readings of any text: never an exception, and the value is one that the reading may have."""

import math
from random import Random

from ts_lightning.metrics.readings import boxes, captions, choices, words, yes_no

CHOICES = ["red apple", "green pear", "blue sky"]
PARTS = ["[", "]", "(", ")", "{", "}", "<answer>", "</answer>", "<box>", "</box>", ",", ":", "1", "2.5", "-3", "0.1, "]
PARTS += ["999", "1e5", " ", "\n", "A", "B", "answer is ", "The answer is ", "option ", "'s", "n't", "...", "--", "?"]
PARTS += [
    "yes",
    "No",
    "\u2019",
    "\u00e9",
    "'",
    '"',
    "\\",
    "\0",
    "\u0663",
    "a",
    "(1,2),(3,4)",
    "[1, 2, 3, 4]",
    "9" * 5000,
]


def test_any_text_is_read() -> None:
    random, seen = Random(0), {"option": 0, "box": 0}
    for _ in range(800):
        text = "".join(random.choice(PARTS) for _ in range(random.randint(0, 12)))
        for option in (
            choices.read_option(text, CHOICES),
            choices.llava_option(text, 3),
            choices.vlmevalkit_option(text, CHOICES),
        ):
            assert option in (None, 0, 1, 2)
            seen["option"] += option is not None
        for read in (yes_no.read_yes_no, yes_no.pope_yes_no, yes_no.mme_yes_no, yes_no.lmms_eval_mme_yes_no):
            assert read(text) in (True, False, None)
        for score in (words.vqa_score, words.vqav2_score, words.textvqa_score, words.gqa_score):
            assert 0 <= score(text, ["yes"] * 7 + ["no"] * 3) <= 1
        for box in (
            boxes.lmms_eval_box(text),
            boxes.vlmevalkit_box(text, (640, 480)),
            boxes.vlm_r1_box(text),
            boxes.migician_box(text),
        ):
            assert box is None or (len(box) == 4 and all(map(math.isfinite, box)))
            seen["box"] += box is not None
        assert all(word and " " not in word for word in captions.ptb_words(text))
    assert min(seen.values()) > 80
