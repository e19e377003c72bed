"""Converters of question-answering files on small files in the public layouts."""

import base64
import json
from pathlib import Path

import pytest

from tests.unit.data_samples import photo, picture, put
from ts_lightning.pipelines.converters import (
    docvqa,
    gqa,
    llava_bench,
    mmbench,
    mme,
    mmvet,
    ocr_vqa,
    pointqa,
    pope,
    scienceqa,
    st_vqa,
    textvqa,
    vizwiz_grounding,
    vqa_rad,
    vqav2,
)
from ts_lightning.pipelines.converters.source import Dropped, Pictures


def asked(sample: object) -> str:
    return sample.turns[0].text.removeprefix("<image>\n")


def test_gqa(tmp_path: Path) -> None:
    row = {
        "imageId": "n1",
        "question": "Is it  red?",
        "answer": "yes",
        "fullAnswer": "Yes.",
        "types": {"detailed": "c"},
    }
    put(tmp_path / "testdev_balanced_questions.json", {"201": row, "202": row | {"imageId": "n2"}})
    photo(tmp_path / "images/n1.jpg")
    dropped = Dropped()
    (one,) = gqa.read(tmp_path, Pictures(dropped=dropped))
    assert (asked(one), one.answer.text, one.meta["question_id"]) == ("Is it  red?", "yes", "201")
    assert dropped.names == {"pictures that are not in the folder": ["n2.jpg"]}


