"""Every notation: there and back, canonical text, hostile text, and what strict reading refuses."""

import pickle
import time
import timeit
from random import Random

import pytest

from ts_lightning.grounding import CoordinateSpace, Region, get_codec
from ts_lightning.grounding.answer import read_answer
from ts_lightning.grounding.codecs import CODECS
from ts_lightning.grounding.codecs.base import Codec

SIZE = (640, 427)
TOTAL = 20_000  # regions of every kind in every notation, and hostile answers
BATCH = 50
KINDS = [(name, kind) for name, codec in CODECS.items() for kind in codec.kinds]


def cell(codec: Codec) -> tuple[float, float]:
    """Width and height of one grid cell in [0, 1] of the displayed image."""
    width, height = SIZE
    if codec.space.grid == "pixels":
        return 1 / width, 1 / height
    steps = 10 ** int(codec.space.grid[-1]) if codec.space.grid.startswith("decimals") else float(codec.space.grid)
    side = max(SIZE)
    return (side / width / steps, side / height / steps) if codec.space.frame == "padded_square" else (1 / steps,) * 2


def random_region(kind: str, random: Random, least: tuple[float, float]) -> Region:
    if kind == "box":  # at least one cell wide and high, else it may collapse
        (x1, x2), (y1, y2) = (sorted((random.random(), random.random())) for _ in range(2))
        if x2 - x1 < least[0] or y2 - y1 < least[1]:
            return random_region(kind, random, least)
        return Region(((x1, y1), (x2, y2)))
    points = 1 if kind == "click" else random.randint(3, 9)
    return Region(tuple((random.random(), random.random()) for _ in range(points)))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_there_and_back_within_half_a_cell(name: str, kind: str) -> None:
    codec, random = get_codec(name), Random(name + kind)
    wide, high = cell(codec)
    for _ in range(TOTAL // BATCH):
        regions = [random_region(kind, random, (wide, high)) for _ in range(BATCH)]
        text = " and ".join(codec.format([region], SIZE) for region in regions)
        mentions = codec.parse(text, SIZE)
        assert mentions == codec.parse_strict(text, SIZE)
        found = [mention.regions[0] for mention in mentions]
        assert len(found) == BATCH
        for region, back in zip(regions, found, strict=True):
            assert back.kind == kind
            for (x, y), (u, v) in zip(region.points, back.points, strict=True):
                assert abs(x - u) <= wide / 2 + 1e-9
                assert abs(y - v) <= high / 2 + 1e-9
        # canonical text is reproduced exactly
        assert " and ".join(codec.format([region], SIZE) for region in found) == text


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if "box" in codec.kinds])
def test_boxes_below_a_cell_collapse_and_are_not_invented(name: str) -> None:
    codec, random = get_codec(name), Random(0)
    for _ in range(2000):
        x, y = random.random() * 0.99, random.random() * 0.99
        box = (x, y, x + 0.004, y + 0.004)
        numbers = codec.space.encode([box[:2], box[2:]], SIZE)
        is_whole = numbers[0] < numbers[2] and numbers[1] < numbers[3]
        assert len(codec.parse(codec.format([box], SIZE), SIZE)) == is_whole


CANONICAL = {
    "scout": "the [[10,9,79,100]] and [[41,28,54,72;0,0,1,1]]",
    "chatspot": "<box>0.100,0.200,0.300,0.400</box> <box>0.5,0.500</box>",
    "shikra": "[0.100,0.300,0.300,0.400;0.000,0.200,0.100,0.300]",
    "qwen2_vl": "<|box_start|>(10,20),(300,1000)<|box_end|>",
    "qwen2_5_vl": '[{"bbox_2d": [10, 20, 300, 400], "label": "a \\"dog\\""}, {"point_2d": [5, 6]}]',
    "mirg": "<bbox_id>[2-1]</bbox_id><|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> is "
    "<bbox_id>[2-1]</bbox_id>",
}


