"""Protocols against plainly written re-statements of the official scorers, on disturbed truths of real files."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.metrics.protocols import PROTOCOLS, default_protocols, make_protocol
from ts_lightning.metrics.record import Record, Truth
from ts_lightning.metrics.steps import StepAnswer
from ts_lightning.metrics.suites import SuiteMetrics, compare, score_suites
from ts_lightning.pipelines.converters import mig_bench, refcoco
from ts_lightning.reports.suite_report import number
from ts_lightning.training.records import record_of

REAL = Path(__file__).parents[4] / "shared/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no annotation files in {REAL}")
CODEC = get_codec("scout", CoordinateSpace("1000"))


def figures_of(name: str, records: Sequence[Record], reading: str | None = None) -> dict[str, Any]:
    protocol = make_protocol(name, reading)
    protocol.update(records)
    return protocol.compute()


def disturbed(box: tuple[float, ...], random: Random) -> str:
    """An answer: near, far, in several boxes, reversed, or none."""
    kind = random.random()
    moved = [min(max(v + random.gauss(0, 0.08), 0.0), 1.0) for v in box]
    text = CODEC.format([tuple(moved)]) if moved[0] < moved[2] and moved[1] < moved[3] else "[[9,9,5,5]]"
    if kind < 0.08:
        return "I can't see it."
    return f"{text} or [[1,1,900,900]]" if kind < 0.15 else f"It is here: {text}."


def official_iou(p: list[float], t: list[float]) -> float:
    width = max(0.0, min(p[2], t[2]) - max(p[0], t[0]))
    height = max(0.0, min(p[3], t[3]) - max(p[1], t[1]))
    inter = width * height
    union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - inter
    return inter / union


def first_box(text: str) -> list[float] | None:
    """The first well-formed quadruple on 0-1000, as the scripts' regular expressions take it."""
    for match in re.finditer(r"\[\[(\d+),(\d+),(\d+),(\d+)\]\]", text):
        x1, y1, x2, y2 = (int(n) / 1000 for n in match.groups())
        if x1 < x2 and y1 < y2:
            return [x1, y1, x2, y2]
    return None


@needs_real
def test_rec_is_the_official_rule_on_refcoco() -> None:
    random, records, ious = Random(0), [], []
    for sample in refcoco.read(REAL / "refcoco/unc_testA.pth"):
        truth = sample.regions[0].box
        assert truth is not None
        text = disturbed(truth, random)
        records.append(record_of(sample, text, CODEC, "testA"))
        box = first_box(text)
        ious.append(0.0 if box is None else official_iou(box, list(truth)))
    figures = figures_of("rec", records)
    assert figures["acc50"] == pytest.approx(sum(i >= 0.5 for i in ious) / len(ious), abs=1e-9)
    assert figures["acc50_above"] == pytest.approx(sum(i > 0.5 for i in ious) / len(ious), abs=1e-9)
    assert figures["miou"] == pytest.approx(sum(ious) / len(ious), abs=1e-9)
    for t in range(1, 10):
        assert figures[f"acc{10 * t}"] == pytest.approx(sum(i >= t / 10 for i in ious) / len(ious), abs=1e-9)
    assert 0.99 < figures["ceiling_miou"] < 1
    assert figures["acc50_lenient"] == figures["acc50"] <= figures["acc50_oracle"]


@needs_real
def test_mig_bench_is_the_official_rule() -> None:
    random, records, by_task = Random(1), [], {}
    for sample in mig_bench.read(REAL / "mig_bench"):
        truth = sample.regions[sample.answer.regions[0]].box if sample.answer else None
        assert truth is not None
        shown = random.choice([f"It's in image-{random.randint(1, 2)}. ", "In the second image. ", ""])
        text = shown + disturbed(truth, random)
        records.append(record_of(sample, text, CODEC, "mig"))
        box = first_box(text)
        by_task.setdefault(sample.subtask, []).append(0.0 if box is None else official_iou(box, list(truth)))
    figures = figures_of("mig", records)
    means = {task: sum(i >= 0.5 for i in ious) / len(ious) for task, ious in by_task.items()}
    assert len(records) == 4295
    assert figures["acc50"] == pytest.approx(sum(means.values()) / 10, abs=1e-9)
    spontaneous = [means[task] for task in ("diff", "view_diff", "common_object")]
    assert figures["spontaneous"] == pytest.approx(sum(spontaneous) / 3, abs=1e-9)
    assert figures["image_known"] == 3767
    assert 0 < figures["image_none_stated"] < 3767
    assert figures["by_task"]["region"]["questions"] == 1203


