"""What a person who looks at the picture would not agree with is not asked, though the annotations say so."""

from random import Random

import pytest

from tests.unit.data_samples import picture
from ts_lightning.data.sample import SampleImage
from ts_lightning.pipelines.scene_grammar import facts, references
from ts_lightning.pipelines.scenes import Scene, Thing
from ts_lightning.pipelines.sure_names import unsure

LEFT, RIGHT, TALL = (0.0, 0.2, 0.3, 0.5), (0.6, 0.2, 0.9, 0.5), (0.1, 0.1, 0.9, 0.9)


def shown(*things: Thing, captions: tuple[str, ...] = ()) -> Scene:
    return Scene("k", SampleImage("a.jpg", 100, 100), picture(0, (100, 100)), [*things], [*captions])


@pytest.mark.parametrize(
    ("names", "caption", "left"),
    [
        ("bowl", "A woman at a sink.", []),  # a pot that was called a bowl
        ("bowl", "", ["bowl"]),
        ("bowl", "Food in a bowl.", ["bowl"]),
        ("bowl", "Bowls of food.", []),
        ("person", "A street.", ["person"]),
        ("person", "People at a fair.", []),
        ("dog", "A puppy and its dogs.", []),
        ("couch", "A sofa.", ["couch"]),
        ("dining table", "A coffee table.", []),
        ("dining table", "A wooden table.", ["dining table"]),
        ("hot dog", "A dog.", []),
        ("skis", "A pair of skis.", ["skis"]),
        ("parking meter,parking meter", "A parking meter.", []),  # the second is a car's mirror
        ("parking meter,parking meter", "Two parking meters.", ["leftmost parking meter", "rightmost parking meter"]),
        ("person,person", "A street.", ["leftmost person", "rightmost person"]),
        ("person,person", "A woman and a man.", ["leftmost person", "rightmost person"]),
        ("person,person", "A woman reads.", []),  # two parts of one
        ("tv", "A computer monitor.", []),
        ("tv", "A television.", ["tv"]),
        ("person,person", "A man before a mirror.", []),
        ("car,car", "Cars in busy traffic.", []),
    ],
)
def test_names_that_captions_bear_out(names: str, caption: str, left: list[str]) -> None:
    things = [Thing(name, box) for name, box in zip(names.split(","), (LEFT, RIGHT), strict=False)]
    scene = shown(*things, captions=(caption,) if caption else ())
    assert [ref.phrase for ref in references(scene)] == left
    assert unsure(scene) == (set() if left else {names.split(",")[0]})


def test_names_of_which_not_all_objects_are_annotated_are_not_asked_about() -> None:
    scene = shown(Thing("dog", LEFT), Thing("dog", RIGHT), Thing("cat", (0.1, 0.6, 0.4, 0.9)), Thing("bed", TALL))
    assert {ref.phrase for ref in references(scene)} == {"leftmost dog", "rightmost dog", "cat", "bed"}
    scene.meta["not_exhaustive"] = ["dog", "cat"]
    assert [ref.phrase for ref in references(scene)] == ["bed"]
    scene.things = [Thing("cat", LEFT), Thing("bed", RIGHT)]
    assert not [one for one in facts(scene, Random(0), 99) if "cat" in one.question + one.answer]


def test_the_outermost_reaches_as_far_as_any_and_as_names_that_stand_for_it() -> None:
    wide = Thing("bed", (0.0, 0.5, 1.0, 1.0))
    assert [ref.phrase for ref in references(shown(wide, Thing("bed", RIGHT)))] == ["leftmost bed", "largest bed"]
    cars = [Thing("car", LEFT), Thing("car", (0.4, 0.3, 0.7, 0.6)), Thing("truck", RIGHT)]
    asked = [ref.phrase for ref in references(shown(*cars))]
    assert asked == ["leftmost car", "truck"]
    assert not [one for one in facts(shown(*cars), Random(0), 99) if "cars" in one.question]  # nor counted


def test_sizes_agree_by_box_and_by_outline() -> None:
    def answers(covers: float) -> list[str]:
        scene = shown(Thing("bed", LEFT, covers=0.08), Thing("laptop", TALL, covers=covers))
        return [one.answer for one in facts(scene, Random(0), 99) if "more of the picture" in one.steps]

    assert (answers(0.5), answers(0.05)) == (["laptop"], [])


def test_boxes_around_several_are_not_asked_about_and_bunches_not_counted() -> None:
    assert unsure(shown(Thing("chair", TALL, covers=0.2))) == {"chair"}
    assert not unsure(shown(Thing("chair", TALL, covers=0.4)))
    counted = {
        name: [one.answer for one in facts(shown(Thing(name, LEFT), Thing(name, RIGHT)), Random(0), 99)]
        for name in ("banana", "kite")
    }
    assert ["two" in answers for answers in counted.values()] == [False, True]


def test_places_are_clear_of_the_borders_and_halves_hold_all_of_a_thing() -> None:
    near = shown(Thing("dog", (0.03, 0.16, 0.69, 0.81)))  # its centre is at 0.36: no person calls it the middle
    assert not [one for one in facts(near, Random(0), 99) if "of the image" in one.steps]
    said = {one.answer for one in facts(shown(Thing("dog", LEFT)), Random(0), 99)}
    assert said == {"left half", "top half", "top left", "dog"}


def test_of_a_thing_that_is_askew_both_answers_are_named() -> None:
    scene = shown(Thing("dog", (0.0, 0.0, 0.3, 0.3)), Thing("car", (0.5, 0.5, 0.9, 0.9)))
    asked = {one.question for one in facts(scene, Random(0), 99)}
    assert {"Is the dog to the left or to the right of the car?", "Is the dog above or below the car?"} <= asked
    assert not [question for question in asked if question.startswith("Where") and "car" in question]