def test_canonical_text_of_every_notation_by_hand() -> None:
    def boxes(name: str, strict: bool = True) -> list:
        codec = get_codec(name)
        parse = codec.parse_strict if strict else codec.parse
        return [(m.boxes, m.image, m.phrase) for m in parse(CANONICAL[name], SIZE)]

    assert boxes("scout") == [
        ([(0.10, 0.09, 0.79, 1.0)], None, None),
        ([(0.41, 0.28, 0.54, 0.72), (0, 0, 0.01, 0.01)], None, None),
    ]
    assert boxes("chatspot") == [([(0.1, 0.2, 0.3, 0.4)], None, None)]  # 0.5 has too few decimals
    assert len(boxes("chatspot", strict=False)) == 2
    assert boxes("qwen2_vl") == [([(0.01, 0.02, 0.3, 1.0)], None, None)]
    (dog, _, phrase), click = boxes("qwen2_5_vl")
    assert dog == [(10 / 640, 20 / 427, 300 / 640, 400 / 427)]
    assert phrase == 'a "dog"'
    assert click == ([], None, None)
    cat = ([(0.001, 0.002, 0.003, 0.004)], 1, "cat")
    assert boxes("mirg") == [cat, cat]
    # padded square of a 640 x 427 picture: 106.5 rows of padding above, so y = (320 - 106.5) / 427 at the middle
    middle = get_codec("shikra").parse("[0.5,0.500]", SIZE)[0].regions[0].points
    assert middle == ((0.5, pytest.approx(0.5)),)
    assert get_codec("shikra").parse("[0.250,0.250]", SIZE)[0].regions[0].points[0][1] == pytest.approx(53.5 / 427)


MORE = {
    "qwen3_vl": '[{"bbox_2d": [10, 20, 300, 1000], "label": "a dog"}, {"point_2d": [5, 6]}]',
    "gemma": '[{"box_2d": [20, 10, 1000, 300], "label": "a dog"}, {"point": [6, 5]}]',
    "paligemma": "<loc0020><loc0010><loc1023><loc0300> a dog ; <loc0000><loc0000><loc0100><loc0100>",
    "internvl": "<ref>a dog</ref><box>[[10, 20, 300, 1000]]</box> and <box>[[0, 0, 100, 100], [1, 2, 3, 4]]</box>",
    "glm": "It is <|begin_of_box|>[[10,20,300,1000]]<|end_of_box|>",
    "molmo": '<point x="10.5" y="20.0" alt="a dog">a dog</point>',
}


def test_the_notations_of_families_by_hand() -> None:
    """As their makers document them: y first in PaliGemma's and Gemma's, per cent in Molmo's."""

    def read(name: str) -> list:
        codec = get_codec(name)
        return [(m.boxes or [r.points for r in m.regions], m.phrase) for m in codec.parse_strict(MORE[name], SIZE)]

    dog = (0.01, 0.02, 0.3, 1.0)
    assert read("qwen3_vl") == [([dog], "a dog"), ([((0.005, 0.006),)], None)]
    assert read("gemma") == [([dog], "a dog"), ([((0.005, 0.006),)], None)]
    step = 1 / 1023
    assert read("paligemma") == [
        ([pytest.approx((10 * step, 20 * step, 300 * step, 1.0))], "a dog"),
        ([pytest.approx((0, 0, 100 * step, 100 * step))], None),
    ]
    assert read("internvl") == [([dog], "a dog"), ([(0, 0, 0.1, 0.1), (0.001, 0.002, 0.003, 0.004)], None)]
    assert read("glm") == [([dog], None)]
    decimals = get_codec("qwen3_vl", CoordinateSpace("decimals:3", "original"))  # as Kimi-VL was seen to answer
    assert [m.boxes for m in decimals.parse_strict('{"bbox_2d": [0.010, 0.020, 0.300, 1.000]}', SIZE)] == [[dog]]
    assert read("molmo") == [([((pytest.approx(0.105), 0.2),)], "a dog")]