def ask(key: str, text: str, true: str, choices: tuple[str, ...] | None = None, **meta: Any) -> Record:
    truth = Truth(answers=(true,))
    return Record("s", key, text, truth, task="understanding", choices=choices, meta=meta)


def test_circular_and_mme_by_hand() -> None:
    rows = [("a", "A", "x", 1), ("b", "B", "y", 1), ("c", "A", "x", 2), ("d", "A", "y", 2)]
    records = [ask(key, text, true, ("x", "y"), question_id=group) for key, text, true, group in rows]
    for name in ("choice", "circular"):
        figures = figures_of(name, records)
        assert (figures["accuracy"], figures["circular"], figures["unread"]) == (0.75, 0.5, 0.0)
    run = score_suites([replace(record, protocol="circular") for record in records])["s"]
    assert (run["main"], run["score"], run["questions"]) == ("circular", 0.5, 4)
    assert run["interval"] == (0.0, 1.0)  # over the two questions
    answers = ((1, "Yes", "yes"), (1, "no", "no"), (2, "Yes.", "yes"), (2, "maybe", "no"))
    pair = [ask(str(i), text, true, category="color", image_id=n) for i, (n, text, true) in enumerate(answers)]
    figures = figures_of("mme", pair)
    assert figures["by_category"] == {"color": 100 * (0.75 + 0.5)}
    assert (figures["perception"], figures["cognition"], figures["unread"]) == (125.0, 0, 0.25)


def test_the_official_figure_and_ours_stand_side_by_side() -> None:
    yes = [
        ask(str(i), text, "yes", category="count", image_id=1) for i, text in enumerate(("Yes", "It is there. Yes."))
    ]
    mme = figures_of("mme", yes)  # the official rule reads the first four letters alone
    assert (mme["perception"], mme["perception_ours"]) == (50.0, 200.0)
    said = [
        replace(ask("a", "Yes", "yes"), truth=Truth(answers=("yes",) * 10)),
        replace(ask("b", "two", "2"), truth=Truth(answers=("2",) * 3 + ("4",) * 7)),
    ]
    vqa = figures_of("vqa", said, "vqav2")  # where all annotators agree nothing is normalised
    assert vqa["accuracy"] == pytest.approx((0 + 0.9) / 2)
    assert vqa["accuracy_ours"] == pytest.approx((1 + 0.9) / 2)
    assert "accuracy_ours" not in figures_of("vqa", said, "lenient")
    with pytest.raises(
        ValueError, match="reading of vqa: seen 'official', expected one of vqav2, textvqa, gqa, lenient"
    ):
        make_protocol("vqa", "official")
    with pytest.raises(ValueError, match="protocol: seen 'nope', expected one of localization, rec"):
        make_protocol("nope")


RIGHT = (0.1, 0.1, 0.5, 0.5)
GOOD, AWAY = "[[10,10,50,50]]", "[[60,60,90,90]]"


def planted(text: str, **fields: Any) -> Record:
    fields = {"suite": "s", "key": text, "truth": Truth(box=RIGHT, boxes=(RIGHT,)), "sizes": ((200, 100),), **fields}
    return Record(text=text, **fields)


