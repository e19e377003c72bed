"""The one reader of an answer: which part, which box, which picture, what is not read."""

import random as randomness

import pytest

from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.grounding.answer import Answer, answer_part, read_answer
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import CODECS, Codec, backbone_codec

SIZES = [(640, 480), (300, 500), (90, 60)]
BOX: Box = (0.2, 0.3, 0.6, 0.7)
SCOUT, MIRG = get_codec("scout"), get_codec("mirg", CoordinateSpace("100"))


def half(size: tuple[int, int]) -> tuple[int, int]:
    return max(1, size[0] // 2), max(1, size[1] // 2)


# Every notation over its own frame, over each frame there is, and as a backbone that resizes or pads makes it.
SPACES = [
    *(CoordinateSpace("1000", frame) for frame in ("original", "padded_square")),
    *(CoordinateSpace("pixels", frame, half) for frame in ("original", "padded_square", "resized")),
]
BOXES = [name for name, codec in CODECS.items() if "box" in codec.kinds]
EVERY: list[Codec] = [
    *(get_codec(name) for name in BOXES),
    *(get_codec(name, space) for name in BOXES for space in SPACES if name != "cogvlm" or space.grid != "pixels"),
    *(backbone_codec(name, None, half, mode) for name in BOXES for mode in ("stretch", "pad")),
]


def ids(codec: Codec) -> str:
    return f"{codec.name}-{codec.space.grid}-{codec.space.frame}"


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("codec", EVERY, ids=ids)
def test_what_is_written_is_read_in_every_notation_frame_and_place(codec: Codec, pictures: int) -> None:
    sizes = SIZES[:pictures]
    for image, size in enumerate(sizes):
        bare = codec.format([BOX], size)
        text = codec.reference([BOX], size, image, 1, "cup") if codec.name == "mirg" else f"Image-{image + 1}: {bare}"
        for said in (
            f"Step 1: Look. Step 2: So the answer is {text}.",
            f"Step 1: Find {text}. Step 2: So the answer is red.",
            f"<think>Hm.</think><answer>{text}</answer>",
            f"<think>Hm.</think><answer>{text}",
            text,
        ):
            answer = read_answer(said, codec, sizes)
            assert answer.status == "ok", said
            assert answer.image == image, said
            assert answer.counted is not None
            assert answer.counted.canonical, said
            assert answer.box == pytest.approx(BOX, abs=0.03), said  # 0.03: a pixel of the smallest picture
            assert sum(map(len, answer.step_boxes)) == 1
        other = codec.format([(0.1, 0.1, 0.3, 0.3)], size)
        several = read_answer(f"<answer>{text} or {other}</answer>", codec, sizes, unnamed=image)
        assert (several.status, several.box) == ("several", pytest.approx(BOX, abs=0.03))
        unnamed = read_answer(bare, codec, sizes, unnamed=image)
        assert unnamed.box == pytest.approx(BOX, abs=0.03)
        assert unnamed.image == (0 if pictures == 1 else None)
    assert read_answer("There is none.", codec, sizes).status == "unparsed"
    assert read_answer("", codec, []).box is None


def test_which_part_is_the_answer() -> None:
    def part(text: str) -> str:
        start, end, _ = answer_part(text)
        return text[start:end]

    assert part("a dog") == "a dog"
    assert part("Step 1: a. Step 2: b.") == "Step 2: b."
    assert part("<think>Step 1: a</think><answer>b</answer> c") == "b"
    assert part("<answer>a</answer><answer>b</answer>") == "b"  # of several the last
    assert part("<answer>a</answer><answer> </answer>") == "a"  # that says anything
    assert part("<answer>a <answer>b") == "b"
    assert part("<answer>cut o") == "cut o"
    assert part("<think>a</think> b") == " b"
    assert part("<think>a thought that was cut [[1,2,3,4]]") == ""
    assert part("a</answer>") == "a</answer>"
    assert part("<think>a</think>Step 1: b. Step 2: c") == "Step 2: c"


def box(text: str, **given: object) -> Box | None:
    return read_answer(text, SCOUT, [(100, 100)]).box


def test_which_box_counts() -> None:
    steps = "Step 1: Find it [[10,9,79,99]]. Step 2: So the answer is "
    assert box(f"{steps}the hat [[1,2,30,40]].") == (0.01, 0.02, 0.3, 0.4)
    assert box(f"{steps}orange.") == (0.1, 0.09, 0.79, 0.99)  # the last step names it in words: the box before it
    assert box("<think>[[1,1,9,9]]</think><answer>[[2,2,8,8]]</answer>") == (0.02, 0.02, 0.08, 0.08)
    assert box("<think>[[1,1,9,9]]</think><answer>none</answer>") is None  # only thought of
    assert box("<think>[[1,1,9,9]]") is None
    assert box("[[1,1,9,9]] or [[2,2,8,8]]") == (0.01, 0.01, 0.09, 0.09)
    assert box("[[9,9,1,1]] or [[2,2,8,8]]") == (0.02, 0.02, 0.08, 0.08)
    answer = read_answer("[[ 1, 1, 9, 9 ]] or [[2,2,8,8]]", SCOUT, [(9, 9)])
    assert (answer.box, answer.strict_box) == ((0.01, 0.01, 0.09, 0.09), (0.02, 0.02, 0.08, 0.08))


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("Image-2: [[1,2,3,4]]", 1),
        ("It is in the 3rd picture: [[1,2,3,4]]", 2),
        ("[[1,2,3,4]] in the second image", 1),  # named behind it, and alone
        ("Not image 1. Image 2 has it at [[1,2,3,4]]", 1),  # the last that is named before it
        ("<think>Image-1 shows a dog.</think><answer>Image-3: [[1,2,3,4]]</answer>", 2),
        ("<think>Image-1 shows a dog.</think><answer>[[1,2,3,4]]</answer>", None),
        ("Image-7: [[1,2,3,4]]", None),
        ("image 2", 1),  # said without a box
        ("nothing", None),
    ],
)
def test_the_picture_of_an_answer(text: str, image: int | None) -> None:
    assert read_answer(text, SCOUT, SIZES).image == image


