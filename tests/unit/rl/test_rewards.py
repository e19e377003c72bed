"""The three rewards on a table of completions, their options, and what is wrong with a reward."""

import math
from itertools import permutations
from random import Random

import pytest

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.coordinates import CoordinateSpace
from ts_lightning.grounding.regions import Region
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.rewards import (
    best_matching,
    f1_reward,
    format_reward,
    image_reward,
    length_reward,
    load_rewards,
    object_reward,
    overlap,
    repeat_reward,
    score,
    strict_reward,
    target_boxes,
    thought_reward,
)

CODEC = get_codec("mirg", CoordinateSpace("100"))


def make_sample(regions: list[SampleRegion], images: int = 3, answer: list[int] | None = None) -> Sample:
    pictures = [SampleImage(f"{i}.jpg", 40 + i, 30) for i in range(images)]
    wanted = Answer(None, list(range(len(regions)))) if answer is None else Answer(None, answer)
    return Sample(id="s", key="s", shard="t", images=pictures, regions=regions, answer=wanted)


# the target: (20, 20) to (60, 60) on the second of three pictures
TARGET = make_sample([SampleRegion(image=1, box=(0.2, 0.2, 0.6, 0.6))])
BOX = "<|box_start|>(20,20),(60,60)<|box_end|>"
HALF = "<|box_start|>(20,20),(60,40)<|box_end|>"  # IoU 0.5
AWAY = "<|box_start|>(70,70),(90,90)<|box_end|>"
REF = "<|object_ref_start|>cup<|object_ref_end|>"
ID1, ID2, ID3 = (f"<bbox_id>[{n}-1]</bbox_id>" for n in (1, 2, 3))


def say(think: str, answer: str) -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


