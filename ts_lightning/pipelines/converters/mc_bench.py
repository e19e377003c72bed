"""MC-Bench: what a text means in two pictures, in groups of boxes; in some pairs nothing."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.grounding.steps import REJECTION
from ts_lightning.pipelines.converters.files import listed, load_json, mapped, name_of
from ts_lightning.pipelines.converters.mig_bench import all_pictures
from ts_lightning.pipelines.converters.source import (
    Pictures,
    by_id,
    clean,
    from_xywh,
    located,
    make,
    pick,
    whole,
)

WHAT = "MC-Bench's images, annotations and descriptions"


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One question a description of mc-bench_*.json; `path` is its folder (MC-Bench_images/ beside it), or the file.

    Boxes are annotated in groups (`category_id`): instances of one group belong together. `meta.objects` has them for
    scoring as the file has them, [picture (0-based), group, x, y, width, height] in pixels, and `meta.image_ids` the
    file's numbers of the two pictures. MC-Bench_coco_format.json has the same boxes and no styles: it is not read.
    """
    file, folder = located(path, "mc-bench_v*.json", "mc-bench*.json")
    here = (pictures or Pictures()).under(folder, "MC-Bench_images", "mc-bench_images", "images")
    data = mapped(load_json(file, WHAT), file, WHAT)
    images = listed(data.get("images"), file, ("id", "file_name"), WHAT)
    named = by_id(images, "id", file, here.dropped)
    boxes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in whole(listed(data.get("annotations"), file, ("text_id", "bbox"), WHAT), file, here.dropped):
        with here.dropped.row(f"{file.name} annotation {one.get('id')}"):
            boxes[one["text_id"]].append(one)
    here.naming(one["file_name"] for one in named.values())
    for row in listed(data.get("descriptions"), file, ("id", "images_id", "text"), WHAT):
        with here.dropped.row(f"{file.name} description {name_of(row, 'id')}"):
            ids = list(row["images_id"])
            known = all_pictures(here, [named[number]["file_name"] for number in ids])
            if known is None:
                continue
            phrase, key = clean(row["text"]), f"mc-bench-{row['id']}"
            regions, objects = [], []
            for one in sorted(boxes[row["id"]], key=lambda one: ids.index(one["image_id"])):
                image = ids.index(one["image_id"])
                size = (known[image][0].width, known[image][0].height)
                box = here.dropped.box(from_xywh(one["bbox"]), size, f"{file.name} annotation {one.get('id')}")
                if box is None:  # without one of its boxes a group means something else
                    break
                group = int(one["category_id"])
                regions.append(SampleRegion(image=image, phrase=phrase, category=f"group {group}", box=box))
                objects.append([image, group, *one["bbox"]])
            if len(regions) < len(boxes[row["id"]]):
                continue
            said = [
                f"Image-{image + 1}: " + " ".join(f"{{region:{i}}}" for i in here_are)
                for image in range(len(ids))
                if (here_are := [i for i, region in enumerate(regions) if region.image == image])
            ]
            yield make(
                "mc_bench",
                key,
                known,
                [(pick("referring_pictures", key, phrase=phrase), ". ".join(said) or REJECTION)],
                task="grounding",
                subtask=row.get("text_style"),
                tags=[] if regions else ["negative"],
                regions=regions,
                answer=list(range(len(regions))) if regions else Answer(),
                meta={"question_id": row["id"], "image_ids": ids, "objects": objects},
            )
