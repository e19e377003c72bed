"""Multi-image grounding: MIG-Bench and MGrounding-630k."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleRegion
from ts_lightning.pipelines.converters.source import Pictures, listed, load_json, make

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_IMAGE = re.compile(rf"(\d+)(?:st|nd|rd|th) image|image[- ](\d+)|({'|'.join(ORDINALS)}) image", re.IGNORECASE)
_BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
_OBJECT = re.compile(r"<\|object_ref_(?:start|end)\|>")


def image_index(text: str, last: bool) -> int | None:
    """The 0-based picture that a text names first, or last."""
    found = list(_IMAGE.finditer(text))
    if not found:
        return None
    number, dashed, word = found[-1 if last else 0].groups()
    return ORDINALS.index(word.lower()) if word else int(number or dashed) - 1


def target_image(row: dict[str, Any]) -> tuple[int | None, str]:
    """(0-based index of the picture that is asked about, where that is known from); MIG-Bench has no field for it."""
    if row["task"] == "region":
        return 0, "task: the source image comes first"
    if row["task"] == "group_grounding":
        return image_index(str(row.get("additional_info", "")), last=False), "additional_info"
    index = image_index(row["question"], last=True)
    return index, "not stated" if index is None else "question"


def read_mig_bench(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One question a row; `path` is the folder of MIG_data.json, or the file.

    `meta.image` is the recovered index and `meta.image_from` its provenance; a region lies in picture 0 where the index
    is not known.
    """
    path, pictures = Path(path), pictures or Pictures()
    path = path / "MIG_data.json" if path.is_dir() else path
    keys, what = ("task", "images", "question", "answer"), "MIG-Bench's rows"
    for number, row in enumerate(listed(load_json(path, what), path, keys, what)):
        known = [pictures.get(name) for name in row["images"]]
        if any(one is None for one in known):
            continue
        index, origin = target_image(row)
        box = _ordered(row["answer"])
        repaired = list(box) != list(row["answer"])
        pictures.dropped["true boxes put in order or clipped (kept; meta.answer has the file's)"] += repaired
        if index is not None and index >= len(known):
            pictures.dropped["picture numbers beyond the pictures"] += 1
            index, origin = None, "not stated"
        question, regions = _with_regions(row["question"])
        regions.append(SampleRegion(image=index or 0, box=box))
        answer = len(regions) - 1
        meta = {"image": index, "image_from": origin, "row": number, "answer": row["answer"]}
        yield make(
            "mig_bench",
            f"mig-{number:05d}",
            [one for one in known if one is not None],
            [(question, f"{{region:{answer}}}")],
            task="grounding",
            subtask=row["task"],
            regions=regions,
            answer=[answer],
            meta=meta,
        )


def _ordered(answer: list[float]) -> tuple[float, float, float, float]:
    """Corners in order, clipped: seven rows of the benchmark have them the other way round or outside."""
    x1, x2 = sorted(min(max(float(v), 0.0), 1.0) for v in answer[::2])
    y1, y2 = sorted(min(max(float(v), 0.0), 1.0) for v in answer[1::2])
    return x1, y1, x2, y2


def read_mgrounding(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One conversation a row of an MGrounding-630k json file; boxes of its texts become regions."""
    path, pictures = Path(path), pictures or Pictures()
    what = "MGrounding's rows (images, conversations)"
    for number, row in enumerate(listed(load_json(path, what), path, ("images", "conversations"), what)):
        known = [pictures.get(name) for name in row["images"]]
        if any(one is None for one in known):
            continue
        regions: list[SampleRegion] = []
        texts = []
        for turn in row["conversations"]:
            text = turn["value"].replace(f"{IMAGE_MARK}\n", "").replace(IMAGE_MARK, "")
            asked = image_index(text, last=turn["from"] == "human") or 0
            texts.append(_with_regions(text, regions, min(asked, len(known) - 1))[0])
        if len(texts) < 2 or len(texts) % 2:
            pictures.dropped["conversations without an answer"] += 1
            continue
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        answered = [int(i) for i in re.findall(r"\{region:(\d+)\}", pairs[-1][1])]
        yield make(
            "mgrounding",
            f"{row.get('type', 'row')}-{row.get('id', number)}",
            [one for one in known if one is not None],
            pairs,
            task="grounding",
            subtask=row.get("type"),
            regions=regions,
            answer=answered,
        )


def _with_regions(
    text: str, regions: list[SampleRegion] | None = None, image: int = 0
) -> tuple[str, list[SampleRegion]]:
    """The text with its 0-1000 boxes as region marks, and the regions."""
    regions = [] if regions is None else regions

    def mark(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (int(n) / 1000 for n in match.groups())
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            return match[0]
        regions.append(SampleRegion(image=image, box=(x1, y1, x2, y2)))
        return f"{{region:{len(regions) - 1}}}"

    return _OBJECT.sub("", _BOX.sub(mark, text)).strip(), regions