OK = f"{ID2}{REF}{BOX}"
# text, (format, image, object)
TABLE: list[tuple[str, tuple[float, float, float]]] = [
    # right
    (say("It is here.", OK), (1, 1, 1)),
    (say(f"The cup {OK} is it.", ID2), (1, 1, 1)),
    (say(f"The cup {OK} is it.", f"It is {ID2}."), (1, 1, 1)),
    (say("a", f"The cup is {OK}."), (1, 1, 1)),
    (f"  {say('a', OK)}\n", (1, 1, 1)),
    (say("a\nb", f"\n{OK}\n"), (1, 1, 1)),
    (f"<think>a</think>\n\n<answer>{OK}</answer>", (1, 1, 1)),
    (say("a", f"{ID2}{BOX}"), (1, 1, 1)),
    (say(f"{ID1}{REF}{AWAY} or {OK}", ID2), (1, 1, 1)),
    (say(f"{OK} and {ID3}{REF}{AWAY}", f"{ID2} is it, {ID3} is not"), (1, 1, 1)),
    # a box that overlaps by half
    (say("a", f"{ID2}{REF}{HALF}"), (1, 1, 0.5)),
    (say(f"{ID2}{REF}{HALF}", ID2), (1, 1, 0.5)),
    (say("a", f"{ID2}{REF}{AWAY}"), (1, 1, 0)),
    (say(f"{ID2}{REF}{AWAY} no, {OK}", ID2), (1, 1, 1)),  # the id has a new box
    (say(OK, f"{ID2}{REF}{HALF}"), (1, 1, 0.5)),
    # the wrong picture: its IoU counts (eq. 1 and 2 are independent)
    (say("a", f"{ID1}{REF}{BOX}"), (1, 0, 1)),
    (say("a", f"{ID3}{REF}{BOX}"), (1, 0, 1)),
    (say("a", f"{ID3}{REF}{HALF}"), (1, 0, 0.5)),
    (say(f"{ID1}{REF}{BOX}", ID1), (1, 0, 1)),
    (say(f"{OK} {ID1}{REF}{AWAY}", ID1), (1, 0, 0)),
    # no picture named
    (say("a", BOX), (1, 0, 1)),
    (say("a", HALF), (1, 0, 0.5)),
    # a picture that is not there
    (say("a", f"<bbox_id>[4-1]</bbox_id>{REF}{BOX}"), (1, 0, 0)),
    (say("a", f"<bbox_id>[0-1]</bbox_id>{REF}{BOX}"), (1, 0, 0)),
    (say("a", f"<bbox_id>[999-1]</bbox_id>{REF}{BOX}"), (1, 0, 0)),
    # two boxes: the first counts, as for every scorer
    (say("a", f"{ID1}{REF}{AWAY} and {OK}"), (1, 0, 0)),
    (say("a", f"{OK} and {ID1}{REF}{AWAY}"), (1, 1, 1)),
    (say("a", f"{ID2}{REF}{AWAY} or rather {ID2}{REF}{BOX}"), (1, 1, 0)),
    (say("a", f"{BOX} {HALF}"), (1, 0, 1)),
    (say("a", f"{OK} {OK}"), (1, 1, 1)),
    (say("a", f"{OK} {ID3}{REF}{BOX} {ID2}"), (1, 1, 1)),
    # no box
    (say("a", "none"), (1, 0, 0)),
    (say("a", "the cup"), (1, 0, 0)),
    (say(OK, "the cup"), (1, 0, 0)),  # only thought of
    (say("a", ID2), (1, 0, 0)),  # an id that was never given a box
    (say(OK, ID1), (1, 0, 0)),
    (say("a", f"{ID2}{REF}"), (1, 0, 0)),
    (say("a", "(20,20),(60,60)"), (1, 0, 1)),  # lenient: numbers without marks, on no picture
    (say("a", "[20, 20, 60, 60]"), (1, 0, 0)),
    ("", (0, 0, 0)),
    ("The cup.", (0, 0, 0)),
    # no or broken tags: the format is wrong, the box is read as evaluation reads it
    (OK, (0, 1, 1)),
    (f"<answer>{OK}</answer>", (0, 1, 1)),
    (f"<think>a<answer>{OK}</answer>", (0, 1, 1)),
    (f"a</think><answer>{OK}</answer>", (0, 1, 1)),
    (f"<think>a</think><answer>{OK}", (0, 1, 1)),
    (f"<think>a</think>{OK}</answer>", (0, 1, 1)),
    (f"<think>a</think>{OK}", (0, 1, 1)),
    (f"<think>a {OK}", (0, 0, 0)),  # a thought that never ended is no answer
    (f"<answer>{OK}</answer><think>a</think>", (0, 1, 1)),
    (f"<think>a</think><think>b</think><answer>{OK}</answer>", (0, 1, 1)),
    (f"{say('a', OK)}<answer>{OK}</answer>", (0, 1, 1)),
    (f"{say('a', OK)}<answer>{ID1}{REF}{AWAY}</answer>", (0, 0, 0)),  # the last answer counts
    (f"<think>a</think><answer><answer>{OK}</answer>", (0, 1, 1)),
    (f"<Think>a</Think><answer>{OK}</answer>", (0, 1, 1)),
    (f"<think>a</think><Answer>{OK}</Answer>", (0, 1, 1)),
    (f"<think></think><answer>{OK}</answer>", (0, 1, 1)),
    ("<think>a</think><answer></answer>", (0, 0, 0)),
    ("<think>a</think><answer>  </answer>", (0, 0, 0)),
    # text around it
    (f"{say('a', OK)} That is it.", (0, 1, 1)),
    (f"Well. {say('a', OK)}", (0, 1, 1)),
    (f"<think>a</think> so <answer>{OK}</answer>", (0, 1, 1)),
    (f"{say('a', OK)} {ID2}{REF}{AWAY}", (0, 1, 1)),
    # reversed, empty, broken, out of range
    (say("a", f"{ID2}{REF}<|box_start|>(60,60),(20,20)<|box_end|>"), (1, 0, 0)),
    (say("a", f"{ID2}{REF}<|box_start|>(20,60),(60,20)<|box_end|>"), (1, 0, 0)),
    (say("a", f"{ID2}{REF}<|box_start|>(20,20),(20,60)<|box_end|>"), (1, 0, 0)),
    (say("a", f"{ID2}{REF}<|box_start|>(20,20),(60)<|box_end|>"), (1, 0, 0)),
    (say("a", f"{ID2}{REF}<|box_start|>(20,20),(60,60)"), (1, 0, 1)),  # unclosed: read as a bare box
    (say("a", f"{ID2}{REF}<|box_start|>(a,b),(c,d)<|box_end|>"), (1, 0, 0)),
    (say("a", f"{ID2}{REF}<|box_start|>(0,0),(250,250)<|box_end|>"), (1, 1, 0.16)),  # clipped to the whole picture
    # blanks are forgiven, and an odd number of points is no box
    (say("a", f"{ID2}{REF}<|box_start|>(20, 20), (60, 60)<|box_end|>"), (1, 1, 1)),
    (say("a", f"{ID2} {REF}\n{BOX}"), (1, 1, 1)),
    (say("a", f"{ID2}<|object_ref_start|>{'a < b ' * 50}<|object_ref_end|>{BOX}"), (1, 1, 1)),
    (say("a", f"{ID2}{REF}<|box_start|>(20,20),(60,60),(70,80)<|box_end|>"), (1, 0, 0)),
    # a picture named in words
    (say("a", f"Image-2: {BOX}"), (1, 1, 1)),
    (say("a", f"In the second image: {BOX}"), (1, 1, 1)),
    (say("Image-1 first.", f"{BOX} in image 3"), (1, 0, 1)),
]


