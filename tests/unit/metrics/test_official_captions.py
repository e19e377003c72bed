"""Words of captions, CIDEr and COCO AP against the official tools, on real photos' captions and boxes."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest

from ts_lightning.metrics.caption_ap import coco_figures
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.readings.captions import ptb_words
from ts_lightning.metrics.record import Record, Truth

MINI = Path(__file__).parents[4] / "shared/real/coco_mini/annotations"
needs_real = pytest.mark.skipif(not MINI.is_dir(), reason=f"no annotation files in {MINI}")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java: the official tokenizer needs it")


def captions_of(split: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for one in json.loads((MINI / f"captions_{split}2017.json").read_text())["annotations"]:
        found.setdefault(one["image_id"], []).append(one["caption"])
    return found


def official_words(texts: list[str]) -> list[str]:
    pytest.importorskip("pycocoevalcap", reason="no pycocoevalcap")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    words = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    return [words[i][0] for i in range(len(texts))]


# as Stanford's tokenizer of CoreNLP 3.4.1 prints them
PRINTED = {
    "A man isn't riding; he can't (won't) stop.": "a man is n't riding he ca n't -lrb- wo n't -rrb- stop",
    '"A dog\'s bowl", she said.': "a dog 's bowl she said",
    "the dogs' bowls are here": "the dogs bowls are here",
    "A black-and-white cat -- on a sofa...": "a black-and-white cat on a sofa",
    "It costs $5.00 or 5% of 1,000 dollars!": "it costs $ 5.00 or 5 % of 1,000 dollars",
    "He's gonna eat; I'm gonna wanna go. Cannot stop": "he 's gon na eat i 'm gon na wan na go can not stop",
    "Mr. Smith and Dr. Jones at 5 p.m. in the U.S. today.": "mr. smith and dr. jones at 5 p.m. in the u.s. today",
    "a b/w photo and/or a half 1/2 picture": "a b/w photo and/or a half 1/2 picture",
    "Two men's hats & a #1 sign at 10:30 am": "two men 's hats & a # 1 sign at 10:30 am",
    "I'd've said it'll they're we've": "i 'd 've said it 'll they 're we 've",
    "A [bracket] {brace} <tag> test": "a -lsb- bracket -rsb- -lcb- brace -rcb- <tag> test",
    "What?! Really?!?": "what ?! really ?!?",
    "a man, a woman,and a dog.And a cat": "a man a woman and a dog.and a cat",
    "no. 5 is here. vs. others etc.": "no. 5 is here vs. others etc.",
    "a two- or three-story house": "a two or three-story house",
    "y'all ain't didn't DON'T Don\u2019t": "y' all ai n't did n't do n't do n't",
    "": "",
}


def test_words_as_printed() -> None:
    assert {text: " ".join(ptb_words(text)) for text in PRINTED} == PRINTED


@needs_real
@needs_java
def test_words_of_captions_are_the_official_ones() -> None:
    texts = [text for split in ("train", "val") for group in captions_of(split).values() for text in group]
    assert len(texts) == 795
    assert [" ".join(ptb_words(text)) for text in texts] == official_words(texts)


@needs_real
@needs_java
def test_cider_is_the_official_one() -> None:
    groups = list(captions_of("val").values())
    truths = [Truth(answers=tuple(group[1:])) for group in groups]
    protocol = make_protocol("captions")
    protocol.update([Record("s", f"{i:04d}", g[0], t) for i, (g, t) in enumerate(zip(groups, truths, strict=True))])
    flat = official_words([text for group in groups for text in group])
    starts = [sum(map(len, groups[:i])) for i in range(len(groups))]
    said = {i: [flat[start]] for i, start in enumerate(starts)}
    true = {i: flat[start + 1 : start + len(groups[i])] for i, start in enumerate(starts)}
    from pycocoevalcap.cider.cider import Cider

    mean, values = Cider().compute_score(true, said)
    ours = protocol.values(protocol.rows())[1]
    assert protocol.compute()["cider"] == pytest.approx(mean, abs=1e-9)
    assert ours == pytest.approx([float(value) for value in values], abs=1e-9)
    assert sum(ours) / len(ours) == pytest.approx(mean, abs=1e-9)
    assert mean > 0.3


@needs_real
def test_coco_ap_is_pycocotools() -> None:
    pytest.importorskip("pycocotools", reason="no pycocotools")
    pytest.importorskip("faster_coco_eval", reason="no faster-coco-eval")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path, random = MINI / "instances_val2017.json", Random(5)
    data = json.loads(path.read_text())
    classes = [one["id"] for one in data["categories"]]
    results = []
    for one in data["annotations"]:
        for _ in range(random.randint(0, 2)):
            box = [value + random.gauss(0, 0.1 * one["bbox"][2 + i % 2]) for i, value in enumerate(one["bbox"])]
            kind = one["category_id"] if random.random() < 0.9 else random.choice(classes)
            score = round(random.random(), 1)  # many are equal
            sizes = [max(1.0, value) for value in box[2:]]
            results.append(
                {"image_id": one["image_id"], "category_id": kind, "bbox": [*box[:2], *sizes], "score": score}
            )
    images = [one["id"] for one in data["images"]]
    truth = COCO(str(path))
    official = COCOeval(truth, truth.loadRes([dict(one) for one in results]), "bbox")
    official.params.imgIds = sorted(images)
    official.evaluate()
    official.accumulate()
    official.summarize()
    ours = coco_figures(data, results, images)
    assert list(ours.values()) == pytest.approx([float(value) for value in official.stats], abs=1e-9)
    assert 0.1 < ours["AP"] < 0.9
