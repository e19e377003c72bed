"""The named boxes of one photo as questions: one for each name, one for all of a name, one for everything."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.source import Dropped, Picture, make, pick, safe_key

TASKS = ("localization", "detection")
MORE = ("all",)
MOST = 50  # boxes of one answer


def check_tasks(tasks: Sequence[str]) -> None:
    """ValueError for a task that is none."""
    if unknown := set(tasks) - {*TASKS, *MORE}:
        raise ValueError(f"tasks: seen {sorted(unknown)[0]!r}, expected {', '.join((*TASKS, *MORE))}")


def questions(
    source: str,
    key: str,
    picture: Picture,
    regions: Sequence[SampleRegion],
    names: Sequence[str],
    tasks: Sequence[str],
    dropped: Dropped,
    image_id: str,
) -> Iterator[Sample]:
    """Samples of a photo's `regions`; `names` are those of all its objects, also of such whose box is none.

    "localization" asks for each name that occurs once, "all" for all boxes of one that occurs more than once,
    "detection" for all objects.
    """
    count, meta = Counter(names), {"image_id": image_id}

    def grounding(subtask: str, key: str, asked: tuple[str, str], regions: Sequence[SampleRegion]) -> Sample:
        fields: dict[str, Any] = {"regions": [*regions], "answer": [*range(len(regions))]}
        return make(source, key, [picture], [asked], task="grounding", subtask=subtask, meta=meta, **fields)

    for region in regions if "localization" in tasks else ():
        name = str(region.category)
        if count[name] == 1:
            one = f"{key}-{safe_key(name)}"
            yield grounding("localization", one, (pick("localization", one, phrase=name), "{region:0}"), [region])
        elif "all" not in tasks:
            reason = "categories that occur more than once in a photo (no localization question)"
            dropped.note(reason, f"{image_id} {name}", stops=False)
    for name in sorted(set(count)) if "all" in tasks else ():
        boxes = [region.box for region in regions if region.category == name and region.box is not None]
        if 1 < len(boxes) == count[name] <= MOST:
            every = f"{key}-all-{safe_key(name)}"
            asked = (pick("localization_all", every, phrase=name), "{region:0}")
            yield grounding("localization_all", every, asked, [SampleRegion(phrase=name, category=name, boxes=boxes)])
    if "detection" in tasks and regions:
        said = ", ".join(f"{region.category} {{region:{i}}}" for i, region in enumerate(regions)) + "."
        yield grounding("detection", f"{key}-objects", (pick("detection", f"{key}-objects"), said), regions)