def complete(text: str, sample: Sample = TARGET, stopped: bool = True) -> Completion:
    return Completion(text, [1], stopped, read_completion(text, CODEC, sample))


def test_the_table_is_long_enough_and_has_no_repeats() -> None:
    assert len({text for text, _ in TABLE}) == len(TABLE) >= 60


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_rewards(text: str, expected: tuple[float, float, float]) -> None:
    completion = complete(text)
    got = [reward(completion, TARGET) for reward in (format_reward, image_reward, object_reward)]
    assert got == pytest.approx(expected, abs=1e-9)


def test_an_answer_that_was_cut_off_has_no_format() -> None:
    assert format_reward(complete(say("a", OK), stopped=False), TARGET) == 0


def test_with_one_picture_a_bare_box_is_on_it() -> None:
    sample = make_sample([SampleRegion(image=0, box=(0.2, 0.2, 0.6, 0.6))], images=1)
    assert image_reward(complete(say("a", BOX), sample), sample) == 1


def test_pixel_grids_are_read_with_the_size_of_the_named_picture() -> None:
    codec = get_codec("mirg", CoordinateSpace("pixels"))
    text = say("a", f"{ID2}{REF}<|box_start|>(10,15),(20,30)<|box_end|>")
    (thing,) = read_completion(text, codec, TARGET).answered  # the second picture has 41 x 30 pixels
    assert thing.image == 1
    assert thing.box == pytest.approx((10 / 41, 0.5, 20 / 41, 1.0))


def test_same_image() -> None:
    assert object_reward(complete(say("a", f"{ID1}{REF}{BOX}")), TARGET, same_image=True) == 0
    assert object_reward(complete(say("a", f"{ID2}{REF}{BOX}")), TARGET, same_image=True) == 1


def test_several_targets() -> None:
    sample = make_sample(
        [SampleRegion(image=0, box=(0.0, 0.0, 0.4, 0.4)), SampleRegion(image=1, box=(0.2, 0.2, 0.6, 0.6))]
    )
    first = "<|box_start|>(0,0),(40,40)<|box_end|>"
    in_order = complete(say("a", f"{ID1}{REF}{first} {OK}"), sample)
    swapped = complete(say("a", f"{OK} {ID1}{REF}{first}"), sample)
    one = complete(say("a", OK), sample)
    assert (image_reward(in_order, sample), object_reward(in_order, sample)) == (1, 1)
    overlap = (0.2 * 0.2) / (0.16 + 0.16 - 0.04)
    assert object_reward(swapped, sample) == pytest.approx(overlap)
    assert object_reward(swapped, sample, matching=True) == pytest.approx(1)
    assert object_reward(one, sample, matching=True) == pytest.approx(0.5)
    three = complete(say("a", f"{OK} {ID1}{REF}{first} {ID3}{REF}{AWAY}"), sample)
    assert object_reward(three, sample, matching=True) == pytest.approx(2 / 3)


