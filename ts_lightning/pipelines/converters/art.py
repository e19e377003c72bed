"""ArT: arbitrarily shaped text with its outline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import Broken, listed, load_json, mapped
from ts_lightning.pipelines.converters.region_text import polygon, reading
from ts_lightning.pipelines.converters.source import Pictures, need

WHAT = "ArT's labels by picture"


def read(path: str | Path, pictures: Pictures | None = None, template: str = "mgvlid/art") -> Iterator[Sample]:
    """One question for each legible text; `path` is the folder of train_labels.json and train_images/, or the file.

    ArT states no picture sizes: without the pictures, points are in fractions of the outermost one.
    """
    path, pictures = Path(path), pictures or Pictures()
    folder = path if path.is_dir() else path.parent
    file = need(path, "train_labels.json", "*labels*.json") if path.is_dir() else path
    here = pictures.under(folder, "train_images", "images")
    for name, texts in mapped(load_json(file, WHAT), file, WHAT).items():
        with here.dropped.row(f"{file.name} picture {name}"):
            texts = listed(texts, f"{file}: {name}", ("transcription", "points"), WHAT)
            known = here.get(f"{name}.jpg", None if here.folder else _extent(texts))
            if known is None:
                continue
            for number, one in enumerate(texts):
                with here.dropped.row(f"{file.name} picture {name} text {number}"):
                    text = "" if one.get("illegibility") or one["transcription"] == "###" else one["transcription"]
                    place = polygon(one["points"], (known[0].width, known[0].height))
                    key = f"{name}-{number}"
                    meta = {"image_id": name, "language": one.get("language"), "size_known": here.folder is not None}
                    made = reading("art", key, known, text, place, here, template, **meta)
                    if made is not None:
                        yield made


def _extent(texts: list[dict[str, Any]]) -> tuple[int, int]:
    """The size of the picture that just holds all outlines."""
    corners = [point for one in texts if not isinstance(one, Broken) for point in one["points"]] or [[1, 1]]
    return int(max(p[0] for p in corners)) + 1, int(max(p[1] for p in corners)) + 1
