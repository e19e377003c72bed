"""LLaVA-style conversation JSON: id, image(s), and human and gpt turns."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ts_lightning.data.images import sniff_extension
from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleRegion
from ts_lightning.grounding.codecs import Codec, told_codec
from ts_lightning.pipelines.converters.conversation import (
    anew,
    answered,
    count_unread,
    exported,
    paired,
    restored,
    with_boxes,
    with_marks,
)
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.source import LeftOut, Picture, Pictures, clean, files_of, make, pick, stems


def _word(pattern: str) -> re.Pattern[str]:
    """A word of a file's name: between other signs than letters, or as in myTest."""
    return re.compile(rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))((?i:{pattern})[AB]?)(?![a-z])")


_SPLIT = _word("train(?:ing|val)?|minival|val(?:id(?:ation)?)?|dev|test(?:ing|mini)?|eval")


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
    split: str | None = None,
) -> Iterator[Sample]:
    """One sample a row of a JSON list, JSON lines or Parquet; rows without a picture are text only.

    `path` is a file, or a folder of them; `split` takes those with this word in their names (train), and is needed
    where they are of several splits. `image` or `images` are names, or hold the bytes (`{bytes, path}`, as Hugging Face
    saves them).

    With `codec` boxes of the texts in that notation become regions (of the picture that the notation or the text
    names), and a conversation whose answers have boxes is of task grounding, scored by those of the last one; one
    without any box in its answers keeps its text and is counted. `grid` (100, 1000, decimals:3, pixels) and `frame`
    (original, padded_square) take the place of the notation's own. A row is left out where a box can't be read or
    picture marks don't fit the pictures. `task` sets the task of all rows. `template` names a file of prompts that wrap
    the questions ({question}) or stand in their place. `min_pixels` and `max_pixels` bound the area of the resized
    picture that boxes of qwen2_5_vl are pixels of; without them they are pixels of the picture as it is. Rows that
    `ts-lightning data export` wrote come back as they were; one whose texts were edited since is read as any other, or
    left out where it has boxes and there is no `codec`.
    """
    path, pictures = Path(path), pictures or Pictures()
    what = "LLaVA's conversations"
    files = row_files(path, what, split)
    notation = told_codec(codec, grid, frame, min_pixels, max_pixels) if codec else None
    named = stems(files)
    for file in files:
        here = pictures.beside(file.parent, every_name(file, what), "images", "train2017", "coco/train2017")
        here.naming(every_name(file, what))
        for number, row in enumerate(rows(file, ("conversations",), what)):
            with here.dropped.row(f"{file.name} row {number}"):
                if (made := _row(named[file], number, row, here, notation, task, template)) is not None:
                    yield made


def row_files(path: Path, what: str, split: str | None = None) -> list[Path]:
    """The files of rows in a folder, also in `data/` of one of Hugging Face's; or the one file `path`.

    `split` is a word of their names. ValueError for files of a held-out split beside others without it: a test set is
    not trained on unawares.
    """
    if not path.is_dir():
        if split is not None:
            raise ValueError(f"split: seen {split} with the file {path}, expected a folder of files by split")
        return [path]
    patterns = ("*.json", "*.jsonl", "*.parquet", "data/*.parquet")
    files = [file for file in files_of(path, *patterns) if file.name != "dataset_info.json"]
    if not files:
        raise ValueError(f"{path}: seen no {' or '.join(patterns[:3])}, expected {what} in it")
    words = [_SPLIT.search(file.stem) for file in files]
    splits = {word[1] if word else "none" for word in words}
    held_out = any(word and not word[1].lower().startswith("train") for word in words)
    if split is None and held_out and len(splits) > 1:
        seen = f"seen files of the splits {', '.join(sorted(splits))}"
        raise ValueError(f"{path}: {seen}, expected one: a file as the path (or `data convert` with --split NAME)")
    if split is not None:
        files = [file for file in files if _word(re.escape(split)).search(file.stem)]
    if not files:
        raise ValueError(
            f"split: seen {split}, expected a word of a file's name in {path}: {', '.join(sorted(splits))}"
        )
    return files


def row_pictures(row: dict[str, Any], pictures: Pictures, key: str) -> list[Picture] | None:
    """Every picture of a row, by its name or from its bytes in the row; None, counted, where one is missing."""
    known = []
    for number, one in enumerate(_shown(row)):
        if _holds(one):
            name = Path(one.get("path") or f"{key}-{number}.{sniff_extension(one['bytes'])}").name
            known.append(pictures.inside(name, one["bytes"]))
        else:
            known.append(pictures.get(one if isinstance(one, str) else one["path"]))
    return None if any(one is None for one in known) else [one for one in known if one is not None]


def _shown(row: dict[str, Any]) -> list[Any]:
    """The pictures of a row: `image` or `images`, a name or an object, or a list of them."""
    given = row.get("image") or row.get("images") or []
    shown = given if isinstance(given, list | tuple) else [given]
    for one in shown:
        if not isinstance(one, str) and not (isinstance(one, dict) and {"bytes", "path"} & one.keys()):
            raise TypeError(f"seen a picture of type {type(one).__name__}, expected its file name or {{bytes, path}}")
    return list(shown)


def every_name(file: Path, what: str) -> Iterator[str]:
    """The names of the pictures of all rows of a file, none of a row that can't be read or holds the pictures."""
    for row in rows(file, (), what):
        with suppress(ValueError, LookupError, TypeError):  # said where the row is made
            yield from (one if isinstance(one, str) else one["path"] for one in _shown(row) if not _holds(one))


def _holds(one: Any) -> bool:
    return isinstance(one, dict) and one.get("bytes") is not None


def _row(
    stem: str,
    number: int,
    row: dict[str, Any],
    pictures: Pictures,
    codec: Codec | None,
    task: str | None,
    template: str | None,
) -> Sample | None:
    key, where = f"{stem}-{number:07d}", f"{stem} row {number}"
    known = row_pictures(row, pictures, key)
    if known is None:
        return None
    if (kept := exported(row)) is not None:
        if (made := restored(kept, [turn["value"] for turn in row["conversations"]], known)) is not None:
            return made
        if kept["regions"] and codec is None:
            raise LeftOut(anew(kept, left_out=True))
        pictures.dropped.note(anew(kept), where, stops=False)
    if row.get("video") or row.get("videos"):
        raise LeftOut("rows with video or sound (pictures alone can be trained on)")
    texts = paired([(turn["from"], turn["value"]) for turn in row["conversations"]], row.get("system"))
    texts = with_marks(texts, len(known), where, pictures.dropped)
    regions: list[SampleRegion] = []
    if codec and known:
        texts, regions = with_boxes(texts, known, codec, where, pictures.dropped)
        if not any("{region:" in text for text in texts[1::2]):
            reason = "conversations without a readable box in an answer, kept as text"
            pictures.dropped.note(reason, where, stops=False)
    else:
        count_unread(texts, where, pictures.dropped)
    kind = task or ("grounding" if any("{region:" in text for text in texts[1::2]) else "understanding")
    fields: dict[str, Any] = {"task": kind, "subtask": "conversation", "regions": regions, "answer": answered(texts)}
    if row.get("accu_reward_method") is not None:
        fields["meta"] = {"accu_reward_method": row["accu_reward_method"]}
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
