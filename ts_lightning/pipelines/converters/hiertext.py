"""HierText: lines of text with outlines."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import listed, load_json, mapped, name_of
from ts_lightning.pipelines.converters.region_text import polygon, reading
from ts_lightning.pipelines.converters.source import Pictures, all_located

WHAT = "HierText's annotations"


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    level: str = "line",
    template: str = "mgvlid/hier_text",
) -> Iterator[Sample]:
    """One question for each legible line (or "word") with its polygon.

    `path` is the folder with gt/{train,validation}.jsonl and the pictures, or one such file (a single JSON object in
    spite of its name).
    """
    if level not in ("line", "word"):
        raise ValueError(f"level: seen {level!r}, expected line or word")
    pictures, name = pictures or Pictures(), f"{split or '*'}.jsonl"
    files, folder = all_located(path, f"gt/{name}", name)
    for file in files:
        here = pictures.under(folder, file.stem, "images", f"../{file.stem}")
        rows = listed(
            mapped(load_json(file, WHAT), file, WHAT).get("annotations"), file, ("image_id", "paragraphs"), WHAT
        )
        for row in rows:
            with here.dropped.row(f"{file.name} picture {name_of(row, 'image_id')}"):
                known = here.get(f"{row['image_id']}.jpg", (row["image_width"], row["image_height"]))
                if known is None:
                    continue
                size = (known[0].width, known[0].height)
                lines = [line for paragraph in row["paragraphs"] for line in paragraph["lines"]]
                parts = lines if level == "line" else [word for line in lines for word in line["words"]]
                for number, part in enumerate(parts):
                    with here.dropped.row(f"{file.name} picture {row['image_id']} {level} {number}"):
                        text = part["text"] if part.get("legible", True) else ""
                        key = f"{row['image_id']}-{level}-{number}"
                        place = polygon(part["vertices"], size)
                        made = reading("hiertext", key, known, text, place, here, template, image_id=row["image_id"])
                        if made is not None:
                            yield made