@pytest.mark.parametrize(
    ("text", "phrases", "words"),
    [
        ("A dog {} on the grass.", [None], "a dog on the grass"),
        (
            "Step 1: Find the hat {}. Step 2: It {} is orange. Step 3: So the answer is orange.",
            [None] * 2,
            "orange",
        ),
        ("{} dog", ["dog"], ""),
        ("Here:\n{} dog ; {} cat\n{} hat", ["dog", "cat", "hat"], "here:"),
        ("  {} dog ;   {} cat", ["dog", "cat"], ""),
        ("{} \xe9l\xe9phant", ["\xe9l\xe9phant"], ""),
    ],
)
def test_a_label_of_paligemma_belongs_to_a_list_of_boxes(text: str, phrases: list, words: str) -> None:
    answer = read_answer(text.replace("{}", "<loc0020><loc0010><loc1023><loc0300>"), get_codec("paligemma"), [SIZE])
    assert [thing.phrase for thing in answer.objects] == phrases
    assert " ".join(answer.words.replace(";", "").split()) == words
    assert all(thing.canonical for thing in answer.objects)


@pytest.mark.parametrize(
    ("before", "after", "takes"),
    [
        ("", "", True),
        ("Here:\n  ", "\nDone.", True),
        ("{region:0} ; ", " ; {region:2}", True),
        ("A dog ", " on the grass.", False),
        ("", " is the dog", False),
        ("Step 2: It is ", "", False),
    ],
)
def test_a_label_of_paligemma_is_written_where_it_is_read(before: str, after: str, takes: bool) -> None:
    assert get_codec("paligemma").takes_phrase(before, after) is takes
    assert get_codec("qwen3_vl").takes_phrase(before, after)


@pytest.mark.parametrize(
    ("name", "text", "strictly"),
    [
        ("internvl", "[[10, 20, 300, 1000]]", 0),  # a decoder that drops special tokens leaves this
        ("glm", "<|begin_of_box|> [[10, 20, 300, 1000]] <|end_of_box|>", 0),
        ("glm", "[[10,20,300,1000]]", 0),
        ("paligemma", "<loc0020> <loc0010> <loc1023> <loc0300> dog", 0),
        ("gemma", "{'label': 'dog', 'box_2d': [20, 10, 1000, 300]}", 0),
        ("qwen3_vl", '{"label": "dog", "bbox_2d": [10, 20, 300, 1000]}', 0),
        ("molmo", '<point x=" 10.5" y="20">dog</point>', 0),
    ],
)
def test_the_notations_of_families_are_read_leniently(name: str, text: str, strictly: int) -> None:
    codec = get_codec(name)
    assert len(codec.parse(text, SIZE)) == 1
    assert len(codec.parse_strict(text, SIZE)) == strictly


def test_a_notation_without_boxes_refuses_them() -> None:
    with pytest.raises(ValueError, match="codec molmo: seen a box, expected click"):
        get_codec("molmo").format([(0.1, 0.2, 0.3, 0.4)])


def test_ids_before_their_object_and_unknown_ids_have_no_region() -> None:
    codec = get_codec("mirg")
    assert codec.parse("<bbox_id>[1-1]</bbox_id> and <bbox_id>[0-2]</bbox_id>") == []
    assert codec.reference([(0, 0, 0.5, 0.5)], None, image=1, number=3, phrase="hat") == (
        "<bbox_id>[2-3]</bbox_id><|object_ref_start|>hat<|object_ref_end|><|box_start|>(0,0),(500,500)<|box_end|>"
    )
    assert codec.reference([(0, 0, 0.5, 0.5)], None, image=1, number=3, first=False) == "<bbox_id>[2-3]</bbox_id>"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scout", "[[ 1, 2, 3, 4 ]]"),
        ("scout", "[[1.0,2,3,4]]"),
        ("scout", "[[1,2,300,400]]"),
        ("chatspot", "<box>(0.1,0.2),(0.3,0.4)</box>"),
        ("shikra", "[0.1, 0.2, 0.3, 0.4]"),
        ("qwen2_vl", "(1,2),(3,4)"),
        ("qwen2_5_vl", '{"bbox_2d":[1,2,3,4]}'),
        ("mirg", "(1,2),(3,4)"),
    ],
)
def test_what_lenient_reading_takes_and_strict_reading_refuses(name: str, text: str) -> None:
    codec = get_codec(name)
    assert len(codec.parse(text, SIZE)) == 1
    assert codec.parse_strict(text, SIZE) == []


