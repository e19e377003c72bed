"""Offline generation: SCOUT, captions, dialogues, trajectories; checks that reject; the report that can fail."""

import json
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data_samples import sample as small_sample
from tests.unit.generation_samples import KINDS, detection, input_shard, read, scene, scout
from ts_lightning.cli import main
from ts_lightning.data.sample import Answer, Sample, SampleRegion, Turn
from ts_lightning.grounding import get_codec
from ts_lightning.grounding.boxes import iou
from ts_lightning.pipelines.converters import coco
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.gic import Captions, names_before
from ts_lightning.pipelines.llm_client import Chat, Usage, messages
from ts_lightning.pipelines.mirg import Trajectories
from ts_lightning.pipelines.offline import OfflineChat
from ts_lightning.pipelines.quality import marked, report, verdict
from ts_lightning.pipelines.region_chat import RegionChat, dialogue
from ts_lightning.pipelines.scenes import TEMPLATES, Thing, describe, picture_key, scenes
from ts_lightning.pipelines.scout import Scout, from_notation, from_pixels, queries
from ts_lightning.pipelines.scout_checks import Rejected, check_negative, check_positive, same_question
from ts_lightning.pipelines.shard_work import work

REAL = Path(__file__).parents[4] / "shared/real/coco_mini"


def test_cogvlm_writes_three_digits() -> None:
    codec = get_codec("cogvlm")
    assert codec.format([(0.0, 0.05, 0.5, 1.0)]) == "[[000,050,500,999]]"
    assert codec.parse("[[000,050,500,999]]")[0].boxes[0] == pytest.approx((0.0, 0.05, 0.5, 1.0), abs=1e-3)
    assert codec.parse("[[010,020,100,200;300,400,500,600]]")[0].boxes[1] == pytest.approx(
        (0.3, 0.4, 0.5, 0.6), abs=1e-3
    )


def test_descriptions_have_pixel_boxes() -> None:
    text = describe(scene())
    assert text == "dog [8, 12, 40, 48], cat [64, 54, 96, 114], car [112, 6, 152, 36]. Picture 0."


def test_queries_in_both_forms() -> None:
    text = (
        "Query 1: what is it? [Answer]: dog\nQuery 2: Where? [Answer]: left.\n\n[Query 3]: not a question [Answer]: x"
    )
    assert queries(text) == [("What is it?", "dog"), ("Where?", "left.")]
    packed = json.dumps({"queries": [{"question": "Who?", "answer": "man"}]})
    assert queries(f"Sure: {packed}") == [("Who?", "man")]
    assert queries("I cannot say.") == queries('{"queries": 3}') == queries('{"a":' * 9999 + "}") == []