def test_best_matching_is_the_best_of_all_permutations() -> None:
    random = Random(0)
    for rows, columns in ((1, 1), (2, 3), (3, 2), (4, 4), (5, 3)):
        table = [[random.random() for _ in range(columns)] for _ in range(rows)]
        wide = table if rows <= columns else [list(column) for column in zip(*table, strict=True)]
        best = max(
            sum(row[j] for row, j in zip(wide, p, strict=True)) for p in permutations(range(len(wide[0])), len(wide))
        )
        assert best_matching(table) == pytest.approx(best)
    assert best_matching([[]]) == 0


def test_forms_of_overlap_by_hand() -> None:
    """Squares of side 0.2, apart by 0.2 on x: hull 0.6 x 0.2, union 0.08, centres 0.4 apart."""
    left, right = (0.0, 0.0, 0.2, 0.2), (0.4, 0.0, 0.6, 0.2)
    assert overlap(left, right) == 0
    assert overlap(left, right, "giou") == pytest.approx((1 - 0.04 / 0.12) / 2)
    assert overlap(left, right, "centre") == pytest.approx(1 - 0.16 / 0.4)
    half = (0.0, 0.0, 0.2, 0.1)  # IoU 0.5, the hull is the larger one
    assert overlap(left, half, "giou") == pytest.approx(0.75)
    assert overlap(left, half, "centre") == pytest.approx(1 - 0.05**2 / 0.08)
    assert [overlap(left, left, form) for form in ("iou", "giou", "centre")] == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="form: seen 'diou', expected one of iou, giou, centre"):
        overlap(left, right, "diou")
    assert object_reward(complete(say("a", f"{ID2}{REF}{AWAY}")), TARGET, form="giou") > 0


def test_f1_of_several_targets() -> None:
    """Two targets; one right box of one said: 2 * 1 / 3; of three said, two right: 2 * 2 / 5; wrong pictures are 0."""
    sample = make_sample(
        [SampleRegion(image=0, box=(0.0, 0.0, 0.4, 0.4)), SampleRegion(image=1, box=(0.2, 0.2, 0.6, 0.6))]
    )
    first = f"{ID1}{REF}<|box_start|>(0,0),(40,40)<|box_end|>"
    for said, expected in ((OK, 2 / 3), (f"{OK} {first}", 1), (f"{OK} {first} {ID3}{REF}{AWAY}", 0.8), ("no", 0)):
        assert f1_reward(complete(say("a", said), sample), sample) == pytest.approx(expected)
    assert f1_reward(complete(say("a", f"{ID1}{REF}{BOX}"), TARGET), TARGET) == 0
    assert f1_reward(complete(f"{ID2}{REF}{HALF}"), TARGET) == pytest.approx(0.5)  # plain: read whole


def test_boxes_of_the_thought() -> None:
    """Regions on pictures 1 and 2. The thought's boxes alone count, each once, and only on their picture."""
    sample = make_sample(
        [SampleRegion(image=1, box=(0.2, 0.2, 0.6, 0.6)), SampleRegion(image=0, box=(0.7, 0.7, 0.9, 0.9))], answer=[0]
    )
    other = f"{ID1}{REF}{AWAY}"
    for thought, expected in (
        ("no box", 0),
        (OK, 2 / 3),
        (f"{OK} and {other}", 1),
        (f"{OK} and {OK} and {other}", 1),
        (f"{OK} and {ID3}{REF}{AWAY}", 2 / 4),
        (f"{ID2}{REF}{HALF}", 2 * 0.5 / 3),
    ):
        assert thought_reward(complete(say(thought, OK), sample), sample) == pytest.approx(expected)
    assert thought_reward(complete(f"{OK} {other}", sample), sample) == 0  # no thought, only an answer


