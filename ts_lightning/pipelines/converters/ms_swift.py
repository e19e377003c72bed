"""ms-swift's JSON lines: messages with <bbox> placeholders and objects with boxes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleRegion
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.llava import restore
from ts_lightning.pipelines.converters.mig_bench import all_pictures
from ts_lightning.pipelines.converters.source import NO_BOX, Pictures, clean, make, to_box


def read(path: str | Path, pictures: Pictures | None = None, task: str = "grounding") -> Iterator[Sample]:
    """One sample a line; `path` is the .jsonl file, or a folder of them.

    `<bbox>` becomes a region mark and `<ref-object>` its text, both in the order of `objects`; bbox_type is real
    (pixels, the default) or norm1; two numbers are a point. Rows that `ts-lightning data export` wrote come back as
    they were.
    """
    path, pictures = Path(path), pictures or Pictures()
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *.jsonl, expected ms-swift's rows in it")
    for file in files:
        here = pictures.beside(file.parent, next(rows(file, (), "ms-swift's messages"), {}), "images")
        for number, row in enumerate(rows(file, ("messages",), "ms-swift's messages")):
            with here.dropped.row(f"{file.name} row {number}"):
                names = [one if isinstance(one, str) else one.get("path", "") for one in row.get("images") or []]
                known = all_pictures(here, names)
                if known is None:
                    continue
                texts = [turn["content"] for turn in row["messages"] if turn["role"] in ("user", "assistant")]
                if not texts or len(texts) % 2:
                    here.dropped.note("conversations that are not pairs of turns", f"{file.name} row {number}")
                    continue
                filled = _fill(texts, row.get("objects") or {}, known)
                if filled is None:
                    here.dropped.note(NO_BOX, f"{file.name} row {number}")
                    continue
                marked, regions = filled
                if "ts_lightning" in row:
                    yield restore(row["ts_lightning"], texts, known)
                    continue
                marked = [clean(text) if not regions else text for text in marked]
                marked[0] = marked[0].replace(f"{IMAGE_MARK}\n", "").replace(IMAGE_MARK, "")
                pairs = list(zip(marked[::2], marked[1::2], strict=True))
                fields = {"task": task if regions else "understanding", "subtask": "conversation", "regions": regions}
                yield make(file.stem, f"{file.stem}-{number:07d}", known, pairs, **fields)


def _fill(
    texts: list[str], objects: dict[str, Any], pictures: list[Any]
) -> tuple[list[str], list[SampleRegion]] | None:
    """Texts with marks and names in place of the placeholders, and the regions; None for a bad box or a short list."""
    refs, boxes = list(objects.get("ref") or []), list(objects.get("bbox") or [])
    which = objects.get("image_id") or [0] * len(boxes)
    regions: list[SampleRegion] = []
    for numbers, image in zip(boxes, which, strict=False):
        if image >= len(pictures):
            return None
        size = (pictures[image][0].width, pictures[image][0].height) if objects.get("bbox_type") != "norm1" else (1, 1)
        if len(numbers) == 2:
            point = (numbers[0] / size[0], numbers[1] / size[1])
            regions.append(SampleRegion(image=image, points=[point]))
        elif (box := to_box(numbers, size)) is not None:
            regions.append(SampleRegion(image=image, box=box))
        else:
            return None
    out, box_at, ref_at = [], 0, 0
    for text in texts:
        while "<bbox>" in text or "<ref-object>" in text:
            ref, box_mark = text.find("<ref-object>"), text.find("<bbox>")
            if ref >= 0 and (box_mark < 0 or ref < box_mark):
                if ref_at >= len(refs):
                    return None
                text, ref_at = text.replace("<ref-object>", str(refs[ref_at]), 1), ref_at + 1
            else:
                if box_at >= len(regions):
                    return None
                text, box_at = text.replace("<bbox>", f"{{region:{box_at}}}", 1), box_at + 1
        out.append(text)
    return out, regions
