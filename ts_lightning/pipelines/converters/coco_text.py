"""COCO-Text: transcribed text boxes of COCO photos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import load_json, mapped
from ts_lightning.pipelines.converters.region_text import reading
from ts_lightning.pipelines.converters.source import Picture, Pictures, from_xywh, need

WHAT = "COCO-Text's anns and imgs"


def _order(item: tuple[str, Any]) -> tuple[str, int, str]:
    number, one = item
    return str(one.get("image_id") if isinstance(one, dict) else ""), int(number) if number.isdigit() else -1, number


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    template: str = "mgvlid/coco_text",
    illegible: bool = False,
) -> Iterator[Sample]:
    """One question for each transcribed box; `path` is the folder of COCO_Text.json (cocotext.v2.json), or the file.

    `split` is train, val or test; `illegible` keeps boxes that are marked so. Photos lie in train2014.
    """
    path, pictures = Path(path), pictures or Pictures()
    folder = path if path.is_dir() else path.parent
    file = need(path, "cocotext.v2.json", "COCO_Text.json") if path.is_dir() else path
    here = pictures.under(folder, "train2014", "images/train2014", "images")
    data = mapped(load_json(file, WHAT), file, WHAT)
    images, notes = mapped(data.get("imgs"), file, WHAT), mapped(data.get("anns"), file, WHAT)
    cache: tuple[object, Picture | None] = (None, None)
    for number, one in sorted(notes.items(), key=_order):
        with here.dropped.row(f"{file.name} annotation {number}"):
            image = images.get(str(one["image_id"]))
            if image is None:
                here.dropped.note("annotations of photos that the file does not list", one["image_id"])
                continue
            if split is not None and image.get("set") != split:
                continue
            if one.get("legibility") == "illegible" and not illegible:
                here.dropped.note("texts that are empty or not legible", f"text-{number}", stops=False)
                continue
            if cache[0] != one["image_id"]:
                cache = (one["image_id"], here.get(image["file_name"], (image.get("width"), image.get("height"))))
            known = cache[1]
            if known is None:
                continue
            size = (known[0].width, known[0].height)
            box = here.dropped.box(from_xywh(one["bbox"]), size, f"text-{number}")
            if box is None:
                continue
            meta = {"image_id": one["image_id"], "annotation_id": int(number), "class": one.get("class")}
            made = reading(
                "coco_text",
                f"text-{number}",
                known,
                one.get("utf8_string", ""),
                box,
                here,
                template,
                **meta,  # type: ignore[arg-type]
            )
            if made is not None:
                yield made