def test_a_kind_that_a_notation_cannot_say_is_one_line() -> None:
    with pytest.raises(ValueError, match="codec scout: seen a click, expected box"):
        get_codec("scout").format([Region(((0.5, 0.5),))])
    with pytest.raises(ValueError, match="codec shikra: seen a polygon, expected click or box"):
        get_codec("shikra").format([Region(((0, 0), (1, 0), (1, 1)))], SIZE)


def mangled(random: Random, texts: list[str]) -> str:
    text = random.choice(texts)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(text) + 1)
        match random.randrange(8):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + random.choice(texts) + text[at:]
            case 2:
                text = text.translate({ord(c): ord(c) - 48 + 0x0660 for c in "0123456789"})
            case 3:
                text = text[:at] + random.choice('[](){}<>,;.-0123456789|"\\\x00\n e²٣') + text[at + 1 :]
            case 4:
                text = text.replace(",", random.choice([",,", " ", "", ";", "."]), random.randint(1, 3))
            case 5:
                text = text.replace("1", random.choice(["9" * random.randint(1, 30), "-1", "nan", "inf", "1e9"]))
            case 6:
                text = text[:at] + text[at:] * 2
            case _:
                text = text[::-1]
    return text


def test_hostile_answers_raise_nothing_and_give_finite_regions_inside_the_image() -> None:
    random, codecs = Random(1), [get_codec(name) for name in CODECS]
    texts = [*CANONICAL.values(), *MORE.values()]
    for _ in range(TOTAL):
        text = mangled(random, texts)
        for codec in codecs:
            for mention in codec.parse(text, SIZE):
                assert text[mention.start : mention.end]
                for x, y in (point for region in mention.regions for point in region.points):
                    assert 0 <= x <= 1  # false for NaN
                    assert 0 <= y <= 1
            assert len(codec.parse_strict(text, SIZE)) <= len(codec.parse(text, SIZE))


@pytest.mark.parametrize("name", CODECS)
def test_a_hundred_thousand_characters_take_linear_time(name: str) -> None:
    """Four times the text takes about four times as long: 16 would be quadratic."""
    codec = get_codec(name)

    def seconds(text: str) -> float:
        """Of this process, the best of three."""
        return min(timeit.repeat(lambda: codec.parse(text, SIZE), timer=time.process_time, repeat=3, number=1))

    openings = [
        "[[",
        "[",
        "<box>",
        "<|box_start|>(",
        "(1,",
        '{"bbox_2d": [',
        '{"bbox_2d": [1,2,3,4], "label": "',
        "{'a':\"",
        '{"a":[',
        "<bbox_id>[",
        "<loc0001>",
        "<ref>",
        "<ref>a</ref><box>[[",
        "[[1,2,3,4],",
        "<|begin_of_box|>[[",
        '<point x="1" y="',
        '<point x="1" y="2" alt="',
    ]
    for opening in [*openings, "1,", " ", "[[1,2,3,4]]", "\\", '"']:
        for more in (opening, "1,", "9"):
            short, long = (opening + more * (n // len(more)) for n in (25_000, 100_000))
            assert seconds(long) < 12 * seconds(short) + 0.001  # a millisecond for texts that take next to none


@pytest.mark.parametrize("grid", ["7", "decimals:0", "decimals:", "decimals:12", "", "\uff11\uff10\uff10"])
def test_unknown_grids_are_refused(grid: str) -> None:
    with pytest.raises(ValueError, match=r"CoordinateSpace\.grid: seen"):
        CoordinateSpace(grid)


def test_codecs_travel_to_workers() -> None:
    for name in CODECS:
        codec = get_codec(name)
        assert pickle.loads(pickle.dumps(codec)) == codec


def test_an_answer_that_names_the_object_of_its_reasoning() -> None:
    text = f"<think>{CANONICAL['mirg'][:-28]}</think><answer>It is <bbox_id>[2-1]</bbox_id>.</answer>"
    assert read_answer(text, get_codec("mirg"), [(9, 9)] * 2).strict_box == (0.001, 0.002, 0.003, 0.004)
