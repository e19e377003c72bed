"""A text about boxes against the annotations: only what was measured is right, a lie never is."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.unit.generation_samples import KINDS, LIES, detection
from ts_lightning.data.sample import SampleImage
from ts_lightning.pipelines.claims import findings, same_thing
from ts_lightning.pipelines.llm_client import Messages
from ts_lightning.pipelines.offline import OfflineChat
from ts_lightning.pipelines.quality import report, verdict
from ts_lightning.pipelines.scenes import Scene, Thing, picture_key, scenes
from ts_lightning.pipelines.scout import Scout

MAN, DOG, TV = (0.1, 0.1, 0.3, 0.9), (0.5, 0.5, 0.7, 0.9), (0.75, 0.05, 0.95, 0.3)


def scene() -> Scene:
    things = [Thing("person", MAN), Thing("dog", DOG, words=("brown",)), Thing("tv", TV)]
    return Scene("s", SampleImage("s.jpg", 100, 100), b"", things, relations=[(0, "holding", 1)])


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Step 1: Find the dog {region:1}. Step 2: So the answer is dog {region:1}.", "right"),
        ("Step 1: Find the man {region:0}. Step 2: The man {region:0} is to the left of the dog {region:1}.", "right"),
        ("Step 1: Find the television {region:2}.", "right"),
        ("Step 1: Find the monitor {region:2}. Step 2: The animal {region:1} is a dog.", "right"),
        ("The woman {region:0} is holding the puppy {region:1}.", "right"),
        ("The woman {region:0} is biting the puppy {region:1}.", "unchecked"),
        ("The dog {region:1} is brown.", "right"),
        ("The dog {region:1} is sleepy.", "unchecked"),
        ("Step 1: Find the unicorn {region:1}.", "unchecked"),
        ("Step 1: Find the dog {region:0}.", "wrong"),
        ("Step 1: Find the dog {region:3}.", "wrong"),
        ("Step 1: Find the floor {region:3}.", "unchecked"),
        ("The man {region:0} is to the right of the dog {region:1}.", "wrong"),
        ("The tv {region:2} is below the dog {region:1}.", "wrong"),
        ("The tv {region:2} is larger than the dog {region:1}.", "wrong"),
        ("The dog {region:1} takes up more of the picture than the tv {region:2}.", "right"),
        ("The tv {region:2} is in the bottom left of the image.", "wrong"),
        ("The dog {region:1} is in the bottom half of the image.", "right"),
        ("The dog {region:1} is in the left half of the image.", "wrong"),
        ("The tv {region:2} is closest to the top right corner of the image.", "right"),
        ("The dog {region:1} is closest to the bottom left corner of the image.", "wrong"),
        ("There are two dogs {region:1}.", "wrong"),
        ("The man {region:0} is furthest to the right.", "wrong"),
    ],
)
def test_the_verdict_of_a_sentence(text: str, verdict: str) -> None:
    assert findings(text, [MAN, DOG, TV, (0.0, 0.0, 1.0, 1.0)], scene()).verdict == verdict


def test_names_that_may_stand_for_each_other() -> None:
    yes = [("men", "person"), ("the two people", "person"), ("table", "dining table"), ("sofa", "couch")]
    yes += [("vehicle", "truck"), ("leftmost dog", "dog"), ("knives", "knife"), ("old red car", "car")]
    no = [("dog", "cat"), ("hot dog", "dog"), ("dog", "hot dog"), ("dog", "animal"), ("", "dog"), ("car park", "car")]
    assert [pair for pair in yes if not same_thing(*pair)] == []
    assert [pair for pair in no if same_thing(*pair)] == []


class Liar(OfflineChat):
    """Answers as the offline backend would, with a lie in every answer that has steps."""

    def __init__(self, lie: Callable[[str], str], **options: Any) -> None:
        super().__init__(**options)
        self.lie = lie

    def chat(
        self, messages: Messages, images: Sequence[bytes] = (), schema: dict[str, Any] | None = None, attempt: int = 0
    ) -> str:
        text = super().chat(messages, images, schema, attempt)
        if not text.startswith("Step 1"):
            return text
        lied = self.lie(text)
        return lied if lied != text else ""


def made_by(backend: OfflineChat, known: dict[str, Scene]) -> tuple[list[Any], Counter[str]]:
    maker = Scout(backend, backend, most=16, negatives=0.0)
    return [sample for one in known.values() for sample in maker(one)], maker.dropped


def test_no_lie_is_right_and_what_is_honest_is_kept() -> None:
    known = {one.image.name: one for one in scenes(map(detection, range(40)))}
    truth, dropped = made_by(OfflineChat("cogvlm", 16, KINDS), known)
    assert len(truth) >= 0.95 * (len(truth) + sum(dropped.values())) > 200
    assert Counter(verdict(one, known[one.images[0].name]).verdict for one in truth) == {"right": len(truth)}
    told, seen = Counter[str](), {picture_key(name, one.data): one for name, one in known.items()}
    for lie in LIES:
        kept, dropped = made_by(Liar(lie, codec="cogvlm", most=16, vocabulary=KINDS), known)
        said = sum(number for reason, number in dropped.items() if reason != "answer that is no numbered steps")
        told["lies"] += len(kept) + said
        figures, _ = report(kept, seen, dropped)
        told["right"] += figures["accepted"]["right"]
        assert all("unchecked" in one.tags for one in kept)
    assert told["lies"] >= 200
    assert told["right"] == 0