def test_strict_repeated_and_long_answers() -> None:
    assert strict_reward(complete(OK), TARGET) == 1
    for text in ("", "none", f"{ID2}{REF}<|box_start|>(20,20),(60,60)", say("a", "(20,20),(60,60)")):
        assert strict_reward(complete(text), TARGET) == 0
    assert strict_reward(complete(OK, stopped=False), TARGET) == 0
    again, third = "<bbox_id>[2-2]</bbox_id>", "<bbox_id>[2-3]</bbox_id>"
    for said, expected in ((OK, 0), ("none", 0), (f"{OK} {again}{BOX} {third}{AWAY}", -1 / 3)):
        assert repeat_reward(complete(say("a", said)), TARGET) == pytest.approx(expected)
    # DAPO eq. 13 with a limit of 100 tokens and a buffer of 40
    for tokens, expected in ((60, 0), (61, -1 / 40), (80, -0.5), (100, -1), (130, -1)):
        long = Completion("x", [1] * tokens)
        assert length_reward(long, TARGET, limit=100, buffer=40) == pytest.approx(expected)


def test_no_such_object() -> None:
    sample = make_sample([], answer=[])
    none, some = complete(say("a", "There is none."), sample), complete(say("a", OK), sample)
    assert (image_reward(none, sample), object_reward(none, sample)) == (0, 0)
    for reward in (image_reward, object_reward):
        assert reward(none, sample, empty_answers=True) == 1
        assert reward(some, sample, empty_answers=True) == 0
        assert reward(complete("nothing", sample), sample, empty_answers=True) == 1  # a plain answer is read whole
        for text in ("", "<think>a</think><answer> </answer>", "<think>There is none."):
            assert reward(complete(text, sample), sample, empty_answers=True) == 0
        assert reward(complete("There is", sample, stopped=False), sample, empty_answers=True) == 0
    assert [f1_reward(one, sample) for one in (none, some)] == [1, 0]
    assert [strict_reward(one, sample) for one in (none, some)] == [1, 1]


def test_an_image_index_out_of_range_is_named() -> None:
    sample = make_sample([SampleRegion(image=3, box=(0, 0, 1, 1))])
    with pytest.raises(ValueError, match=r"t:s: regions\[0\].image: seen 3, expected the index of one of 3 pictures"):
        target_boxes(sample)
    none = make_sample([SampleRegion(image=0, box=(0, 0, 1, 1))], images=0)
    with pytest.raises(ValueError, match="expected the index of one of 0 pictures"):
        object_reward(complete("x", none), none)


def test_a_polygons_target_is_the_box_around_it_and_points_are_none() -> None:
    sample = make_sample([SampleRegion(image=1, polygon=[(0.2, 0.4), (0.6, 0.2), (0.5, 0.6)])])
    right, none = complete(say("a", OK), sample), complete("nothing", sample)
    for reward in (image_reward, object_reward, f1_reward, thought_reward, strict_reward):
        said = complete(say(OK, OK), sample) if reward is thought_reward else right
        assert (reward(said, sample), reward(none, sample)) == (1, 0), reward
    assert object_reward(none, sample, empty_answers=True) == 0
    click = make_sample([SampleRegion(image=1, points=[(0.5, 0.5)])])
    for reward in (image_reward, object_reward, f1_reward):
        with pytest.raises(ValueError, match=r"t:s: regions\[0\]: seen points, expected a box or a polygon"):
            reward(complete("nothing", click), click)
    assert [strict_reward(complete(text, click), click) for text in ("nothing", OK)] == [0, 1]
    assert thought_reward(complete(say(OK, OK), click), click) == 0


