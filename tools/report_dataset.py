"""Quality report of generated shards: report.json and report.html with 100 random samples to mark right or wrong.

python tools/report_dataset.py 'DIR/scout-*.tar' --annotations 'shards/*.tar' --out DIR [--marks marks.json]
"""

import argparse
import io
import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

from ts_lightning.data.sample import REGION_MARK, Sample
from ts_lightning.grounding.steps import step_spans
from ts_lightning.pipelines.generate import annotated, notes, records
from ts_lightning.pipelines.quality import marked, page, report, to_json
from ts_lightning.reports.drawing import Picture, draw_picture


def draw(sample: Sample) -> bytes:
    """The picture with its boxes in one colour a step, question and answer below, as JPEG."""
    text = sample.turns[-1].text
    steps = [
        [box for i in map(int, REGION_MARK.findall(text[a:b])) if (box := sample.regions[i].box)]
        for a, b in step_spans(text)
    ]
    question = sample.turns[0].text.replace("<image>\n", "")
    with Image.open(io.BytesIO(sample.image_bytes[0])) as image:
        shown = ImageOps.exif_transpose(image).convert("RGB")
    words = " ".join(REGION_MARK.sub("", text).split())
    stream = io.BytesIO()
    draw_picture(Picture(shown, question, words, predicted=steps)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+")
    parser.add_argument(
        "--annotations", nargs="*", default=[], help="the input shards; without them nothing is checked"
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--marks", help="marks.json, saved from the page")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=100)
    args = parser.parse_args()
    try:
        out = Path(args.out)
        dropped: Counter[str] = Counter()
        for note in notes(out, "*"):
            dropped.update(note.get("dropped", {}))
        scenes = annotated(args.annotations)
        figures, shown = report(records(args.shards), scenes, dropped, args.seed, args.shown)
        if args.marks:
            figures["by_hand"] = marked(json.loads(Path(args.marks).read_text()))
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.html").write_text(page(figures, shown, draw), encoding="utf-8")
        (out / "report.json").write_text(to_json(figures), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps({k: figures[k] for k in ("table_a1", "samples", "negative_share", "accepted", "problems")}, indent=1)
    )
    print(out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