def test_unequal_tasks_of_mig_bench_count_the_same_in_score_interval_and_difference() -> None:
    # nine of nine in one task, none of one in the other: (1 + 0) / 2, where the mean over questions is 0.9
    a = [planted(GOOD, key=f"{i}", subtask="group", protocol="mig", suite="mig_bench") for i in range(9)]
    a.append(planted(AWAY, key="9", subtask="diff", protocol="mig", suite="mig_bench"))
    b = [*a[:9], replace(a[9], text=GOOD)]
    run = score_suites(a)["mig_bench"]
    assert run["score"] == 0.5
    assert run["interval"] == (0.5, 0.5)  # within a task every question is the same
    result = compare(a, b)["mig_bench"]
    assert (result["a"], result["b"], result["mean"], result["gained"]) == (0.5, 1.0, 0.5, ["9"])


def test_the_picture_is_read_inside_the_answer() -> None:
    truth = Truth(box=RIGHT, boxes=(RIGHT,), image=2)
    box = "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>"
    thought = f"<think>Query <bbox_id>[1-1]</bbox_id>{box}, found <bbox_id>[3-1]</bbox_id>{box}</think>"
    record = planted(
        f"{thought}<answer><bbox_id>[3-1]</bbox_id></answer>",
        **{"truth": truth, "sizes": ((200, 100),) * 3, "codec": "mirg", "grid": "1000", "subtask": "refer"},
    )
    figures = figures_of("mig", [record])
    assert (figures["acc50"], figures["image_accuracy"], figures["image_known"]) == (1.0, 1.0, 1)


def test_four_columns_of_mig_bench() -> None:
    texts = {
        "<|box_start|>(100,100),(500,500)<|box_end|>": (1, 1, 1, 1),
        "(100, 100), (500, 500)": (0, 1, 1, 1),
        "[0.1, 0.1, 0.5, 0.5]": (0, 0, 1, 1),  # one of Migician's notations
        "20 10 100 50": (0, 0, 0, 1),  # pixels of 200 x 100
        "no": (0, 0, 0, 0),
    }
    for text, expected in texts.items():
        figures = figures_of("mig", [planted(text, codec="qwen2_vl", grid="1000", subtask="refer")])
        got = tuple(figures[f"acc50_{name}"] for name in ("strict", "lenient", "official", "oracle"))
        assert got == expected, text
        assert figures["acc50"] == figures["acc50_lenient"]


def test_box_figures_are_of_double_precision() -> None:
    true = Truth(box=(0.1, 0.1, 0.5, 0.5))  # IoU 0.699999975
    text = "[0.1,0.1,0.37999999,0.5]"
    record = planted(text, truth=true, codec="shikra", grid="decimals:8", frame="original", subtask="diff")
    mig, sizes = figures_of("mig", [record]), figures_of("localization", [record])
    assert (mig["acc70"], mig["acc50"]) == (0.0, 1.0)
    assert mig["miou"] == sizes["miou"] == sizes["miou_medium"] == pytest.approx(0.27999999 / 0.4, abs=1e-12)


def test_the_scaled_y_axis_of_mig_bench_by_hand() -> None:
    """Boxes as wide as the true one: y1 times 1.05 and y2 times 1.10, at most 0.999, turns right and wrong round."""
    heights = {  # said and true from y1 to y2: right as said, right scaled
        ((0.4, 0.6), (0.5, 0.66)): (0, 1),  # 0.10 of 0.26 together; scaled to 0.42, 0.66: 0.16 of 0.24
        ((0.5, 0.6), (0.48, 0.58)): (1, 0),  # 0.08 of 0.12; scaled to 0.525, 0.66: 0.055 of 0.18
        ((0.6, 0.7), (0.62, 0.72)): (1, 1),  # 0.08 of 0.12; scaled to 0.63, 0.77: 0.09 of 0.15 (from 0.66 on 0.06)
        ((0.8, 0.85), (0.88, 0.935)): (0, 1),  # apart; scaled to 0.84, 0.935: 0.055 of 0.095 (from 0.8 on of 0.135)
        ((0.85, 0.95), (0.94, 0.999)): (0, 1),  # 0.01 of 0.149; to 0.8925, 0.999: 0.059 of 0.1065 (of 0.1525 to 1.045)
    }
    fields = {"codec": "shikra", "grid": "decimals:3", "frame": "original", "subtask": "diff"}
    for ((y1, y2), (top, bottom)), expected in heights.items():
        one = planted(f"[0.2,{y1},0.8,{y2}]", truth=Truth(box=(0.2, top, 0.8, bottom)), **fields)
        figures = figures_of("mig", [one])
        assert (figures["acc50"], figures["acc50_yscaled"]) == expected, one.text


