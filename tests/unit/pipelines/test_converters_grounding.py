"""Converters of boxes and phrases on small files in the public layouts; numbers worked out by hand."""

import json
import pickle
import re
from pathlib import Path

import pytest

from tests.unit.data_samples import photo, put
from ts_lightning.pipelines.converters import (
    art,
    coco_text,
    flickr30k,
    hiertext,
    llava,
    lvis,
    mgrounding,
    ms_swift,
    objects365,
    refcoco,
    shikra_cot,
    visual_genome,
    voc,
)
from ts_lightning.pipelines.converters.source import Dropped, Pictures

VOC = """<annotation><filename>000007.jpg</filename><size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>car</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>25</ymax></bndbox></object>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>8</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    put(tmp_path / "Annotations/000007.xml", VOC)
    put(tmp_path / "ImageSets/Main/test.txt", "000007\n")
    photo(tmp_path / "JPEGImages/000007.jpg")
    photo(tmp_path / "JPEGImages/000009.jpg")
    dropped = Dropped()
    samples = list(voc.read(tmp_path, Pictures(dropped=dropped)))
    assert [s.subtask for s in samples] == ["localization", "localization", "detection"]
    assert samples[0].regions[0].box == pytest.approx((0.1, 0.1, 0.6, 1.0))  # 11 - 1, 6 - 1, 60, 50 of 100 x 50
    assert samples[1].regions[0].box == pytest.approx((0.0, 0.0, 1.0, 0.5))
    assert samples[0].regions[0].area_px == 50 * 45
    assert samples[2].turns[1].text == "car {region:0}, dog {region:1}."
    assert +dropped == {"boxes that are no box inside the picture": 1, "pictures without annotations": 1}
    assert dropped.names["pictures without annotations"] == ["000009.jpg"]
    assert len(list(voc.read(tmp_path, split="test", difficult=False, tasks=("localization",)))) == 1
    assert len(list(voc.read(tmp_path, max_objects=2))) == 0
    put(tmp_path / "ImageSets/Main/test.txt", "000007\n000008\n")
    assert len(list(voc.read(tmp_path, Pictures(dropped=dropped), split="test"))) == 3
    assert dropped.names["names of the split without an annotation file"] == ["000008"]
    with pytest.raises(ValueError, match="boxes that are no box inside the picture, expected none"):
        list(voc.read(tmp_path, Pictures(dropped=Dropped(strict=True)), split="test"))
    put(tmp_path / "Annotations/000007.xml", VOC[:200])
    with pytest.raises(ValueError, match=r"000007\.xml: .*seen broken XML"):
        list(voc.read(tmp_path, Pictures(dropped=Dropped(strict=True)), split="test"))
    with pytest.raises(ValueError, match=r"seen no such folder, expected Annotations/\*.xml or \*.xml"):
        list(voc.read(tmp_path / "no"))


def test_lvis_and_objects365_share_cocos_layout(tmp_path: Path) -> None:
    note = {"id": 5, "image_id": 9, "category_id": 2, "bbox": [10, 5, 50, 20], "area": 900.0}
    categories = [{"id": 2, "name": "aerosol_can", "frequency": "c"}]
    image = {"id": 9, "width": 100, "height": 50}
    address = {"coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg", "neg_category_ids": []}
    lvis_file = {"images": [image | address], "annotations": [note], "categories": categories}
    put(tmp_path / "lvis/lvis_v1_val.json", lvis_file)
    photo(tmp_path / "lvis/val2017/000000000009.jpg")
    first, second = lvis.read(tmp_path / "lvis")
    assert (first.images[0].name, first.source) == ("000000000009.jpg", "lvis")
    assert first.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert second.meta["annotation_ids"] == [5]
    file = {"images": [image | {"file_name": "images/v1/patch8/objects365_v1_00000009.jpg"}]}
    crowd = note | {"id": 6, "iscrowd": 1, "isfake": 0, "isreflected": 0}
    put(tmp_path / "o/zhiyuan_objv2_val.json", file | {"annotations": [note, note, crowd], "categories": categories})
    photo(tmp_path / "o/val/patch8/objects365_v1_00000009.jpg")
    dropped = Dropped()
    (only,) = objects365.read(tmp_path / "o", Pictures(dropped=dropped))
    assert [r.iscrowd for r in only.regions] == [0, 1]
    assert only.answer.regions == [0]
    assert dropped["annotations whose id comes twice"] == 1


REFS = [
    {
        **{"ref_id": 1, "ann_id": 5, "image_id": 9, "category_id": 2, "split": "testA", "sent_ids": [3, 4]},
        "file_name": "COCO_train2014_000000000009_5.jpg",
        "sentences": [
            {"sent_id": 3, "sent": "left  man", "raw": "left  man", "tokens": ["left", "man"]},
            {"sent_id": 4, "sent": "guy {region:1}", "raw": "guy", "tokens": ["guy"]},
        ],
    }
]


def test_refcoco_refs_pickle_and_mdetr(tmp_path: Path) -> None:
    folder = tmp_path / "refcoco"
    image = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 100, "height": 50}
    note = {"id": 5, "image_id": 9, "category_id": 2, "bbox": [10, 5, 50, 20], "area": 900.0}
    put(
        folder / "instances.json",
        {"images": [image], "annotations": [note], "categories": [{"id": 2, "name": "person"}]},
    )
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=2))
    one, two = refcoco.read(folder, split="testA")
    assert (one.regions[0].phrase, two.regions[0].phrase) == ("left  man", "guy ")
    assert one.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert one.meta == {"ref_id": 1, "ann_id": 5, "split": "testA", "split_by": "unc", "question_id": "5"}
    (folder / "refs(google).p").write_bytes(pickle.dumps(REFS, protocol=2))
    with pytest.raises(ValueError, match="refcoco: seen the refs of google, unc, expected --split-by with one of them"):
        list(refcoco.read(folder))
    assert next(refcoco.read(folder, split_by="google")).meta["split_by"] == "google"
    (folder / "refs(google).p").unlink()
    with pytest.raises(ValueError, match="seen the split 'val', expected one of testA"):
        list(refcoco.read(folder, split="val"))
    mdetr = {
        "images": [image | {"caption": "left man", "dataset_name": "refcoco", "original_id": 9}],
        "annotations": [note],
    }
    (one,) = refcoco.read(put(tmp_path / "finetune_refcoco_testA.json", mdetr))
    assert (one.regions[0].phrase, one.source, one.regions[0].area_px) == ("left man", "refcoco", 900.0)


class Evil:
    """What a pickle must not make."""

    def __reduce__(self) -> tuple:
        return (print, ("made",))


def test_documented_commands_choose_one_of_refcocos_splits() -> None:
    for page in (Path(__file__).parents[3] / "docs").glob("*.md"):
        text = page.read_text().replace("\\\n", "")
        for command in re.findall(r"^ts-lightning data convert refcoco .*--split .*", text, re.MULTILINE):
            assert "--split-by" in command, f"{page.name}: {command}"


def test_pickles_with_a_class_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.pth"
    for payload in (pickle.dumps([Evil()]) * 4, b"", b"\x80\x02]", b"no pickle"):
        file.write_bytes(payload)
        with pytest.raises(ValueError, match=r"x\.pth: seen .*, expected a pickle of plain values"):
            list(refcoco.read(file))
    assert capsys.readouterr().out == ""


def test_flickr30k_entities(tmp_path: Path) -> None:
    boxes = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for n, a, b, c, d in [(11, 11, 6, 61, 26), (12, 1, 1, 51, 50), (12, 51, 1, 100, 50)]
    )
    scene = "<object><name>13</name><scene>1</scene><nobndbox>1</nobndbox></object>"
    size = "<size><width>100</width><height>50</height><depth>3</depth></size>"
    put(tmp_path / "Annotations/36.xml", f"<annotation><filename>36.jpg</filename>{size}{boxes}{scene}</annotation>")
    line = "[/EN#11/people A man] in [/EN#12/clothing two hats] stands [/EN#13/scene outside] ."
    put(tmp_path / "Sentences/36.txt", line + "\n[/EN#0/notvisual It] rains .\n")
    put(tmp_path / "test.txt", "36\n")
    photo(tmp_path / "flickr30k-images/36.jpg")
    dropped = Dropped()
    caption, *phrases = flickr30k.read(tmp_path, Pictures(dropped=dropped), split="test")
    assert caption.turns[1].text == "A man {region:0} in two hats {region:1} stands outside ."
    assert caption.meta["captions"] == ["A man in two hats stands outside ."]
    assert caption.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert caption.regions[1].boxes == [(0.0, 0.0, 0.5, 0.98), (0.5, 0.0, 0.99, 0.98)]
    assert [(p.subtask, p.regions[0].phrase) for p in phrases] == [("phrase", "A man"), ("phrase", "two hats")]
    assert dropped == {"phrases without a box (kept as text)": 2, "sentences without any box": 1}
    put(tmp_path / "Sentences/37.txt", line)
    assert len(list(flickr30k.read(tmp_path, Pictures(dropped=dropped)))) == 3
    assert dropped.names["sentences without an annotation file"] == ["37"]


def test_visual_genome(tmp_path: Path) -> None:
    man = {"object_id": 1, "x": 10, "y": 5, "w": 50, "h": 20, "names": ["man"], "synsets": ["man.n.01"]}
    hat = {"object_id": 2, "x": 10, "y": 5, "w": 10, "h": 5, "names": ["hat"], "merged_object_ids": [7]}
    gone = {"object_id": 3, "x": 200, "y": 5, "w": 10, "h": 5, "names": ["bird"]}
    put(tmp_path / "image_data.json", [{"image_id": 4, "width": 100, "height": 50, "url": "", "coco_id": None}])
    put(tmp_path / "objects.json", [{"image_id": 4, "objects": [man, hat, gone]}, {"image_id": 5, "objects": []}])
    put(tmp_path / "attributes.json", [{"image_id": 4, "attributes": [hat | {"attributes": ["red"]}]}])
    relation = {"relationship_id": 8, "predicate": "WEARS", "subject": man, "object": hat | {"object_id": 7}}
    put(tmp_path / "relationships.json", [{"image_id": 4, "relationships": [relation, relation | {"object": gone}]}])
    region = {"region_id": 6, "image_id": 4, "x": 0, "y": 0, "width": 100, "height": 25, "phrase": "a man in a hat"}
    put(tmp_path / "region_descriptions.json", [{"id": 4, "regions": [region]}])
    photo(tmp_path / "VG_100K_2/4.jpg")
    dropped = Dropped()
    objects, described = visual_genome.read(tmp_path, Pictures(dropped=dropped))
    assert [(r.phrase, r.category) for r in objects.regions] == [("man", "man"), ("red hat", "hat")]
    assert objects.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert objects.meta["relationships"] == [[0, "wears", 1]]
    assert objects.meta["attributes"] == [[], ["red"]]
    assert (described.regions[0].box, described.answer.text) == ((0.0, 0.0, 1.0, 0.5), "a man in a hat")
    assert +dropped == {
        "boxes that are no box inside the picture": 1,
        "relationships of objects that are left out": 1,
        "annotations of pictures that image_data.json does not list": 1,
    }


def test_texts_in_regions(tmp_path: Path) -> None:
    image = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 100, "height": 50, "set": "val"}
    note = {"id": 3, "image_id": 9, "bbox": [10, 5, 50, 20], "utf8_string": "STOP", "legibility": "legible"}
    other = note | {"id": 4, "legibility": "illegible"}
    put(tmp_path / "t/cocotext.v2.json", {"imgs": {"9": image}, "anns": {"3": note, "4": other}, "imgToAnns": {}})
    dropped = Dropped()
    (one,) = coco_text.read(tmp_path / "t", Pictures(dropped=dropped), split="val")
    assert (one.answer.text, one.tags, dropped.total()) == ("STOP", ["region", "box", "contains"], 1)
    assert one.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert list(coco_text.read(tmp_path / "t", split="train")) == []
    outline = [[0, 0], [50, 0], [50, 25], [0, 25]]
    word = {"vertices": outline, "text": "GO", "legible": True}
    line = word | {"text": "GO ON", "words": [word, word | {"legible": False}]}
    page = {"image_id": "abc", "image_width": 100, "image_height": 50, "paragraphs": [{"lines": [line]}]}
    put(tmp_path / "h/gt/validation.jsonl", {"info": {}, "annotations": [page]})
    (one,) = hiertext.read(tmp_path / "h")
    assert one.regions[0].polygon == [(0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5)]
    assert len(list(hiertext.read(tmp_path / "h", level="word"))) == 1
    label = {"transcription": "CAFE", "points": outline, "language": "Latin", "illegibility": False}
    unread = label | {"transcription": "###", "illegibility": True}
    put(tmp_path / "a/train_labels.json", {"gt_0": [label, unread]})
    photo(tmp_path / "a/train_images/gt_0.jpg")
    (one,) = art.read(tmp_path / "a")
    assert (one.answer.text, one.regions[0].polygon[2]) == ("CAFE", (0.5, 0.5))


def test_shikra_chain_of_thought(tmp_path: Path) -> None:
    row = {
        **{"img_path": "36.jpg", "boxes": [[10, 5, 60, 25], [0, 0, 50, 50], [50, 0, 100, 50]]},
        **{"question": "What does <ph_st>the man<ph_ed> wear?", "question_boxes_seq": [[0]], "answer": "hats"},
        "cot_with_ans": "<ph_st>The man<ph_ed> wears <ph_st>hats<ph_ed>. So the answer is hats.",
        "answer_boxes_seq": [[0], [1, 2]],
    }
    bad = row | {"answer_boxes_seq": [[0], [9]]}
    put(tmp_path / "GPT4GEN_BoxCoT_train.jsonl", f"{json.dumps(row)}\n{json.dumps(bad)}\n")
    photo(tmp_path / "images/36.jpg")
    dropped = Dropped()
    (one,) = shikra_cot.read(tmp_path, Pictures(dropped=dropped))
    assert one.turns[0].text == "<image>\nWhat does the man {region:0} wear?"
    assert one.turns[1].text == "The man {region:1} wears hats {region:2}. So the answer is hats."
    assert one.regions[2].boxes == [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    assert dropped.total() == 1


def test_multi_image_conversations(tmp_path: Path) -> None:
    answer = "It's in the third image. <|box_start|>(316,58),(764,999)<|box_end|>"
    asked = "<image>\n<image>\n<image>\nWhere is <|object_ref_start|>the cat<|object_ref_end|>?"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    row = {"id": "1", "images": ["a.jpg", "b.jpg", "c.jpg"], "conversations": turns, "type": "gg_train"}
    (one,) = mgrounding.read(put(tmp_path / "m.json", [row]))
    assert one.turns[0].text == "<image>\n<image>\n<image>\nWhere is the cat?"
    assert one.turns[1].text == "It's in the third image. {region:0}"
    assert (one.regions[0].image, one.regions[0].box) == (2, (0.316, 0.058, 0.764, 0.999))
    assert (one.meta["image"], one.answer.regions) == (2, [0])


def test_boxes_of_mgrounding_lie_in_the_pictures_that_their_texts_name(tmp_path: Path) -> None:
    box, other = ("<|box_start|>(0,0),(500,500)<|box_end|>", "<|box_start|>(100,100),(900,900)<|box_end|>")
    asked = {
        f"Find the object in the second image{box} in the third image.": 1,
        f"The object{box} of the second image: where is it in the first image?": 1,
        f"Where is the object{box}?": 0,
        f"Where is the object{box} of the ninth image?": 0,
    }
    answer = f"The one of the first image is in the second image too. {other}"
    rows = [
        {
            "id": i,
            "type": "ot",
            "images": ["coco/1.jpg"] * 3,
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        for i, question in enumerate(asked)
    ]
    dropped = Dropped()
    samples = list(mgrounding.read(put(tmp_path / "m.json", rows), Pictures(dropped=dropped)))
    assert [[region.image for region in sample.regions] for sample in samples] == [[i, 1] for i in asked.values()]
    assert all(sample.meta["image"] == 1 for sample in samples)
    assert "and none is named (kept, in the first)" in str(vars(dropped))


def test_conversations_of_llava_and_ms_swift(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "At [[10,20,30,40]]."}]
    rows = [{"id": "a", "image": "coco/1.jpg", "conversations": turns}, {"id": "b", "conversations": turns[:1]}]
    file = put(tmp_path / "l.json", rows)
    dropped = Dropped()
    (plain,) = llava.read(file, Pictures(dropped=dropped))
    assert (plain.turns[1].text, plain.task, dropped.total()) == ("At [[10,20,30,40]].", "understanding", 2)
    assert dropped["rows with boxes in their texts (kept as words; --codec reads them)"] == 1
    (boxed,) = llava.read(file, codec="scout")
    assert (boxed.turns[1].text, boxed.task) == ("At {region:0}.", "grounding")
    assert boxed.regions[0].box == pytest.approx((0.1, 0.2, 0.3, 0.4))
    messages = [
        {"role": "user", "content": "<image>Find <ref-object>"},
        {"role": "assistant", "content": "<bbox><bbox>"},
    ]
    objects = {"ref": ["the dog"], "bbox": [[10, 5, 60, 25], [1, 2]], "bbox_type": "real"}
    photo(tmp_path / "1.jpg")
    (one,) = ms_swift.read(put(tmp_path / "s.jsonl", {"messages": messages, "images": ["1.jpg"], "objects": objects}))
    assert [turn.text for turn in one.turns] == ["<image>\nFind the dog", "{region:0}{region:1}"]
    assert one.regions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.5))
    assert one.regions[1].points == [(0.01, 0.04)]


def test_bad_files_name_the_byte_and_the_line(tmp_path: Path) -> None:
    put(tmp_path / "h.json", '[{"id": "a", "conversations": [{"from": "hum')
    with pytest.raises(ValueError, match=r"h\.json: seen no JSON: broken at byte 40"):
        list(llava.read(tmp_path / "h.json"))
    put(tmp_path / "h.jsonl", '{"messages": []}\n{"messages')
    dropped = Dropped()
    assert not list(ms_swift.read(tmp_path / "h.jsonl", Pictures(dropped=dropped)))
    (name,) = dropped.names["rows that lack a field, or have one of another kind"]
    assert name.startswith("h.jsonl row 1: seen '{\"messages' at byte 17")
    (tmp_path / "u.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match="seen no UTF-8 at byte 2"):
        list(llava.read(tmp_path / "u.json"))
    with pytest.raises(ValueError, match=r"image_data.json"):
        list(visual_genome.read(tmp_path))
