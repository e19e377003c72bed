"""PointQA's LookTwice-QA: how many of the thing under a point or box are in the picture."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.files import Broken, listed, load_json, mapped, rows
from ts_lightning.pipelines.converters.source import NO_BOX, Dropped, Pictures, clean, located, make, pick

WHAT = "LookTwice-QA's questions"
QUESTIONS = ("obj_question", "super_question", "general_question", "question")


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    region: str = "point",
    question: str = "general_question",
    template: str = "mgvlid/pointqa",
) -> Iterator[Sample]:
    """One question a row about its "point" or "box" (`region`).

    `path` is a folder or a file: looktwiceqa_dataset.json (rows by picture; looktwiceqa_SPLIT_imgs.json lists a split's
    pictures), or JSON lines with file_path, point, bbox, answer. `question` is the wording that names the object
    (obj_question), its kind (super_question) or nothing (general_question).
    """
    if region not in ("point", "box") or question not in QUESTIONS:
        raise ValueError(f"region, question: seen {region!r}, {question!r}, expected point or box, {QUESTIONS}")
    file, folder = located(path, "looktwiceqa_dataset.json", "*LookTwiceQA/looktwiceqa_dataset.json", "*.jsonl")
    here = (pictures or Pictures()).under(folder, "VG_100K", "VG_100K_2", "vg/VG_100K", "vg/VG_100K_2", "images")
    for number, one in enumerate(_rows(file, split, here.dropped)):
        with here.dropped.row(f"{file.name} row {number}"):
            name = Path(
                str(one.get("file_path") or one.get("img_path") or f"{one.get('image_id', one.get('id'))}.jpg")
            ).name
            size = (int(one["img_w"]), int(one["img_h"])) if "img_w" in one and "img_h" in one else None
            known = here.get(name, size)
            if known is None:
                continue
            place = _place(one, region, (known[0].width, known[0].height), f"row {number}", here.dropped)
            if place is None:
                continue
            answer = clean(one["answer"] if "answer" in one else one["ans"])
            asked = clean(one.get(question) or one.get("question") or "")
            key = f"pointqa-{region}-{number}"
            yield make(
                "pointqa",
                key,
                [known],
                [(pick(template, key, question=asked, region="{region:0}"), answer)],
                subtask=f"pointqa_{region}",
                tags=["region", region, "contains"],
                regions=[SampleRegion(category=one.get("obj_type"), **place)],
                answer=answer,
                answers=[answer],
                meta={"question_id": one.get("qa_id", number), "question": asked},
            )


def _rows(file: Path, split: str | None, dropped: Dropped) -> Iterator[dict[str, Any]]:
    if file.suffix == ".jsonl":
        yield from rows(file, (), WHAT)
        return
    data = mapped(load_json(file, WHAT), file, WHAT)
    names: Any = data
    if split is not None:
        names = [
            str(name) for name in load_json(file.with_name(f"looktwiceqa_{split}_imgs.json"), "a list of pictures")
        ]
    for name in names:
        found: list[dict[str, Any]] = []
        with dropped.row(f"{file.name} picture {name}"):
            found = listed(data.get(name, []), f"{file}: {name}", (), WHAT)
        yield from (one if isinstance(one, Broken) else {"image_id": name, **one} for one in found)


def _place(
    one: dict[str, Any], region: str, size: tuple[int, int], where: str, dropped: Dropped
) -> dict[str, Any] | None:
    """The point or the box (xyxy pixels, or {x, y, w, h}) of a row, in [0, 1]; None, counted, for none inside."""
    value = one.get("point") if region == "point" else one.get("bbox", one.get("box"))
    if isinstance(value, dict):
        value = [value["x"], value["y"]] + ([value["x"] + value["w"], value["y"] + value["h"]] if "w" in value else [])
    if value is None:
        dropped.note(NO_BOX, where)
        return None
    numbers = [float(v) for v in chain.from_iterable(v if isinstance(v, list) else [v] for v in value)]
    if region == "box":
        box = dropped.box(numbers, size, where)
        return None if box is None else {"box": box}
    if len(numbers) != 2 or not all(-1 <= v <= side + 1 for v, side in zip(numbers, size, strict=True)):
        dropped.note(NO_BOX, where)
        return None
    return {"points": [tuple(min(max(v / side, 0.0), 1.0) for v, side in zip(numbers, size, strict=True))]}