def test_small_medium_and_large_objects_by_hand() -> None:
    widths = {1023: 50, 1024: 40, 9216: 30, 9217: 20}  # area in pixels, and the answer's right side: IoU 1 to 0.25
    some = [
        planted(f"[[10,10,{right},50]]", key=str(area), truth=Truth(box=RIGHT, area_px=area))
        for area, right in widths.items()
    ]
    figures = figures_of("localization", some)
    sizes = {size: figures[f"miou_{size}"] for size in ("small", "medium", "large")}
    assert sizes == pytest.approx({"small": 1.0, "medium": (0.75 + 0.5) / 2, "large": 0.25})


def test_captions_are_no_phrases_and_lists_of_boxes_no_rec() -> None:
    phrase = planted(GOOD, key="a", subtask="phrase")
    caption = planted("", key="b", subtask="caption", truth=Truth(boxes=(RIGHT, RIGHT)))
    for name in ("phrases", "rec", "localization", "mig"):
        entry = score_suites([replace(one, protocol=name) for one in (phrase, caption)])["s"]
        assert (entry["questions"], entry["not_scored"], entry["score"]) == (1, 1, 1.0), name


def test_a_phrase_of_several_boxes() -> None:
    truth = Truth(boxes=((0.1, 0.1, 0.3, 0.5), (0.3, 0.1, 0.5, 0.5)))
    some = [planted(text, key=text, subtask="phrase", truth=truth) for text in (GOOD, "[[10,10,20,50]]", "none")]
    figures = figures_of("phrases", some)  # IoU with the whole and with a half: 1 and 0.5; 0.25 and 0.5
    assert (figures["recall1_merged"], figures["recall1_any"]) == (1 / 3, 2 / 3)
    assert figures["unparsed"] == 1 / 3


def test_strict_lenient_and_oracle_columns_by_hand() -> None:
    records = [
        planted(GOOD),  # right in all three
        planted("[[ 10, 10, 50, 50 ]]"),  # not for the strict one
        planted("[[20,10,100,50]]"),  # pixels of 200 x 100: for the oracle alone
        planted("nothing"),
    ]
    figures = figures_of("rec", records)
    assert (figures["acc50_strict"], figures["acc50_lenient"], figures["acc50_oracle"]) == (0.25, 0.5, 0.75)
    assert (figures["unparsed"], figures["unparsed_strict"]) == (0.25, 0.5)
    assert figures_of("rec", records, "strict")["acc50"] == 0.25


def test_official_readings_of_rec() -> None:
    records = [planted("[0.1, 0.1, 0.5, 0.5]"), planted("[0.5, 0.5, 0.1, 0.1]"), planted("100 100 500 500")]
    figures = {name: figures_of("rec", records, name) for name in ("lmms_eval", "vlmevalkit", "vlm_r1")}
    assert {name: one["acc50_official"] for name, one in figures.items()} == pytest.approx(
        {"lmms_eval": 1 / 3, "vlmevalkit": 1.0, "vlm_r1": 0.0}
    )
    assert figures["lmms_eval"]["centre"] == pytest.approx(2 / 3)  # a reversed box has its centre too
    assert all(one["acc50_lenient"] == 0.0 for one in figures.values())
    text = '<answer>{"bbox_2d": [10, 5, 50, 25]}</answer>'
    shown = planted(text, codec="qwen2_5_vl", frame="resized", grid="pixels", resized=((100, 50),))
    assert figures_of("rec", [shown], "vlm_r1")["acc50"] == figures_of("rec", [shown])["acc50"] == 1.0


