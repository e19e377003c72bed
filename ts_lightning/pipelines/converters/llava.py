"""LLaVA-style conversation JSON: id, image(s), and human and gpt turns."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleRegion
from ts_lightning.grounding.codecs import Codec, get_codec
from ts_lightning.grounding.resizing import resize_rule
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.mig_bench import all_pictures
from ts_lightning.pipelines.converters.source import Pictures, clean, make, pick

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    codec: str | None = None,
    task: str | None = None,
    template: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Iterator[Sample]:
    """One sample a row of a JSON list or JSON lines; rows without a picture are text only.

    With `codec` boxes of the texts in that notation become regions (of the first picture), and a conversation whose
    answers have boxes is of task grounding; one in whose answers none can be read keeps its text and is counted. `task`
    sets the task of all rows. `template` names a file of prompts that wrap the questions ({question}) or stand in their
    place. `min_pixels` and `max_pixels` bound the area of the resized picture that boxes of qwen2_5_vl are pixels of;
    without them they are pixels of the picture as it is. Rows that `ts-lightning data export` wrote come back as they
    were.
    """
    path, pictures = Path(path), pictures or Pictures()
    files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *.json or *.jsonl, expected conversations in it")
    notation = _notation(codec, min_pixels, max_pixels) if codec else None
    for file in files:
        first: dict[str, Any] = next(rows(file, (), "LLaVA's conversations"), {})
        here = pictures.beside(file.parent, first, "images", "train2017", "coco/train2017")
        for number, row in enumerate(rows(file, ("conversations",), "LLaVA's conversations")):
            if (made := _row(file.stem, number, row, here, notation, task, template)) is not None:
                yield made


def _notation(name: str, min_pixels: int | None, max_pixels: int | None) -> Codec:
    space = get_codec(name).space
    if min_pixels is None and max_pixels is None:
        return get_codec(name)
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
    images = row.get("image") or []
    names = [images] if isinstance(images, str) else list(images)
    known = all_pictures(pictures, names)
    if known is None:
        return None
    where = f"{stem} row {number}"
    if "ts_lightning" in row:
        return restore(row["ts_lightning"], [turn["value"] for turn in row["conversations"]], known)
    turns = [turn for turn in row["conversations"] if turn.get("from") in ROLES]
    roles = [ROLES[turn["from"]] for turn in turns]
    if not turns or len(turns) % 2 or roles != ["user", "assistant"] * (len(turns) // 2):
        pictures.dropped.note("conversations that are not pairs of turns", where)
        return None
    size = (known[0][0].width, known[0][0].height) if known else None
    texts: list[str] = []
    regions: list[SampleRegion] = []
    for turn in turns:
        text = clean(turn["value"].replace(f"{IMAGE_MARK}\n", "").replace(f"\n{IMAGE_MARK}", ""))
        texts.append(_regions(text, codec, size, regions) if codec and known else text)
    if codec and known and not any("{region:" in text for text in texts[1::2]):
        pictures.dropped.note("conversations without a readable box in an answer, kept as text", where, stops=False)
    kind = task or ("grounding" if any("{region:" in text for text in texts[1::2]) else "understanding")
    fields: dict[str, Any] = {"task": kind, "subtask": "conversation", "regions": regions}
    if "accu_reward_method" in row:
        fields["meta"] = {"accu_reward_method": row["accu_reward_method"]}
    key = f"{stem}-{number:07d}"
    if template is not None:
        texts[::2] = [pick(template, f"{key}-{turn}", question=text) for turn, text in enumerate(texts[::2])]
    sample = make(stem, key, known, list(zip(texts[::2], texts[1::2], strict=True)), **fields)
    if row.get("id") is not None:
        sample.meta = {"id": row["id"]} | (sample.meta or {})
    return sample


def _regions(text: str, codec: Codec, size: tuple[int, int] | None, regions: list[SampleRegion]) -> str:
    out, at = "", 0
    for mention in sorted(codec.parse(text, size), key=lambda mention: mention.start):
        boxes = mention.boxes
        if not boxes:
            continue
        place = {"box": boxes[0]} if len(boxes) == 1 else {"boxes": boxes}
        regions.append(SampleRegion(phrase=mention.phrase, **place))  # type: ignore[arg-type]
        out += f"{text[at : mention.start]}{{region:{len(regions) - 1}}}"
        at = mention.end
    return out + text[at:]


def restore(kept: dict[str, Any], texts: list[str], pictures: list[Any]) -> Sample:
    """The sample of an exported row: its texts with the marks put back, and the fields that other tools don't have."""
    record = dict(kept)
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
