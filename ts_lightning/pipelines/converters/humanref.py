"""HumanRef: expressions for people, with all the boxes that each means, or none (rejection)."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.grounding.steps import REJECTION
from ts_lightning.pipelines.converters.files import name_of, rows
from ts_lightning.pipelines.converters.source import Pictures, clean, located, make, pick


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One question a line of annotations.jsonl; `path` is its folder (pictures below images/), or the file.

    `answer_boxes` are xyxy in pixels; the domain `rejection` has none. `meta.people` is the number of
    `candidate_boxes`, all people of the picture. Masks are left out: points are not scored here.
    """
    file, folder = located(path, "annotations.jsonl", "*.jsonl")
    here = (pictures or Pictures()).under(folder, "images")
    for row in rows(file, ("id", "image_name", "referring", "domain", "answer_boxes"), "HumanRef's lines"):
        with here.dropped.row(f"{file.name} id {name_of(row, 'id')}"):
            known = here.get(row["image_name"])
            if known is None:
                continue
            phrase, key = clean(row["referring"]), f"humanref-{row['id']}"
            size, where = (known[0].width, known[0].height), f"{file.name} id {row['id']}"
            boxes = [here.dropped.box(corners, size, where) for corners in row["answer_boxes"]]
            kept = [SampleRegion(phrase=phrase, category="person", box=box) for box in boxes if box is not None]
            if not boxes and row["domain"] != "rejection":
                here.dropped.note("expressions without a box", where)
            if len(kept) < len(boxes) or (not kept and row["domain"] != "rejection"):
                continue
            meta = {"domain": row["domain"], "sub_domain": row.get("sub_domain"), "question_id": row["id"]}
            yield make(
                "humanref",
                key,
                [known],
                [
                    (
                        pick("referring_all", key, phrase=phrase),
                        " ".join(f"{{region:{i}}}" for i in range(len(kept))) or REJECTION,
                    )
                ],
                task="grounding",
                subtask=row["domain"],
                tags=[] if kept else ["negative"],
                regions=kept,
                answer=list(range(len(kept))) if kept else Answer(),
                meta=meta | {"people": len(row.get("candidate_boxes") or [])},
            )