def test_ids() -> None:
    def read(text: str) -> Answer:
        return read_answer(text, MIRG, SIZES)

    cup = "<bbox_id>[2-1]</bbox_id><|object_ref_start|>cup<|object_ref_end|><|box_start|>(10,10),(50,50)<|box_end|>"
    thought = read(f"<think>Not <bbox_id>[1-1]</bbox_id>: {cup}</think><answer><bbox_id>[2-1]</bbox_id></answer>")
    assert (thought.image, thought.box) == (1, (0.1, 0.1, 0.5, 0.5))
    assert thought.counted is not None
    assert thought.counted.phrase == "cup"
    assert [one.why for one in thought.unread] == ["an id without a box before it"]
    blanks = cup.replace("</bbox_id>", "</bbox_id>\n").replace("<|box_start|>", " <|box_start|>")
    assert read(blanks).box == (0.1, 0.1, 0.5, 0.5)
    assert read(f"{cup} and again {cup}").status == "ok"  # one object
    elsewhere = read(cup.replace("[2-1]", "[9-1]"))
    assert (elsewhere.status, elsewhere.unread[0].why) == ("unparsed", "picture 9 of 3")
    assert read("(1,2),(3,4),(7,8)").unread[0].why == "3 points"
    assert [thing.box for thing in read("(1,2),(3,4),(5,6),(7,8)").answered] == [
        (0.01, 0.02, 0.03, 0.04),
        (0.05, 0.06, 0.07, 0.08),
    ]


def test_words_and_rejections() -> None:
    def words(text: str) -> str:
        return read_answer(text, SCOUT, [(9, 9)]).words

    assert words("Step 1: Find it [[1,1,9,9]]. Step 2: So the answer is orange.") == "orange"
    assert words("So the answer is the hat [[1,1,9,9]].") == "the hat"
    assert words("<think>a cat</think><answer>A dog [[1,1,9,9]]</answer>") == "a dog"
    assert words("Step 1: a. Step 2: [[1,1,9,9]]") == ""
    assert read_answer("There is a dog. This question is invalid.", SCOUT, []).rejected
    assert not read_answer("<think>This question is invalid? No.</think><answer>red</answer>", SCOUT, []).rejected


PIECES = [
    *("<answer>", "</answer>", "<think>", "</think>", "[[1,2,30,40]]", "[[", "[", "]]", "]", ";", ",", "."),
    *("Step 1:", "Step 99;", "<bbox_id>[1-1]</bbox_id>", "<bbox_id>[2-", "<|object_ref_start|>"),
    *("<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "(1,2),(30,40)", "(", ")", '{"bbox_2d": ['),
    *("1,2,300,400", "]}", '"label":', "<box>", "</box>", "0.1,0.2,0.5,0.9", "-1", "999999999", "1e9"),
    *("image-2", "the second image", "nan", "inf", "\u0661", "\u4e2d\u6587", "\n", "\x00", "x"),
]


def test_whatever_a_model_says_is_read() -> None:
    random = randomness.Random(0)
    for number in range(4000):
        codec = EVERY[number % len(EVERY)]
        text = "".join(random.choice(PIECES) + random.choice(["", " "]) for _ in range(random.randint(0, 40)))
        answer = read_answer(text, codec, SIZES[: random.randint(0, 3)])
        assert all(0 <= v <= 1 for thing in answer.objects for v in thing.box)
        assert answer.status in ("ok", "several", "unparsed")


@pytest.mark.parametrize("codec", [get_codec(name) for name in BOXES], ids=ids)
def test_work_grows_with_the_text_alone(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bracket is asked once for its region, whatever the pictures; nothing is read a second time."""
    count = 0
    original = type(codec).region

    def counted(self: Codec, *args: object) -> object:
        nonlocal count
        count += 1
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(codec), "region", counted)
    one = codec.reference([BOX], SIZES[0], 0, 1, "cup")
    read_answer(one * 10, codec, SIZES[:1])
    ten, count = count, 0
    read_answer(one * 100, codec, SIZES[:1])
    assert count == 10 * ten