def test_a_model_in_another_frame_is_told_so() -> None:
    records = [planted("[[20,10,100,50]]", key=str(i)) for i in range(12)]
    figures = figures_of("rec", records)
    assert figures["acc50_strict"] == 0.0
    assert "read as pixels of the original" in figures["warning"]


def test_right_answers_in_the_declared_frame_are_no_reason_to_warn() -> None:
    # a blank behind the comma is not canonical; the frame is the right one all the same
    fields = {"codec": "chatspot", "grid": "decimals:3"}
    records = [planted("<box>0.1, 0.1, 0.5, 0.5</box>", key=str(i), **fields) for i in range(12)]
    figures = figures_of("rec", records)
    assert (figures["acc50"], figures["acc50_strict"], figures["warning"]) == (1.0, 0.0, None)


def test_cut_answers_are_counted() -> None:
    assert figures_of("rec", [planted(GOOD, cut_off=True), planted(AWAY)])["cut_off"] == 0.5


def test_what_a_protocol_needs_is_named() -> None:
    with pytest.raises(ValueError, match=r"suite s: k: seen no meta.category, the protocol mme expects it"):
        figures_of("mme", [ask("k", "yes", "yes")])
    with pytest.raises(ValueError, match="suite s: k: seen no subtask, the protocol mig expects it"):
        figures_of("mig", [planted(GOOD, key="k")])


def test_a_suite_without_a_protocol_is_scored_by_its_truth() -> None:
    steps = Truth(steps=StepAnswer("red", [[]], False), box=RIGHT)
    assert default_protocols([planted(GOOD), ask("a", "red", "red")]) == ["localization", "answers"]
    assert default_protocols([planted(GOOD, truth=steps)]) == ["localization", "steps"]
    assert default_protocols([planted("", truth=Truth())]) == []


def test_every_question_of_a_suite_without_a_protocol_is_scored() -> None:
    invalid = "This question is invalid."
    negative = planted(invalid, key="n", truth=Truth(invalid, steps=StepAnswer("", [[]], True)))
    boxes = [planted(AWAY if i == 8 else GOOD, key=f"b{i}") for i in range(9)]
    some = [negative, *boxes, planted("", key="c", truth=Truth())]
    scores = score_suites(some, {"s": "all"})
    assert {name: (one["main"], one["questions"], one["score"]) for name, one in scores.items()} == {
        "s (localization)": ("miou", 9, pytest.approx(8 / 9)),
        "s (steps)": ("right", 1, 1.0),
    }
    assert {one["suite"] for one in scores.values()} == {"s"}
    assert [one["not_scored"] for one in scores.values()] == [1, 1]  # the one without a truth
    assert all(one["convention"]["completeness"] == "all" for one in scores.values())
    metrics = SuiteMetrics()
    metrics.update("s", some)
    logged = metrics.compute(torch.device("cpu"))
    for one in scores.values():
        assert logged[f"s/{one['main']}"] == pytest.approx(one["score"])
    result = compare(some, [replace(negative, text="yes"), *[replace(one, text=GOOD) for one in boxes], some[-1]])
    assert {name: (one["gained"], one["lost"]) for name, one in result.items()} == {
        "s (localization)": (["b8"], []),
        "s (steps)": ([], ["n"]),
    }


def test_the_reading_of_a_suite_without_a_protocol_goes_to_those_that_have_it() -> None:
    loose = [
        planted("[[ 10, 10, 50, 50]]", key="a", reading="strict"),
        replace(ask("w", "red", "red"), reading="strict"),
    ]
    scores = score_suites(loose)
    assert {name: (one["reading"], one["score"]) for name, one in scores.items()} == {
        "s (localization)": ("strict", 0.0),
        "s (answers)": ("lenient", 1.0),
    }
    metrics = SuiteMetrics()
    metrics.update("s", loose)
    assert metrics.compute(torch.device("cpu"))["s/miou"] == 0.0
    with pytest.raises(ValueError, match="reading: seen 'nonsense', expected one of lenient, strict, lmms_eval"):
        score_suites([replace(loose[0], reading="nonsense")])


