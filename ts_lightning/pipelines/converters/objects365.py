"""Objects365: COCO's layout in zhiyuan_objv2_{train,val}.json, photos in patches."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.coco import TASKS, photos
from ts_lightning.pipelines.converters.source import Pictures, need


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, tasks: tuple[str, ...] | None = None
) -> Iterator[Sample]:
    """Samples as `coco.read` makes them; `path` is the folder of zhiyuan_objv2_*.json, or one such file.

    A photo `images/v1/patch8/NAME.jpg` is looked for below train/, val/, images/ and by its patch.
    """
    path, pictures = Path(path), pictures or Pictures()
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        patterns = (f"zhiyuan_objv2_{split or '*'}.json", f"annotations/zhiyuan_objv2_{split or '*'}.json")
        need(path, *patterns)
        files = sorted(file for pattern in patterns for file in path.glob(pattern))
    else:
        files = [path]
    for file in files:
        yield from photos(pictures.under(folder, *_patches(folder)), file, None, tasks or TASKS, None, "objects365")


def _patches(folder: Path) -> list[str]:
    """Folders below `folder` that hold photos: patch0 ... patch50, with or without train/ or images/ above them."""
    found = {str(p.relative_to(folder)) for depth in ("patch*", "*/patch*", "*/*/patch*") for p in folder.glob(depth)}
    return [*sorted(found), "train", "val", "images"]
