"""LVIS: COCO's layout, with photos named by their address in COCO's folders."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.coco import TASKS, Subset, photos
from ts_lightning.pipelines.converters.source import Pictures, all_located


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    tasks: tuple[str, ...] | None = None,
    max_objects: int | None = None,
    count_by: str = "categories",
    crowd: str = "exclude",
) -> Iterator[Sample]:
    """Samples as `coco.read` makes them; `path` is the folder of lvis_v1_{train,val}.json, or one such file.

    Photos lie in train2017 and val2017 beside it. LVIS annotates a federated choice of categories: a photo may hold
    more objects than are annotated. A category of which not all objects of a photo are annotated is not asked for, and
    `meta` of a detection record says `absent` (looked for and not there) and `not_exhaustive`.
    """
    pictures = pictures or Pictures()
    subset = None if max_objects is None else Subset(max_objects, count_by, crowd)
    name = f"lvis_v*_{split or '*'}.json"
    files, folder = all_located(path, name, f"annotations/{name}")
    wanted = tasks or (TASKS if subset is None else TASKS[:1])
    for file in files:
        here = pictures.under(folder, "train2017", "val2017", "test2017")
        yield from photos(here, file, None, wanted, subset, "lvis")
