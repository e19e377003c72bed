"""MGrounding-630k: multi-image conversations with boxes of 0-1000 in their texts."""

import re
from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.conversation import UNREAD, paired, unread, with_marks
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.mig_bench import all_pictures, image_index, with_regions
from ts_lightning.pipelines.converters.source import LeftOut, Pictures, files_of, make


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One conversation a row; `path` is one json file, or a folder of them. Boxes of the texts become regions.

    A box lies in the picture that its text names last before it ("It's in the third image."), else first behind it.
    Where none is named, an answer's lies in the picture that the question names last, a question's in the first.
    `meta.image` is that index for the last answer, None where neither names one.
    """
    path, pictures = Path(path), pictures or Pictures()
    files = files_of(path, "*.json") if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *.json, expected MGrounding's files in it")
    for file in files:
        yield from _file(file, pictures)


def _file(path: Path, pictures: Pictures) -> Iterator[Sample]:
    what, keys = "MGrounding's rows", set()
    for number, row in enumerate(rows(path, ("images", "conversations"), what)):
        with pictures.dropped.row(f"{path.name} row {number}"):
            known = all_pictures(pictures, row["images"])
            if known is None:
                continue
            texts = paired([(turn["from"], turn["value"]) for turn in row["conversations"]])
            texts = with_marks(texts, len(known), f"{path.name} row {number}", pictures.dropped)
            regions: list[SampleRegion] = []
            out: list[str] = []
            image: int | None = None
            for place, text in enumerate(texts):
                asked = place % 2 == 0
                named = image_index(text, last=asked)
                if named is not None and named >= len(known):
                    reason = "picture numbers beyond the pictures (kept, as not stated)"
                    pictures.dropped.note(reason, f"{path.name} row {number}", stops=False)
                    named = None
                image = named if named is not None or asked else image
                out.append(with_regions(text, len(known), regions, 0 if asked else image or 0)[0])
                if asked and named is None and len(known) > 1 and "{region:" in out[-1]:
                    reason = "questions with a box in one of several pictures, and none is named (kept, in the first)"
                    pictures.dropped.note(reason, f"{path.name} row {number}", stops=False)
            if image is None and len(known) > 1 and "{region:" in out[-1]:
                reason = "answers with a box in one of several pictures, and none is named (kept, meta.image null)"
                pictures.dropped.note(reason, f"{path.name} row {number}", stops=False)
            if left := unread(out):
                raise LeftOut(UNREAD, left)
            kind = row.get("type") or path.stem
            key = f"{kind}-{row.get('id', number)}"
            key = f"{key}-{number}" if key in keys else key
            keys.add(key)
            answered = [int(i) for i in re.findall(r"\{region:(\d+)\}", out[-1])]
            yield make(
                "mgrounding",
                key,
                known,
                list(zip(out[::2], out[1::2], strict=True)),
                task="grounding",
                subtask=kind,
                regions=regions,
                answer=answered or out[-1],
                meta={"image": regions[answered[0]].image if answered and image is not None else image},
            )
