"""`ts-lightning data report`."""

import io
import json
import re
from collections import Counter
from pathlib import Path

from ts_lightning.data.paths import expand
from ts_lightning.data.sample import REGION_MARK, Sample
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.steps import step_spans
from ts_lightning.grounding.still_pictures import open_still, upright
from ts_lightning.pipelines.generate import annotated, notes, records
from ts_lightning.pipelines.quality import marked, page, to_json
from ts_lightning.pipelines.quality import report as figures_of
from ts_lightning.reports.drawing import draw_numbered


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
    for folder in dict.fromkeys(Path(path).parent for one in shards for path in expand(one)):
        for note in notes(folder, "*"):
            dropped.update(note.get("dropped", {}))
    figures, chosen = figures_of(records(shards), annotated(annotations), dropped, seed, shown)
    if marks is not None:
        figures["by_hand"] = marked(json.loads(marks.read_text()))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page(figures, chosen, draw), encoding="utf-8")
    (out / "report.json").write_text(to_json(figures), encoding="utf-8")
    told = ("table_a1", "samples", "question_forms", "negative_share", "accepted", "problems")
    print(json.dumps({name: figures[name] for name in told}, indent=1))
    print(out / "report.html")


def draw(sample: Sample) -> bytes:
    """The picture with every box in its own colour and number, question and whole answer below, as JPEG.

    A box that several steps name has one number; of a region of several boxes each has its own.
    """
    text = sample.turns[-1].text
    numbers: dict[Box, int] = {}

    def marks(match: re.Match[str]) -> str:
        boxes = sample.regions[int(match[1])].all_boxes
        return "".join(f"[{numbers.setdefault(box, len(numbers) + 1)}]" for box in boxes)

    lines = [" ".join(REGION_MARK.sub(marks, text[a:b]).split()) for a, b in step_spans(text)]
    question = sample.turns[0].text.replace("<image>\n", "")
    picture = upright(open_still(sample.image_bytes[0])).convert("RGB")
    stream = io.BytesIO()
    draw_numbered(picture, question, lines, list(numbers)).save(stream, "JPEG", quality=80)
    return stream.getvalue()
