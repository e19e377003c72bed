"""VizWiz-VQA-Grounding: questions of blind people with the outline of the evidence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.files import load_json, mapped
from ts_lightning.pipelines.converters.region_text import polygon
from ts_lightning.pipelines.converters.source import NO_BOX, Pictures, clean, located, make, pick
from ts_lightning.pipelines.converters.vqa import by_frequency

WHAT = "VizWiz-VQA-Grounding's rows by picture"


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str = "val",
    template: str = "mgvlid/vizwiz",
    region: str = "box",
) -> Iterator[Sample]:
    """One question a picture about the region of the answer; `path` is the folder of SPLIT_grounding.json, or the file.

    `region` is "box" (around the outline, as ChatSpot asks) or "polygon" (the outline itself).
    """
    if region not in ("box", "polygon"):
        raise ValueError(f"region: seen {region!r}, expected box or polygon")
    file, folder = located(path, f"{split}_grounding.json", f"{split}.json")
    here = (pictures or Pictures()).under(folder, split, "images")
    for name, one in mapped(load_json(file, WHAT), file, WHAT).items():
        with here.dropped.row(f"{file.name} picture {name}"):
            size = (one["width"], one["height"]) if "width" in one else None
            known = here.get(name, size)
            if known is None:
                continue
            points = [(p["x"], p["y"]) for p in one.get("answer_grounding") or []]
            outline = polygon(points, (known[0].width, known[0].height))
            if outline is None:
                here.dropped.note(NO_BOX, name)
                continue
            xs, ys = zip(*outline, strict=True)
            place: dict[str, Any] = {"polygon": outline}
            if region == "box":
                place = {"box": (min(xs), min(ys), max(xs), max(ys))}
            said = by_frequency([clean(answer) for answer in one.get("answers") or []])
            answer = clean(one.get("most_common_answer") or (said[0] if said else ""))
            key = f"vizwiz-{Path(name).stem}"
            yield make(
                "vizwiz_grounding",
                key,
                [known],
                [(pick(template, key, question=clean(one["question"]), region="{region:0}"), answer)],
                subtask="region_vqa",
                tags=["region", region, "contains"],
                regions=[SampleRegion(**place)],
                answer=answer,
                answers=[answer, *(a for a in dict.fromkeys(said) if a != answer)],
                meta={"question_id": name, "question": one["question"]},
            )
