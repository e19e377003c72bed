"""MIG-Bench: multi-image questions with one box, and the picture that the box is in recovered from the text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.source import Picture, Pictures, clean, make

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_IMAGE = re.compile(rf"(\d+)(?:st|nd|rd|th) image|image[- ]?(\d+)|({'|'.join(ORDINALS)}) image", re.IGNORECASE)
_BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
_OBJECT = re.compile(r"<\|object_ref_(?:start|end)\|>")


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One question a row; `path` is the folder of MIG_data.json, or the file.

    `meta.image` is the recovered 0-based index (None for `diff`, which names no picture) and `meta.image_from` its
    provenance; the region lies in picture 0 where the index is not known. A query box in the question is a region too;
    `meta.question` is the text as published.
    """
    path, pictures = Path(path), pictures or Pictures()
    path = path / "MIG_data.json" if path.is_dir() else path
    keys, what = ("task", "images", "question", "answer"), "MIG-Bench's rows"
    for number, row in enumerate(rows(path, keys, what)):
        with pictures.dropped.row(f"{path.name} row {number}"):
            known = all_pictures(pictures, row["images"])
            if known is None:
                continue
            index, origin = target_image(row)
            box = ordered(row["answer"])
            if list(box) != list(map(float, row["answer"])):
                reason = "true boxes put in order or clipped, and kept"
                pictures.dropped.note(reason, f"{path.name} row {number}", stops=False)
            if index is not None and index >= len(known):
                reason = "picture numbers beyond the pictures (kept)"
                pictures.dropped.note(reason, f"{path.name} row {number}", stops=False)
                index, origin = None, "not stated"
            question, regions = with_regions(clean(row["question"]), len(known))
            regions.append(SampleRegion(image=index or 0, box=box))
            answer = len(regions) - 1
            meta = {
                "image": index,
                "image_from": origin,
                "row": number,
                "question": row["question"],
                "answer": row["answer"],
            }
            yield make(
                "mig_bench",
                f"mig-{number:05d}",
                known,
                [(question, f"{{region:{answer}}}")],
                task="grounding",
                subtask=row["task"],
                regions=regions,
                answer=[answer],
                meta=meta | {"sizes_known": pictures.folder is not None},
            )


def ordered(answer: list[float]) -> tuple[float, float, float, float]:
    """Corners in order, clipped: seven rows of the benchmark have them the other way round or outside."""
    x1, x2 = sorted(min(max(float(v), 0.0), 1.0) for v in answer[::2])
    y1, y2 = sorted(min(max(float(v), 0.0), 1.0) for v in answer[1::2])
    return x1, y1, x2, y2


def target_image(row: dict[str, Any]) -> tuple[int | None, str]:
    """(0-based index of the picture that is asked about, where that is known from); MIG-Bench has no field for it."""
    if row["task"] == "region":
        return 0, "task: the source image comes first"
    if row["task"] == "group_grounding":
        return image_index(str(row.get("additional_info", "")), last=False), "additional_info"
    index = image_index(row["question"], last=True)
    return index, "not stated" if index is None else "question"


def image_index(text: str, last: bool) -> int | None:
    """The 0-based picture that a text names first, or last."""
    found = list(_IMAGE.finditer(text))
    if not found:
        return None
    number, dashed, word = found[-1 if last else 0].groups()
    return max(0, ORDINALS.index(word.lower()) if word else int(number or dashed) - 1)


def all_pictures(pictures: Pictures, names: list[str]) -> list[Picture] | None:
    """Every picture of a row, or None when one is missing."""
    known = [pictures.get(name) for name in names]
    return None if any(one is None for one in known) else [one for one in known if one is not None]


def picture_of(text: str, place: int) -> int | None:
    """The 0-based picture of a box at `place`: the one that the text names last before it, else first behind it."""
    before = image_index(text[:place], last=True)
    return image_index(text, last=False) if before is None else before


def with_regions(
    text: str, pictures: int, regions: list[SampleRegion] | None = None, otherwise: int = 0
) -> tuple[str, list[SampleRegion]]:
    """The text with its 0-1000 boxes as region marks, and the regions.

    A box is in the one of the `pictures` that the text names (`picture_of`), else in picture `otherwise`.
    """
    regions = [] if regions is None else regions

    def mark(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (int(n) / 1000 for n in match.groups())
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            return match[0]
        named = picture_of(text, match.start())
        image = otherwise if named is None or named >= pictures else named
        regions.append(SampleRegion(image=image, box=(x1, y1, x2, y2)))
        return f"{{region:{len(regions) - 1}}}"

    return _OBJECT.sub("", _BOX.sub(mark, text)), regions