def test_boxes_become_numbers_before_any_check() -> None:
    text, boxes = from_notation("the dog [[000,100,500,999]] and [[1,2,30,40;50,60,70,80]].", "cogvlm", (100, 50))
    assert text == "the dog {region:0} and {region:1}, {region:2}."
    assert boxes[0] == pytest.approx((0.0, 0.1, 0.5, 1.0), abs=1e-3)
    text, boxes = from_pixels("a man [10, 5, 60, 25] on [[0, 0, 50, 50], [50, 0, 100, 50]]", (100, 50))
    assert text == "a man {region:0} on {region:1}, {region:2}"
    assert boxes == [(0.1, 0.1, 0.6, 0.5), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    for bad in ("[[500,100,000,999]]", "[[1,2,3,1200]]"):
        with pytest.raises(Rejected):
            from_notation(bad, "cogvlm", (100, 50))
    for bad in ("[10, 5, 60]", "[10, 5, 160, 25]", "[60, 5, 10, 25]"):
        with pytest.raises(Rejected):
            from_pixels(bad, (100, 50))


STEPS = "Step 1: Find the dog {region:0}. Step 2: The dog {region:0} is brown. Step 3: So the answer is brown."
DOG = (0.05, 0.1, 0.25, 0.4)


def test_what_a_positive_answer_must_hold() -> None:
    draft = check_positive(scene(), "What color is the dog?", "brown", (STEPS, [DOG]), None)
    assert (draft.answer, draft.steps) == ("brown", STEPS)
    wrong = {
        "answer that is no numbered steps": ("The dog {region:0} is brown.", [DOG]),
        "no box in the steps": (STEPS.replace(" {region:0}", ""), []),
        "no final answer": (STEPS.replace("So the answer is", "It is"), [DOG]),
        "final answer differs from the question's": (STEPS.replace("brown", "black"), [DOG]),
        "box that agrees with no annotation": (STEPS, [(0.5, 0.0, 0.6, 0.1)]),
        "final answer that no step speaks of": (STEPS.replace("is brown. Step 3", "is here. Step 3"), [DOG]),
    }
    for reason, written in wrong.items():
        with pytest.raises(Rejected, match=reason):
            check_positive(scene(), "What color is the dog?", "brown", written, None)
    loose = (0.5, 0.0, 0.6, 0.1)
    draft = check_positive(scene(), "What color?", "brown", (STEPS, [loose]), lambda: (STEPS, [(0.5, 0.0, 0.6, 0.12)]))
    assert draft.boxes == [loose]
    with pytest.raises(Rejected, match="and no second answer"):
        check_positive(scene(), "What color?", "brown", (STEPS, [loose]), lambda: (STEPS, [DOG]))


def test_negatives_are_really_absent() -> None:
    def check(thing: str, boxes: list) -> object:
        parts = [
            f"Find the {thing}",
            f"There is a dog {{region:0}} in the image, not a {thing}",
            "This question is invalid",
        ]
        return check_negative(scene(), f"Where is the {thing}?", "Step 1: ...", boxes, parts)

    assert check("horse", [DOG]).negative
    for thing, boxes in (("dogs", [DOG]), ("horse", []), ("horse", [(0.5, 0.0, 0.6, 0.1)])):
        with pytest.raises(Rejected, match="negative"):
            check(thing, boxes)
    assert same_question("Where is the dog?", "where are dogs")
    assert not same_question("What is left of the dog?", "What is the dog left of?")


def test_the_papers_own_samples_pass() -> None:
    """Figure A.6 has both of its queries on one line; in the third row of Figure A.1 a pool is a swimming pool."""
    a6 = (
        "[Query 1]: What is the woman wearing? [Answer]: Find the woman. There is a dog [8, 12, 40, 48] in the image, "
        "not a woman. The question is invalid. [Query 2]: Where is the aeroplane? [Answer]: Find the aeroplane in the "
        "image. There is a car [112, 6, 152, 36] in the image, not an aeroplane. This question is invalid."
    )
    asked = queries(a6)
    assert [query.question for query in asked] == ["What is the woman wearing?", "Where is the aeroplane?"]
    assert [query.answer.split(".")[-2] for query in asked] == [" The question is invalid", " This question is invalid"]
    child, pool = (0.6, 0.32, 0.72, 0.52), (0.0, 0.81, 1.0, 1.0)
    steps = (
        "Step 1: Find the child {region:0}. Step 2: Check the object that it jumping into, got the object {region:1}. "
        "Step 3: The child {region:0} jumps into the pool. Step 4: So the answer is swimming pool {region:1}."
    )
    known = replace(scene(), things=[Thing("child", child), Thing("pool", pool)])
    draft = check_positive(known, "Where does the child jump into?", "swimming pool", (steps, [child, pool]), None)
    assert draft.answer == "swimming pool"


@pytest.mark.parametrize(
    ("absent", "there", "caption", "kept"),
    [
        ("sofa", "couch", "", False),
        ("animal", "dog", "", False),
        ("person", "dog", "A man walks it", False),
        ("lady", "woman", "", False),
        ("woman", "man", "", True),  # the paper's Figure A.6
        ("cat", "dog", "A man walks it", True),
    ],
)
def test_what_is_there_by_another_name_is_not_absent(absent: str, there: str, caption: str, kept: bool) -> None:
    known = replace(scene(), things=[Thing(there, DOG)], captions=[caption])
    parts = [f"Find the {absent}", f"There is a {there} {{region:0}} in the image, not it", "This question is invalid"]
    with nullcontext() if kept else pytest.raises(Rejected, match="the thing is in the picture"):
        check_negative(known, f"Where is the {absent}?", ". ".join(parts), [DOG], parts)


def test_offline_scout_is_right_by_the_rule_and_the_rule_finds_errors() -> None:
    made = scout(negatives=0.2)
    known = {one.image.name: one for one in scenes(map(detection, range(30)))}
    samples = [sample for one in known.values() for sample in made(one)]
    for one in samples:
        one.validate()
        assert verdict(one, known[one.images[0].name]).verdict == "right"
    kinds = Counter(one.subtask for one in samples)
    assert 0.15 < kinds["negative"] / len(samples) < 0.25
    assert len({(one.images[0].name, one.meta["question"]) for one in samples}) == len(samples)
    again = scout(negatives=0.2)
    assert [one for scene in known.values() for one in again(scene)] == samples
    sample = next(one for one in samples if "to the left of" in one.turns[1].text)
    turned = sample.turns[1].text.replace("to the left of", "to the right of")
    bad = replace(sample, turns=[sample.turns[0], Turn("assistant", turned)])
    assert verdict(bad, known[sample.images[0].name]).wrong[0].startswith("relation is not so")
    moved = replace(sample, regions=[replace(region, box=(0.0, 0.0, 0.01, 0.01)) for region in sample.regions])
    assert "(IoU 0.00)" in verdict(moved, known[sample.images[0].name]).wrong[0]
    seen = {picture_key(name, one.data): one for name, one in known.items()}
    figures, shown = report([*samples, bad, moved], seen, {"x": 2}, shown=10)
    assert figures["accepted"] == {
        "held_against_annotations": len(samples) + 2,
        "right": len(samples),
        "unchecked": 0,
        "wrong": 2,
        "share_right": round(len(samples) / (len(samples) + 2), 4),
    }
    assert (figures["table_a1"]["images"], figures["table_a1"]["qa_pairs"]) == (30, len(samples) + 2)
    assert len(shown) == 10
    assert marked({"a": True, "b": False, "c": True, "d": True}) == {"marked": 4, "right": 3, "accuracy": 0.75}


def test_a_report_elsewhere_counts_what_the_shards_folder_left_out(tmp_path: Path) -> None:
    path, made = input_shard(tmp_path / "in", 2), tmp_path / "made"
    assert main(["data", "generate", "scout", str(path), "--out", str(made)]) == 0
    (note,) = made.glob("scout-*.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"dropped": {"a reason": 3}}))
    assert main(["data", "report", f"{made}/scout-*.tar", "--out", str(tmp_path / "elsewhere")]) == 0
    assert json.loads((tmp_path / "elsewhere/report.json").read_text())["dropped"] == {"a reason": 3}


def test_the_caption_baseline_never_shows_the_picture() -> None:
    backend = OfflineChat("cogvlm", 6, KINDS)
    samples = list(Scout(backend, None, most=6, negatives=0.0)(scene()))
    assert len(samples) == 6
    assert samples[0].tags == ["cot", "caption_only"]
    assert samples[0].meta["generator"] == {"questions": "offline-0", "answers": "caption"}


def test_verbs_and_report(tmp_path, capsys) -> None:
    path = input_shard(tmp_path / "in", 20)
    for verb, name in (("scout", "scout"), ("gic", "gic"), ("region-chat", "chat")):
        assert main(["data", "generate", verb, str(path), "--out", str(tmp_path / name)]) == 0
    captions = read(f"{tmp_path}/gic/*.tar")
    assert len(captions) == 20
    assert captions[0].turns[1].text == "There is a dog {region:0}, a cat {region:1} and a car {region:2}."
    chats = read(f"{tmp_path}/chat/*.tar")
    assert {one.subtask for one in chats} == {"region_chat", "image_chat"}
    assert all(("{region:0}" in one.turns[0].text) == (one.subtask == "region_chat") for one in chats)
    (tmp_path / "marks.json").write_text('{"a": true, "b": false}')
    arguments = [
        f"{tmp_path}/scout/*.tar",
        "--annotations",
        str(path),
        "--out",
        str(tmp_path / "scout"),
        "--shown",
        "5",
    ]
    assert main(["data", "report", *arguments, "--marks", str(tmp_path / "marks.json")]) == 0
    figures = json.loads((tmp_path / "scout/report.json").read_text())
    assert (figures["accepted"]["share_right"], figures["by_hand"]["accuracy"]) == (1.0, 0.5)
    assert (tmp_path / "scout/report.html").read_text().count("<figure>") == 5
    assert "templates (sha256" in (tmp_path / "scout/README.md").read_text()
    words = [str(path), "--out", str(tmp_path / "x"), "--questions", "nothing:x"]
    assert main(["data", "generate", "scout", *words]) == 2
    assert "backend: seen 'nothing:x', expected offline" in capsys.readouterr().err


def test_edited_templates_are_used_and_hashed(tmp_path, capsys) -> None:
    path = input_shard(tmp_path / "in", 1)
    shutil.copytree(TEMPLATES, tmp_path / "mine")
    hashes = set()
    for number, words in enumerate(([], ["--templates", str(tmp_path / "mine")])):
        for verb in ("scout", "gic", "region-chat"):
            out = ["--out", str(tmp_path / f"out{number}")]
            assert main(["data", "generate", verb, str(path), *out, *words]) == 0
        hashes |= {one.meta["templates"] for one in read(f"{tmp_path}/out{number}/*.tar")}
        for file in (tmp_path / "mine").glob("*.txt"):
            file.write_text(f"{file.read_text()}\nBe brief.")
    assert len(hashes) == 6
    (tmp_path / "mine/gic.txt").unlink()
    words = [str(path), "--out", str(tmp_path), "--templates", str(tmp_path / "mine")]
    assert main(["data", "generate", "gic", *words]) == 2
    assert f"templates: seen no file {tmp_path}/mine/gic.txt, expected an edited copy" in capsys.readouterr().err


def test_dialogues_and_names_before_boxes() -> None:
    text = "User: What is {region}?\nAssistant: A dog.\nUser: Where?\nAssistant: On the left."
    assert dialogue(text, False) == [("What is {region:0}?", "A dog."), ("Where?", "On the left.")]
    assert dialogue(text, True) is None
    assert dialogue("User: What is {region}?\nAssistant: At [1, 2, 3, 4].", False) is None
    assert dialogue("A dog.", False) is None
    assert names_before("A small dog {region:0} and two cats {region:1}, {region:2}.") == [
        "small dog",
        "two cats",
        "two cats",
    ]


def test_a_turn_of_a_dialogue_goes_on_over_several_lines() -> None:
    text = "```\nUser: What is\nat {region}?\nAssistant: Two things:\n- a dog\n\n- a ball\nUser: Why?\nAssistant: Fun."
    text += "\n```"
    assert dialogue(text, False) == [("What is\nat {region:0}?", "Two things:\n- a dog\n\n- a ball"), ("Why?", "Fun.")]
    assert dialogue("User: What is {region}?\nAssistant:\n", False) is None


@pytest.mark.parametrize(
    "text",
    [
        "{}\n\nLet me know if you want another dialogue!",
        "```\n{}\n```\nHope this helps.",
        "Here it is:\n```text\n{}\n```\n\nAnd one more:\n```\n{}\n```",
        "Sure!\n\n{}\n \n---\n- Shall I go on?",
    ],
)
def test_what_a_model_says_around_a_dialogue_is_no_part_of_it(text: str) -> None:
    said = "User: What is {region}?\nAssistant: Two things:\n\n- a dog\n\n- a ball"
    pairs = [("What is {region:0}?", "Two things:\n\n- a dog\n\n- a ball")]
    assert dialogue(text.replace("{}", said), False) == pairs


def test_both_prompts_ask_for_a_dialogue_alone() -> None:
    for one in ("region", "image"):
        assert "with nothing before or after the dialogue:" in (TEMPLATES / f"{one}_chat.txt").read_text()


def test_a_dialogue_about_the_whole_picture_points_at_nothing() -> None:
    chat = Says("User: What is it?\nAssistant: A dog.\nUser: And {region}?\nAssistant: A cat.", codec="cogvlm")
    maker = RegionChat(chat, most=1, image_level=1.0)
    assert list(maker(scene())) == []
    assert maker.dropped.lines() == ["left out: 1 dialogue in another form than asked for (p000000-chat00)"]
    assert "{region}" not in chat.asked[0]
    maker = RegionChat(Says("User: What is {region}?\nAssistant: A dog."), most=1, image_level=0.0)
    assert [one.subtask for one in maker(scene())] == ["region_chat"]
    assert "The user says {region} where they point" in maker.dialogues.asked[0]


@pytest.mark.parametrize(
    ("last", "kept"), [("The dog {0} is on the left of the cat {1}.", True), ("The car {0} is brown.", False)]
)
def test_a_box_that_a_caption_names_twice_is_one_region_by_its_first_name(last: str, kept: bool) -> None:
    boxes = [get_codec("cogvlm").format([thing.box]) for thing in scene().things]
    text = f"A brown dog {boxes[0]}, a cat {boxes[1]}. {last.format(*boxes)} There is a car {boxes[2]}."
    maker = Captions(Says(text, codec="cogvlm"))
    made = list(maker(scene()))
    assert bool(made) == kept
    if kept:
        made[0].validate()
        assert [region.phrase for region in made[0].regions] == ["brown dog", "cat", "car"]
        assert made[0].turns[1].text.count("{region:0}") == 2
    else:
        assert dict(maker.dropped) == {"caption with a box that agrees with no annotation": 1}


def test_an_answer_without_a_valid_record_is_named_and_stops_nothing(tmp_path) -> None:
    box, dropped = "[[050,100,250,399]]", Dropped()
    chat = Says(f"A half \ud83d dog {box}.", *[f"A {name} {box}." for name in KINDS[1:4]], codec="cogvlm")
    words = {"settings": {}, "dropped": dropped, "usage": Usage(), "workers": 1}
    result = work(scenes, input_shard(tmp_path / "in", 4), tmp_path, "gic", Captions(chat, dropped=dropped), **words)
    assert result["dropped"] == {"answers of which no valid record can be made": 1}
    assert "no valid record can be made (:p000000-gic: field texts: seen " in dropped.lines()[0]
    assert [one.key for one in read(f"{tmp_path}/gic-*.tar")] == [f"p00000{i}-gic" for i in (1, 2, 3)]


def test_the_words_of_a_request_stay() -> None:  # kept answers are found by them
    system = {"role": "system", "content": "steps: answer in the form that is asked for."}
    assert messages("steps", "Where?") == [system, {"role": "user", "content": "Where?"}]


class Says(Chat):
    """A backend with one answer."""

    name = "says"

    def __init__(self, *texts: str, codec: str = "qwen2_vl") -> None:
        self.texts, self.codec, self.asked = list(texts), codec, []

    def chat(self, messages, images=(), schema=None, attempt=0) -> str:
        self.asked.append(messages[-1]["content"])
        return self.texts.pop(0)


def multi() -> Sample:
    one = small_sample(1, images=2)
    one.regions = [SampleRegion(image=1, box=(0.1, 0.2, 0.5, 0.6))]
    one.turns, one.answer = (
        [Turn("user", "<image><image>Where is it?"), Turn("assistant", "{region:0}")],
        Answer(regions=[0]),
    )
    return one


@pytest.mark.parametrize("style", ["trajectory", "answer"])
def test_an_answer_in_no_named_picture_makes_no_trajectory(style: str) -> None:
    maker = Trajectories(Says("never asked"), Says(), style=style)
    assert list(maker(replace(multi(), meta={"image": None}))) == []
    assert dict(maker.dropped) == {"records whose answer names no picture (its place is a guess)": 1}


def test_trajectories_in_three_stages() -> None:
    thought = "<think>Image 1 shows [a tree]. So [the dog] in image 2 it is.</think><answer>[the dog]</answer>"
    tree = "Image 1: <|box_start|>(100,100),(300,300)<|box_end|>"
    dog = "Image 2: <|box_start|>(100,200),(500,600)<|box_end|>"
    (made,) = Trajectories(Says(thought), Says(tree, dog))(multi())
    made.validate()
    expected = "<think>Image 1 shows {region:1}. So {region:0} in image 2 it is.</think><answer>{region:0}</answer>"
    assert made.turns[1].text == expected
    assert [(r.image, r.phrase) for r in made.regions] == [(1, "the dog"), (0, "a tree")]
    assert (made.meta["image"], made.tags) == (1, ["trajectory"])
    dashed = Says(tree.replace("Image 1", "Image-1"), dog.replace("Image 2", "image #2"))
    assert [one.turns[1].text for one in Trajectories(Says(thought), dashed)(multi())] == [expected]
    bad = {
        "another form": (Says("no tags"), Says()),
        "placed nowhere": (Says(thought), Says("none")),
        "does not exist": (Says(thought), Says(tree.replace("Image 1", "Image 7"))),
        "never reaches the true object": (Says(thought), Says(tree, dog.replace("Image 2", "Image 1"))),
    }
    for reason, (think, place) in bad.items():
        maker = Trajectories(think, place)
        assert list(maker(multi())) == []
        assert reason in next(iter(maker.dropped))
    offline = OfflineChat()
    (made,) = Trajectories(offline, offline)(multi())
    assert made.turns[1].text.endswith("is in the second image: {region:0}.</think><answer>{region:0}</answer>")
    (made,) = Trajectories(offline, offline, style="answer")(multi())
    assert made.turns[1].text == "<answer>{region:0}</answer>"


@pytest.mark.parametrize(
    "rewritten",
    [
        "<think>Of <image> 2 it is {region:7}{object:0}.</think>",
        "<think>Of  2 it is {object:0}.</think><answer>It is {object:0}.</answer>",
    ],
)
def test_a_rewritten_thought_is_taken_without_placeholders_and_without_its_answer(rewritten: str) -> None:
    thought, dog = (
        "<think>It is [the dog].</think><answer>[the dog]</answer>",
        "Image 2: <|box_start|>(100,200),(500,600)<|box_end|>",
    )
    rewrite = Says(rewritten)
    (made,) = Trajectories(Says(thought), Says(dog), rewrite)(multi())
    made.validate()
    assert made.turns[1].text == "<think>Of  2 it is {region:0}.</think><answer>{region:0}</answer>"
    assert "<answer>" not in rewrite.asked[0]


def test_the_offline_thought_counts_beyond_ten_pictures() -> None:
    one = small_sample(1, images=12)
    one.regions, one.answer = [SampleRegion(image=11, box=(0.1, 0.2, 0.5, 0.6))], Answer(regions=[0])
    (made,) = Trajectories(OfflineChat(), OfflineChat())(one)
    assert made.turns[1].text.endswith("is in image 12: {region:0}.</think><answer>{region:0}</answer>")


@pytest.mark.parametrize("mixed", [(Says(), OfflineChat()), (OfflineChat(), Says())])
def test_a_model_and_the_annotations_do_not_reason_about_the_same_objects(mixed: tuple) -> None:
    with pytest.raises(ValueError, match=r"^mirg: seen reason .* beside locate .*, expected models for both, or"):
        Trajectories(*mixed)
    Trajectories(*mixed, style="answer")


@pytest.mark.parametrize("style", ["trajectory", "answer"])
def test_the_first_question_is_never_put_to_the_last_answer(style: str) -> None:
    one = multi()
    one.turns[:0] = [Turn("user", one.turns[0].text), Turn("assistant", "There.")]
    one.turns[2] = Turn("user", "And the cat?")
    one.validate()
    maker = Trajectories(OfflineChat(), OfflineChat(), style=style)
    assert list(maker(one)) == []
    assert maker.dropped.lines() == [f"left out: 1 conversations of several questions ({one.where})"]


@pytest.mark.parametrize(
    ("name", "box", "whole"),
    [
        ("cogvlm", "[[100,200,500,600]]", "[[000,000,999,999]]"),
        ("qwen2_5_vl", '{"bbox_2d": [4, 6, 20, 18]}', '{"bbox_2d": [0, 0, 40, 30]}'),  # pixels of that picture
    ],
)
def test_objects_are_placed_in_the_notation_of_their_model(name: str, box: str, whole: str) -> None:
    asked = []

    class Places(Says):
        def chat(self, messages, images=(), schema=None, attempt=0) -> str:
            asked.append(messages[-1]["content"])
            return f"Image 2: {box}"

    one = multi()
    one.images = [replace(one.images[0], width=40, height=30), replace(one.images[1], width=40, height=30)]
    (made,) = Trajectories(Says("<think>It is [the dog].</think><answer>[the dog]</answer>"), Places(codec=name))(one)
    assert made.turns[1].text == "<think>It is {region:0}.</think><answer>{region:0}</answer>"
    shape = get_codec(name).format([(0.1, 0.2, 0.8, 0.9)], (40, 30))
    assert f"as: Image N: {shape}. The whole of image 1 would be Image 1: {whole}." in asked[0]


def test_reasoning_alone_is_a_trajectory_without_boxes_in_its_thought() -> None:
    thought = "<think>Image 1 shows [a tree]. So [the dog] in image 2 it is.</think><answer>[the dog]</answer>"
    tree, dog = (f"Image {i}: <|box_start|>(100,{y}00),(500,600)<|box_end|>" for i, y in ((1, 1), (2, 2)))
    (full,) = Trajectories(Says(thought), Says(tree, dog))(multi())
    maker = Trajectories(Says(), Says(), style="reasoning")
    (made,) = maker(full)
    made.validate()
    expected = "<think>Image 1 shows a tree. So the dog in image 2 it is.</think><answer>{region:0}</answer>"
    assert made.turns[1].text == expected
    assert (made.tags, made.regions, made.answer) == (["reasoning"], full.regions, full.answer)
    assert made.meta["generator"] == full.meta["generator"] == {"reason": "says", "locate": "says"}
    assert list(maker(multi())) == []
    assert "are no trajectories" in next(iter(maker.dropped))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no COCO photos in {REAL}")
def test_scout_from_real_photos() -> None:
    read = (coco.read(REAL, split=split, tasks=("detection",)) for split in ("train2017", "val2017"))
    known = {one.image.name: one for samples in read for one in scenes(samples)}
    assert len(known) == 159
    vocabulary = sorted({thing.name for one in known.values() for thing in one.things})
    backend = OfflineChat("cogvlm", 64, vocabulary)
    made = Scout(backend, backend, most=64)
    samples = [sample for one in known.values() for sample in made(one)]
    figures, _ = report(samples, {picture_key(name, one.data): one for name, one in known.items()}, made.dropped)
    assert len({(one.images[0].name, one.meta["question"]) for one in samples}) == len(samples) >= 1000
    assert 0.05 <= figures["negative_share"] <= 0.10
    assert figures["accepted"]["share_right"] >= 0.95
    assert figures["question_forms"] >= 40
    for one in samples:
        if one.subtask == "scout":
            assert all(max(iou(r.box, t.box) for t in known[one.images[0].name].things) >= 0.5 for r in one.regions)
