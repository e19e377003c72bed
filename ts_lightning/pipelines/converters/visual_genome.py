"""Visual Genome: objects with attributes, relationships, and described regions."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.files import listed, load_json
from ts_lightning.pipelines.converters.source import (
    Dropped,
    Picture,
    Pictures,
    by_id,
    clean,
    coco_name,
    make,
    need,
    pick,
    without_annotations,
)

TASKS = ("detection", "region_caption")


def read(path: str | Path, pictures: Pictures | None = None, tasks: tuple[str, ...] = TASKS) -> Iterator[Sample]:
    """Samples of `path`, the folder with image_data.json and objects.json.

    "detection" is a record a picture with all its objects; `meta.attributes` are lists by region and
    `meta.relationships` triples [subject region, predicate, object region], from attributes.json and relationships.json
    where they are. "region_caption" asks for each description of region_descriptions.json about its box.
    """
    folder, pictures = Path(path), pictures or Pictures()
    file = need(folder, "image_data.json")
    listing = _load(file, ("image_id", "width", "height"), "Visual Genome's pictures")
    sizes = by_id(listing, "image_id", file, pictures.dropped)
    here = pictures.under(folder, "VG_100K", "VG_100K_2", "images", "images2")
    attributes = _optional(folder / "attributes.json", "attributes", pictures.dropped)
    relations = _optional(folder / "relationships.json", "relationships", pictures.dropped)
    described = _optional(folder / "region_descriptions.json", "regions", pictures.dropped)
    objects = _load(need(folder, "objects.json"), ("objects",), "Visual Genome's objects")
    without_annotations([here], [(here, map(str, sizes))])
    seen = set()
    for place, row in enumerate(objects):
        with here.dropped.row(f"objects.json item {place}"):
            number = int(row.get("image_id", row.get("id", -1)))
            if number not in sizes:
                here.dropped.note("annotations of pictures that image_data.json does not list", number)
                continue
            if number in seen:
                here.dropped.note("pictures whose id comes twice", number)
                continue
            seen.add(number)
            size = (sizes[number]["width"], sizes[number]["height"])
            coco = sizes[number].get("coco_id")
            known = here.get(f"{number}.jpg", size, None if coco is None else coco_name(coco))
            if known is None:
                continue
            if "detection" in tasks:
                said = attributes.get(number, [])
                yield from _objects(number, known, row["objects"], said, relations.get(number, []), here)
            if "region_caption" in tasks:
                yield from _regions(number, known, described.get(number, []), here)


def _load(path: Path, keys: tuple[str, ...], what: str) -> list[dict[str, Any]]:
    return listed(load_json(path, what), path, keys, what)


def _optional(path: Path, name: str, dropped: Dropped) -> dict[int, list[dict[str, Any]]]:
    if not path.is_file():
        return {}
    found = {}
    for place, row in enumerate(_load(path, (name,), f"Visual Genome's {name}")):
        with dropped.row(f"{path.name} item {place}"):
            number, known = int(row.get("image_id", row.get("id", -1))), row[name]
            if not isinstance(known, list):
                raise TypeError(f"seen {str(known)[:40]!r}, expected a list of {name}")
            found[number] = known
    return found


def _id(one: Any, key: str) -> Any:
    return one.get(key) if isinstance(one, dict) else None


def _name(one: dict[str, Any]) -> str:
    name = clean((one.get("names") or [one.get("name", "")])[0]).strip()
    if not name:
        raise ValueError("no name")
    return name


def _objects(
    number: int,
    picture: Picture,
    objects: list[dict[str, Any]],
    attributes: list[dict[str, Any]],
    relations: list[dict[str, Any]],
    pictures: Pictures,
) -> Iterator[Sample]:
    words: dict[Any, list[str]] = defaultdict(list)
    for one in attributes:
        with pictures.dropped.row(f"picture {number} attributes"):
            words[one.get("object_id")] += [clean(word).strip() for word in one.get("attributes") or []]
    regions: list[SampleRegion] = []
    index: dict[Any, int] = {}
    for one in objects:
        with pictures.dropped.row(f"picture {number} object {_id(one, 'object_id')}"):
            size = (picture[0].width, picture[0].height)
            corners = (one["x"], one["y"], one["x"] + one["w"], one["y"] + one["h"])
            box = pictures.dropped.box(corners, size, f"picture {number} object {one.get('object_id')}")
            if box is None:
                continue
            if one.get("object_id") in index:
                pictures.dropped.note("objects whose id comes twice", one.get("object_id"))
                continue
            name = _name(one)
            index[one.get("object_id")] = len(regions)
            for merged in one.get("merged_object_ids") or []:
                index.setdefault(merged, len(regions))
            phrase = " ".join([*dict.fromkeys(words[one.get("object_id")]), name])
            regions.append(SampleRegion(phrase=phrase, category=name, area_px=float(one["w"] * one["h"]), box=box))
    if not regions:
        pictures.dropped.note("pictures without objects", number)
        return
    triples = []
    for one in relations:
        with pictures.dropped.row(f"picture {number} relationship {_id(one, 'relationship_id')}"):
            ends = [index.get(one[side].get("object_id")) for side in ("subject", "object")]
            if None in ends:
                name = f"picture {number} relationship {one.get('relationship_id')}"
                pictures.dropped.note("relationships of objects that are left out", name, stops=False)
                continue
            triples.append([ends[0], clean(one.get("predicate", "")).strip().lower(), ends[1]])
    key = f"{number}-objects"
    said = ", ".join(f"{region.category} {{region:{i}}}" for i, region in enumerate(regions)) + "."
    yield make(
        "visual_genome",
        key,
        [picture],
        [(pick("detection", key), said)],
        task="grounding",
        subtask="detection",
        regions=regions,
        answer=[*range(len(regions))],
        meta={
            "image_id": number,
            "attributes": [sorted(set(words.get(known, []))) for known in _by_region(index, len(regions))],
            "relationships": triples,
        },
    )


def _by_region(index: dict[Any, int], count: int) -> list[Any]:
    first: dict[int, Any] = {}
    for known, region in index.items():
        first.setdefault(region, known)
    return [first[i] for i in range(count)]


def _regions(number: int, picture: Picture, regions: list[dict[str, Any]], pictures: Pictures) -> Iterator[Sample]:
    seen = set()
    for one in regions:
        with pictures.dropped.row(f"picture {number} region {_id(one, 'region_id')}"):
            corners = (one["x"], one["y"], one["x"] + one["width"], one["y"] + one["height"])
            size = (picture[0].width, picture[0].height)
            box = pictures.dropped.box(corners, size, f"picture {number} region {one['region_id']}")
            if box is None:
                continue
            if one["region_id"] in seen:
                pictures.dropped.note("regions whose id comes twice", one["region_id"])
                continue
            seen.add(one["region_id"])
            key, phrase = f"{number}-region-{one['region_id']}", clean(one["phrase"])
            yield make(
                "visual_genome",
                key,
                [picture],
                [(pick("region_caption", key, region="{region:0}"), phrase)],
                subtask="region_caption",
                tags=["region", "box"],
                regions=[SampleRegion(phrase=phrase, area_px=float(one["width"] * one["height"]), box=box)],
                answer=phrase,
                meta={"image_id": number, "region_id": one["region_id"]},
            )