def test_a_polygon_is_answered_by_a_polygon() -> None:
    """The triangle's box is (0.2, 0.2) to (0.6, 0.6); half of it, up to y 0.4, overlaps by 0.5. Clicks are no areas."""
    sample = make_sample([SampleRegion(polygon=[(0.2, 0.4), (0.6, 0.2), (0.5, 0.6)])], images=1)
    codec, size = get_codec("chatspot"), sample.sizes[0]

    def read(*answer: tuple[tuple[float, float], ...]) -> Completion:
        said = " ".join(codec.format([Region(points)], size) for points in answer)
        text = say(said, said)
        return Completion(text, answer=read_completion(text, codec, sample))

    right, half = ((0.2, 0.4), (0.6, 0.2), (0.5, 0.6)), ((0.2, 0.2), (0.6, 0.2), (0.6, 0.4))
    for reward in (image_reward, object_reward, f1_reward, thought_reward, strict_reward):
        assert reward(read(right), sample) == pytest.approx(1), reward
    for reward in (object_reward, f1_reward, thought_reward):
        assert reward(read(half), sample) == pytest.approx(0.5), reward
        assert reward(read(((0.4, 0.4),)), sample) == 0, reward
    assert object_reward(read(right, half), sample, matching=True) == pytest.approx(0.5)
    assert repeat_reward(read(right, right), sample) == -0.5
    box = make_sample([SampleRegion(box=(0.2, 0.2, 0.6, 0.6))], images=1)
    assert object_reward(read(right), box) == 0  # where a box is asked, a box is the answer


def broken(completion: Completion, sample: Sample) -> float:
    raise KeyError("no such field")


def test_a_reward_that_raises_or_is_no_number_names_itself_and_the_sample() -> None:
    with pytest.raises(ValueError, match="t:s: reward mine: KeyError: 'no such field'"):
        score({"mine": broken}, complete("x"), TARGET)
    with pytest.raises(ValueError, match="t:s: reward mine: seen nan, expected a finite number"):
        score({"mine": lambda c, s: math.nan}, complete("x"), TARGET)
    with pytest.raises(ValueError, match="t:s: reward mine: TypeError"):
        score({"mine": lambda c, s: None}, complete("x"), TARGET)


def test_rewards_by_dotted_path(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"object": "ts_lightning.rl.rewards.object_reward", "format": "ts_lightning.rl.format_reward"}
    rewards = load_rewards(paths, {"object": {"same_image": True}})
    wrong = complete(say("a", f"{ID1}{REF}{BOX}"))
    assert score(rewards, wrong, TARGET) == {"object": 0.0, "format": 1.0}
    for path, options, message in (
        ("os.system", {}, "rewards.x: seen 'os.system', expected one of ts_lightning.rl.format_reward"),
        ("ts_lightning.rl.nothing", {}, "rewards.x: seen 'ts_lightning.rl.nothing'"),
        ("ts_lightning.cli.main", {}, "rewards.x: seen 'ts_lightning.cli.main', expected one of"),
        ("ts_lightning.rl.rewards.load_rewards", {}, "rewards.x: seen 'ts_lightning.rl.rewards.load_rewards'"),
        ("ts_lightning.rl.format_reward", {"y": {}}, "reward_options: seen 'y', expected some of x"),
    ):
        with pytest.raises(ValueError, match=message):
            load_rewards({"x": path}, options)
    monkeypatch.setenv("TS_LIGHTNING_CLASS_PREFIXES", __name__)
    assert load_rewards({"mine": f"{__name__}.broken"}, {})["mine"].__name__ == "broken"


@pytest.mark.parametrize(
    ("reward", "options", "message"),
    [
        ("length_reward", {}, r"\(missing a required argument: 'limit'\), expected options of limit, buffer$"),
        ("length_reward", {"limit": 8}, "missing a required argument: 'buffer'"),
        ("length_reward", {"limit": 8, "buffer": 0}, r"reward_options\.x\.buffer: seen 0, expected at least 1"),
        ("object_reward", {"same": True}, r"unexpected keyword argument 'same'\), expected options of same_image, "),
        ("format_reward", {"form": "iou"}, "unexpected keyword argument 'form'.*, expected options of none"),
        ("f1_reward", {"form": "diou"}, r"reward_options\.x\.form: seen 'diou', expected one of iou, giou, centre"),
    ],
)
def test_wrong_options_of_a_reward_are_found_before_the_first_rollout(
    reward: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_rewards({"x": f"ts_lightning.rl.{reward}"}, {"x": options})
    assert str(raised.value).startswith("reward_options.x")


def test_objects_are_plain() -> None:
    (thing,) = complete(say("a", OK)).objects
    assert (thing.image, thing.box, thing.phrase) == (1, (0.2, 0.2, 0.6, 0.6), "cup")
