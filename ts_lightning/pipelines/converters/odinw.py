"""ODinW-13: thirteen detection sets in COCO's layout; one question a photo names all classes of its set."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters.coco import photos
from ts_lightning.pipelines.converters.coco_file import Id, Item, padded
from ts_lightning.pipelines.converters.source import Picture, Pictures, make, pick

# The sets and where their validation part lies below the root, as the detectors' evaluations name them.
PLACES = {
    "AerialMaritimeDrone": "AerialMaritimeDrone/large/valid",
    "Aquarium": "Aquarium/Aquarium Combined.v2-raw-1024.coco/valid",
    "CottontailRabbits": "CottontailRabbits/valid",
    "EgoHands": "EgoHands/generic/mini_val",
    "NorthAmericaMushrooms": "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco/valid",
    "Packages": "Packages/Raw/valid",
    "PascalVOC": "PascalVOC/valid",
    "Raccoon": "Raccoon/Raccoon.v2-raw.coco/valid",
    "ShellfishOpenImages": "ShellfishOpenImages/raw/valid",
    "VehiclesOpenImages": "VehiclesOpenImages/416x416/mini_val",
    "pistols": "pistols/export",
    "pothole": "pothole/valid",
    "thermalDogsAndPeople": "thermalDogsAndPeople/valid",
}
_FILE = "annotations_without_background.json"
MISSING = "data sets of the thirteen that are not there"


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One question a photo of the sets below `path` (the folder of odinw_35's archives, unpacked).

    `subtask` is the set. `meta.classes` are its classes, and `meta.objects` the photo's for scoring as the file has
    them: [class (0-based), x, y, width, height, area, crowd] in pixels. Sets that are not there are counted.
    """
    root, pictures = Path(path), pictures or Pictures()
    found = 0
    for name, place in PLACES.items():
        folder = root / place
        file = folder / (f"val_{_FILE}" if name == "pistols" else _FILE)
        if not file.is_file():
            pictures.dropped.note(MISSING, name)
            continue
        found += 1
        here = Pictures(pictures.folder or folder, pictures.excluded, pictures.dropped, (place,))
        yield from photos(here, file, None, (), None, "odinw", partial(_question, name))
    if not found:
        raise ValueError(f"{root}: seen none of the sets, expected {next(iter(PLACES.values()))}/{_FILE} ... in it")


def _question(
    name: str,
    photo: Id,
    picture: Picture,
    objects: Sequence[tuple[Item, Box | None]],
    names: Mapping[Id, str],
) -> Iterator[Sample]:
    classes = list(dict.fromkeys(names.values()))
    numbers = {one: number for number, one in enumerate(classes)}
    known = [
        [numbers[names[one["category_id"]]], *one["bbox"], one["area"], one["iscrowd"]]
        for one, box in objects
        if box is not None
    ]
    kept = [(names[one["category_id"]], box, one) for one, box in objects if box is not None and not one["iscrowd"]]
    kept.sort(key=lambda item: numbers[item[0]])
    if not kept:
        return
    regions = [SampleRegion(phrase=kind, category=kind, area_px=one["area"], box=box) for kind, box, one in kept]
    there = [kind for kind in classes if any(kind == one[0] for one in kept)]
    said = [f"{kind} " + " ".join(f"{{region:{i}}}" for i, one in enumerate(kept) if one[0] == kind) for kind in there]
    key = f"{name}-{padded(photo)}"
    yield make(
        "odinw",
        key,
        [picture],
        [(pick("classes", key, classes=", ".join(classes)), ", ".join(said) + ".")],
        task="grounding",
        subtask=name,
        regions=regions,
        answer=list(range(len(regions))),
        meta={"image_id": photo, "classes": classes, "objects": known},
    )