def test_vqav2_keeps_ten_answers_and_the_common_one(tmp_path: Path) -> None:
    question = {"question_id": 42000, "image_id": 42, "question": "What?"}
    answers = [
        {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(["cat"] * 4 + ["dog"] * 6)
    ]
    note = {
        "question_id": 42000,
        "image_id": 42,
        "multiple_choice_answer": "dog",
        "answers": answers,
        "answer_type": "other",
    }
    stem = "mscoco_val2014"
    put(tmp_path / f"v2_OpenEnded_{stem}_questions.json", {"data_subtype": "val2014", "questions": [question]})
    put(tmp_path / f"v2_{stem}_annotations.json", {"annotations": [note]})
    photo(tmp_path / "val2014/COCO_val2014_000000000042.jpg")
    (one,) = vqav2.read(tmp_path)
    assert (one.answer.text, one.turns[1].text, one.answers) == ("dog", "dog", ["cat"] * 4 + ["dog"] * 6)
    one.validate()


def test_textvqa_st_vqa_docvqa_ocr_vqa(tmp_path: Path) -> None:
    row = {"question": "what brand?", "image_id": "0054", "question_id": 7, "answers": ["a", "nokia", "nokia"]}
    put(tmp_path / "t/TextVQA_0.5.1_val.json", {"data": [row | {"image_width": 999, "image_height": 9}]})
    photo(tmp_path / "t/train_images/0054.jpg")
    (one,) = textvqa.read(tmp_path / "t", template="mgvlid/text_vqa")
    assert (one.answer.text, one.answers) == ("nokia", ["nokia", "nokia", "a"])
    assert "what brand?" in asked(one)
    assert asked(one).lower().rstrip(".").endswith("in short")
    put(
        tmp_path / "t/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "0054", "ocr_tokens": ["NOKIA", "8"]}]}
    )
    (one,) = textvqa.read(tmp_path / "t", template="single_word", ocr=True)
    lines = ["what brand?", "Reference OCR token: NOKIA, 8", "Answer the question using a single word or phrase."]
    assert asked(one) == "\n".join(lines)
    row = {
        "question_id": 3,
        "question": "Where?",
        "file_path": "coco-text/x.jpg",
        "answers": ["here"],
        "dataset": "coco-text",
    }
    put(tmp_path / "s/train_task_3.json", {"data": [row]})
    photo(tmp_path / "s/coco-text/x.jpg")
    (one,) = st_vqa.read(tmp_path / "s")
    assert (asked(one), one.answers, one.meta["dataset"]) == ("Where?", ["here"], "coco-text")
    row = {
        "questionId": 337,
        "question": "What date?",
        "image": "documents/p_1.png",
        "docId": 2,
        "answers": ["1/8/93", "1993"],
    }
    put(tmp_path / "d/val_v1.0_withQT.json", {"dataset_name": "docvqa", "data": [row]})
    photo(tmp_path / "d/documents/p_1.png")
    (one,) = docvqa.read(tmp_path / "d")
    assert (one.images[0].name, one.answers, one.meta["docId"]) == ("p_1.png", ["1/8/93", "1993"], 2)
    book = {
        "imageURL": "http://x/a.jpg",
        "split": 3,
        "questions": ["Who?", "What?"],
        "answers": ["Me", "Art"],
        "genre": "A",
    }
    put(tmp_path / "o/dataset.json", {"0761183272": book, "1": book | {"split": 1}})
    photo(tmp_path / "o/images/0761183272.jpg")
    assert [s.answer.text for s in ocr_vqa.read(tmp_path / "o", split="test")] == ["Me", "Art"]


def test_scienceqa_takes_problems_with_a_picture(tmp_path: Path) -> None:
    row = {
        "question": "Which?",
        "choices": ["rock", "tree"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "test",
    }
    put(tmp_path / "problems.json", {"5": row, "6": row | {"image": None}, "7": row | {"split": "val"}})
    put(tmp_path / "pid_splits.json", {"test": ["5", "6"], "val": ["7"]})
    photo(tmp_path / "test/5/image.png")
    dropped = Dropped()
    (one,) = scienceqa.read(tmp_path, Pictures(dropped=dropped))
    assert asked(one) == "Look.\nWhich?\nA. rock\nB. tree"
    (formed,) = scienceqa.read(tmp_path, template="option_letter")
    letter = "Answer with the option's letter from the given choices directly."
    assert asked(formed) == f"Context: Look.\nWhich?\nA. rock\nB. tree\n{letter}"
    assert (one.answer.text, one.choices, one.images[0].name) == ("tree", ["rock", "tree"], "5_image.png")
    assert dropped == {"problems without a picture": 1}


def test_mme_has_two_questions_a_picture(tmp_path: Path) -> None:
    put(tmp_path / "existence/0001.txt", "Is there a dog?\tYes\nIs there a cat?\tNo\n")
    photo(tmp_path / "existence/0001.jpg")
    put(tmp_path / "posters/questions_answers_YN/tt.txt", "Is it A?\tNo\n")
    photo(tmp_path / "posters/images/tt.jpg")
    put(tmp_path / "bad/x.txt", "no tab\n")
    dropped = Dropped()
    one, two, three = mme.read(tmp_path, Pictures(dropped=dropped))
    assert [s.answer.text for s in (one, two, three)] == ["Yes", "No", "No"]
    assert two.meta == {"category": "existence", "image_id": "0001"}
    assert dropped.total() == 1
    put(tmp_path / "existence/0001.txt", "Is there a dog?  Please answer yes or no.\tYes\nIs it?\tNo\n")
    assert asked(next(mme.read(tmp_path))) == "Is there a dog?  Please answer yes or no."
    formed = next(mme.read(tmp_path, template="single_word"))
    assert asked(formed) == "Is there a dog?\nAnswer the question using a single word or phrase."


def test_mmbench_table_with_pictures_inside(tmp_path: Path) -> None:
    packed = base64.b64encode(picture(1, (100, 50))).decode()
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsplit"
    rows = [f'7\t"Which\tone?"\tnan\tx\ty\t\t\tB\tlogic\t{packed}\tdev', "1000007\tWhich\t\ty\tx\t\t\tA\tlogic\t7\tdev"]
    file = put(tmp_path / "mmbench_dev.tsv", "\n".join([header, *rows, "9\tq\t\tx\ty\t\t\tA\tl\t!!\tdev"]) + "\n")
    dropped = Dropped()
    one, two = mmbench.read(file, Pictures(dropped=dropped))
    assert asked(one) == "Which\tone?\nA. x\nB. y"
    assert (one.answer.text, two.answer.text, two.meta["question_id"]) == ("y", "y", 7)
    assert (one.images[0].width, two.image_bytes) == (100, one.image_bytes)
    assert dropped.names == {"pictures that can't be decoded": ["row 9"]}
    with pytest.raises(ValueError, match="seen no column 'A', expected MMBench's rows"):
        list(mmbench.read(put(tmp_path / "x.tsv", "index\tquestion\n")))


def test_mmvet_llava_bench_vqa_rad_pope(tmp_path: Path) -> None:
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    put(tmp_path / "m/mm-vet.json", {"v1_0": row})
    (one,) = mmvet.read(tmp_path / "m")
    assert (one.answer.text, one.meta["capability"], one.image_bytes) == ("-1<AND>-5", ["ocr", "math"], [])
    put(tmp_path / "l/questions.jsonl", '{"question_id": 0, "image": "001.jpg", "text": "Who?", "category": "conv"}\n')
    put(tmp_path / "l/answers_gpt4.jsonl", '{"question_id": 0, "text": "Me."}\n')
    put(tmp_path / "l/context.jsonl", '{"id": "001", "image": "001.jpg", "caption": "A lake."}\n')
    (one,) = llava_bench.read(tmp_path / "l")
    assert (asked(one), one.answer.text, one.meta["caption"]) == ("Who?", "Me.", "A lake.")
    row = {
        "qid": 1,
        "phrase_type": "test_freeform",
        "image_name": "s.jpg",
        "question": "Where?",
        "answer": 3,
        "answer_type": "OPEN",
    }
    put(tmp_path / "r/VQA_RAD Dataset Public.json", [row, row | {"qid": 2, "phrase_type": "para"}])
    assert [(s.answer.text, s.meta["split"]) for s in vqa_rad.read(tmp_path / "r")] == [("3", "test"), ("3", "train")]
    assert len(list(vqa_rad.read(tmp_path / "r", split="test"))) == 1
    assert [s.task for s in vqa_rad.read(tmp_path / "r", task="vqa_rad")] == ["vqa_rad", "vqa_rad"]
    line = {"question_id": 1, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a cup?", "label": "no"}
    (one,) = pope.read(put(tmp_path / "coco_pope_popular.json", json.dumps(line) + "\n"))
    assert (asked(one), one.answer.text, one.subtask) == ("Is there a cup?", "no", "yes_no")


def test_vizwiz_grounding_and_pointqa(tmp_path: Path) -> None:
    outline = [{"x": 10, "y": 5}, {"x": 60, "y": 5}, {"x": 60, "y": 25}]
    row = {
        "question": "What is it?",
        "answers": ["tea", "tea box"],
        "most_common_answer": "tea",
        "answer_grounding": outline,
    }
    put(
        tmp_path / "v/val_grounding.json",
        {"v.jpg": row | {"width": 100, "height": 50}, "w.jpg": row | {"answer_grounding": []}},
    )
    dropped = Dropped()
    (one,) = vizwiz_grounding.read(tmp_path / "v", Pictures(dropped=dropped))
    assert one.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert (one.answers, one.tags, dropped.total()) == (["tea", "tea box"], ["region", "box", "contains"], 1)
    (one,) = (s for s in vizwiz_grounding.read(tmp_path / "v", region="polygon"))
    assert one.regions[0].polygon == [(0.1, 0.1), (0.6, 0.1), (0.6, 0.5)]
    row = {
        "id": 8,
        "point": {"x": 25, "y": 25},
        "bbox": {"x": 10, "y": 5, "w": 50, "h": 20},
        "ans": "3",
        "obj_type": "dogs",
    }
    questions = {"obj_question": "How many dogs?", "general_question": "How many of these are there?"}
    put(tmp_path / "p/looktwiceqa_dataset.json", {"8": [row | questions], "9": [row | questions]})
    put(tmp_path / "p/looktwiceqa_test_imgs.json", ["8"])
    photo(tmp_path / "p/VG_100K/8.jpg")
    (one,) = pointqa.read(tmp_path / "p", split="test")
    assert one.regions[0].points == [(0.25, 0.5)]
    assert (one.answer.text, one.subtask) == ("3", "pointqa_point")
    assert "How many of these are there?" in asked(one)
    (one,) = pointqa.read(tmp_path / "p", split="test", region="box", question="obj_question")
    assert one.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    line = {
        "file_path": "8.jpg",
        "point": [25, 25],
        "bbox": [10, 5, 60, 25],
        "general_question": "How many?",
        "answer": "2",
    }
    file = put(tmp_path / "pointQA_twice_test.jsonl", json.dumps(line | {"img_w": 100, "img_h": 50}) + "\n")
    (one,) = pointqa.read(file, region="box")
    assert one.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
