"""LLaVA-style conversation JSON: id, image(s), and human and gpt turns."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleRegion
from ts_lightning.grounding.codecs import Codec, get_codec
from ts_lightning.grounding.resizing import resize_rule
from ts_lightning.pipelines.converters.conversation import answered, count_unread, paired, with_boxes, with_marks
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.mig_bench import all_pictures
from ts_lightning.pipelines.converters.source import LeftOut, Pictures, clean, make, pick, stems


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    codec: str | None = None,
    task: str | None = None,
    template: str | None = None,
    grid: str | None = None,
    frame: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Iterator[Sample]:
    """One sample a row of a JSON list or JSON lines (`image` or `images`); rows without a picture are text only.

    With `codec` boxes of the texts in that notation become regions (of the picture that the notation or the text
    names), and a conversation whose answers have boxes is of task grounding, scored by those of the last one; one
    without any box in its answers keeps its text and is counted. `grid` (100, 1000, decimals:3, pixels) and `frame`
    (original, padded_square) take the place of the notation's own. A row is left out where a box can't be read or
    picture marks don't fit the pictures. `task` sets the task of all rows. `template` names a file of prompts that wrap
    the questions ({question}) or stand in their place. `min_pixels` and `max_pixels` bound the area of the resized
    picture that boxes of qwen2_5_vl are pixels of; without them they are pixels of the picture as it is. Rows that
    `ts-lightning data export` wrote come back as they were.
    """
    path, pictures = Path(path), pictures or Pictures()
    files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    files = [file for file in files if file.name != "dataset_info.json" or file == path]
    if not files:
        raise ValueError(f"{path}: seen no *.json or *.jsonl, expected conversations in it")
    notation = _notation(codec, grid, frame, min_pixels, max_pixels) if codec else None
    named = stems(files)
    what = "LLaVA's conversations"
    for file in files:
        here = pictures.beside(file.parent, every_name(file, what), "images", "train2017", "coco/train2017")
        here.naming(every_name(file, what))
        for number, row in enumerate(rows(file, ("conversations",), what)):
            with here.dropped.row(f"{file.name} row {number}"):
                if (made := _row(named[file], number, row, here, notation, task, template)) is not None:
                    yield made


def picture_names(row: dict[str, Any]) -> list[str]:
    """The pictures of a row: `image` or `images`, a name or a list of names or of objects with a path."""
    found = row.get("image") or row.get("images") or []
    names = [found] if isinstance(found, str | dict) else list(found)
    return [one if isinstance(one, str) else one["path"] for one in names]


def every_name(file: Path, what: str) -> Iterator[str]:
    """`picture_names` of all rows of a file, none of a row that can't be read."""
    for row in rows(file, (), what):
        with suppress(ValueError, LookupError, TypeError):  # said where the row is made
            yield from picture_names(row)


def _notation(name: str, grid: str | None, frame: str | None, min_pixels: int | None, max_pixels: int | None) -> Codec:
    space = get_codec(name).space
    space = replace(space, grid=grid or space.grid, frame=frame or space.frame)
    if min_pixels is None and max_pixels is None:
        return get_codec(name, space)
    if space.frame != "resized":
        raise ValueError(f"--min_pixels, --max_pixels: seen with codec {name}, expected qwen2_5_vl")
    return get_codec(name, replace(space, resized=resize_rule(min_pixels, max_pixels)))


def _row(
    stem: str,
    number: int,
    row: dict[str, Any],
    pictures: Pictures,
    codec: Codec | None,
    task: str | None,
    template: str | None,
) -> Sample | None:
    known = all_pictures(pictures, picture_names(row))
    if known is None:
        return None
    where = f"{stem} row {number}"
    if "ts_lightning" in row:
        return restore(row["ts_lightning"], [turn["value"] for turn in row["conversations"]], known)
    if row.get("video") or row.get("videos"):
        raise LeftOut("rows with video or sound (pictures alone can be trained on)")
    texts = paired([(turn["from"], turn["value"]) for turn in row["conversations"]], row.get("system"))
    texts = with_marks(texts, len(known), where, pictures.dropped)
    regions: list[SampleRegion] = []
    if codec and known:
        texts, regions = with_boxes(texts, known, codec)
        if not any("{region:" in text for text in texts[1::2]):
            reason = "conversations without a readable box in an answer, kept as text"
            pictures.dropped.note(reason, where, stops=False)
    else:
        count_unread(texts, where, pictures.dropped)
    kind = task or ("grounding" if any("{region:" in text for text in texts[1::2]) else "understanding")
    fields: dict[str, Any] = {"task": kind, "subtask": "conversation", "regions": regions, "answer": answered(texts)}
    if "accu_reward_method" in row:
        fields["meta"] = {"accu_reward_method": row["accu_reward_method"]}
    key = f"{stem}-{number:07d}"
    if template is not None:
        texts[::2] = [_asked(template, f"{key}-{turn}", text) for turn, text in enumerate(texts[::2])]
    if row.get("id") is not None:
        fields["meta"] = {"id": row["id"]} | (fields.get("meta") or {})
    return make(stem, key, known, list(zip(texts[::2], texts[1::2], strict=True)), **fields)


def _asked(template: str, key: str, text: str) -> str:
    """The question in a template's words; its picture marks stay before it, or where the words have them."""
    pictures = text.count(IMAGE_MARK)
    asked = pick(template, key, pictures, question=clean(text).strip("\n"))
    return asked if IMAGE_MARK in asked else f"{IMAGE_MARK}\n" * pictures + asked


def restore(kept: str | dict[str, Any], texts: list[str], pictures: list[Any]) -> Sample:
    """The sample of an exported row: its texts with the marks put back, and the fields that other tools don't have."""
    record = json.loads(kept) if isinstance(kept, str) else dict(kept)
    marks = record.pop("marks")
    key = record.pop("key")
    for turn, start, end, index in reversed(marks):
        texts[turn] = f"{texts[turn][:start]}{{region:{index}}}{texts[turn][end:]}"
    steps = record.pop("steps")
    record["turns"] = [
        {"role": ("user", "assistant")[i % 2], "text": text, "steps": spans}
        for i, (text, spans) in enumerate(zip(texts, steps, strict=True))
    ]
    record["images"] = [{"name": image.name, "width": image.width, "height": image.height} for image, _ in pictures]
    data = [one for _, one in pictures if one is not None]
    return Sample.from_json(json.dumps(record), key, image_bytes=data)