def test_a_step_answer_without_words_is_judged_by_its_last_boxes() -> None:
    last = "Step 1: Find the dog. Step 2: So the answer is {}."
    truth = Truth(last, steps=StepAnswer("", [[], [RIGHT]], False))
    texts = {"": 0, last.format(GOOD): 1, last.format(AWAY): 0, last.format(f"{GOOD} {AWAY}"): 0, "red": 0, GOOD: 1}
    texts[f"{GOOD} This question is invalid."] = 0
    for text, value in texts.items():
        assert figures_of("steps", [planted(text, truth=truth)])["right"] == value, text
    nothing = planted("", truth=Truth("So.", steps=StepAnswer("", [[]], False)))
    right = figures_of("steps", [nothing])["right"]
    assert right != right  # neither words nor boxes can be right
    assert figures_of("steps", [nothing, planted(last.format(GOOD), truth=truth)])["right"] == 1.0


def test_an_empty_answer_has_no_accepted_one() -> None:
    for accepted in ("?", "...", ""):
        assert figures_of("contains", [ask("k", "", accepted)])["accuracy"] == 0.0
        assert figures_of("contains", [ask("k", "a dog", accepted)])["accuracy"] == 0.0
    assert figures_of("answers", [ask("k", "", "?")])["accuracy"] == 0.0
    assert figures_of("answers", [ask("k", "?", "?")])["accuracy"] == 1.0


def test_the_mean_over_sets_is_of_those_that_have_such_objects() -> None:
    def photo(key: str, subtask: str, side: int, text: str) -> Record:
        meta = {"image_id": 1, "classes": ["cat"], "objects": [[0, 0, 0, side, side, side * side, 0]]}
        sizes = ((200, 200),)
        return Record("s", key, text, Truth(), sizes=sizes, meta=meta, subtask=subtask, protocol="detection")

    some = [photo("a", "small", 20, "cat [[0,0,10,10]]"), photo("b", "large", 200, "cat [[0,0,50,50]]")]
    one = score_suites(some)["s"]
    assert (one["figures"]["AP_S"], one["figures"]["AP_L"]) == (pytest.approx(1.0), 0.0)
    assert one["figures"]["AP_M"] != one["figures"]["AP_M"]
    assert number("sets", one["figures"]["sets"]) == number("boxes", one["figures"]["boxes"]) == "2"
    assert number("AP_M", one["figures"]["AP_M"]) == "-"


def test_every_protocol_has_a_convention_and_its_main_figure() -> None:
    meta = {"class": "o365_1", "subtask_l1": "Spatial", "domain": "attribute", "people": 1, "image_id": 1}
    meta |= {"classes": ["cat"], "objects": [[0, 1, 1, 9, 9, 81, 0]]}
    pair = {"image_ids": [1, 2], "objects": [[0, 1, 1, 1, 9, 9]]}
    some = {
        "box": planted(GOOD, subtask="diff", meta=meta),
        "phrase": planted(GOOD, subtask="phrase", meta=meta),
        "pair": planted(GOOD, meta=pair, truth=Truth(), sizes=((9, 9), (9, 9))),
        "step": planted("red", truth=Truth(steps=StepAnswer("red", [[]], False))),
        "word": ask("k", "yes", "yes", ("yes", "no"), category="count", image_id=1),
    }
    for name, kind in PROTOCOLS.items():
        assert kind.convention, name
        if name in ("gic", "region_class", "open_ended"):  # a file or a judge: their own tests
            continue
        chosen = [one for one in some.values() if kind().takes(one)]
        assert chosen, name
        protocol = kind("lenient") if "lenient" in kind.readings else kind()
        protocol.update(chosen)
        try:
            figures, values = protocol.compute(), protocol.values(protocol.rows()).values
        except ModuleNotFoundError:
            continue
        assert protocol.main in figures, name
        if values:
            assert sum(values) / len(values) == pytest.approx(figures[protocol.main]), name
