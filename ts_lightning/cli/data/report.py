"""`ts-lightning data report`."""

import io
import json
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

from ts_lightning.data.sample import REGION_MARK, Sample
from ts_lightning.grounding.steps import step_spans
from ts_lightning.pipelines.generate import annotated, notes, records
from ts_lightning.pipelines.quality import marked, page, to_json
from ts_lightning.pipelines.quality import report as figures_of
from ts_lightning.reports.drawing import Picture, draw_picture


def report(
    *shards: str,
    out: Path,
    annotations: list[str] = (),  # type: ignore[assignment]
    marks: Path | None = None,
    seed: int = 0,
    shown: int = 100,
) -> None:
    """The quality of generated shards: report.json, and report.html with random samples to mark right or wrong.

        ts-lightning data report 'DIR/scout-*.tar' --annotations 'shards/*.tar' --out DIR

    Args:
        shards: generated tars or patterns
        out: folder for the report
        annotations: the input shards; without them nothing is checked
        marks: marks.json, saved from the page
        seed: of the choice of samples
        shown: how many samples the page has
    """
    dropped: Counter[str] = Counter()
    for note in notes(out, "*"):
        dropped.update(note.get("dropped", {}))
    figures, chosen = figures_of(records(shards), annotated(annotations), dropped, seed, shown)
    if marks is not None:
        figures["by_hand"] = marked(json.loads(marks.read_text()))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page(figures, chosen, draw), encoding="utf-8")
    (out / "report.json").write_text(to_json(figures), encoding="utf-8")
    told = ("table_a1", "samples", "negative_share", "accepted", "problems")
    print(json.dumps({name: figures[name] for name in told}, indent=1))
    print(out / "report.html")


def draw(sample: Sample) -> bytes:
    """The picture with its boxes in one colour a step, question and answer below, as JPEG."""
    text = sample.turns[-1].text
    steps = [
        [box for i in map(int, REGION_MARK.findall(text[a:b])) if (box := sample.regions[i].box)]
        for a, b in step_spans(text)
    ]
    question = sample.turns[0].text.replace("<image>\n", "")
    with Image.open(io.BytesIO(sample.image_bytes[0])) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    words = " ".join(REGION_MARK.sub("", text).split())
    stream = io.BytesIO()
    draw_picture(Picture(picture, question, words, predicted=steps)).save(stream, "JPEG", quality=80)
    return stream.getvalue()
