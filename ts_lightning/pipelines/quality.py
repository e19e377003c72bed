"""What generated data is worth: the statistics of Table A.1, acceptance by the rule of section 4, a page to mark."""

import base64
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, REGION_MARK, Sample
from ts_lightning.pipelines.claims import Findings, findings
from ts_lightning.pipelines.english import plural
from ts_lightning.pipelines.scenes import Scene, picture_key, stem

_WORD = re.compile(r"[a-z]+")
PAPER = {
    "Shikra's data": {"images": 883, "words": 7106, "turns": "1-4", "objects": 23692, "qa_pairs": 5922},
    "SCOUT": {"images": 30000, "words": 15524, "turns": None, "objects": 654314, "qa_pairs": 3113763},
}


def verdict(sample: Sample, scene: Scene) -> Findings:
    """What section 4's rule finds in a record: names and boxes at IoU 0.5, relations, places, counts, absence.

    Reads the record as written and the annotations, nothing of how it was made. What the annotations don't say is
    unchecked, and never counts as right.
    """
    text = sample.turns[-1].text
    found = findings(text, [region.box for region in sample.regions], scene)
    if "negative" in sample.tags:
        absent = re.search(r"Step 1: Find (?:the |a |an )?(.+?)(?: in the image)?\.", text)
        words = {stem(word) for word in _WORD.findall(absent[1].lower())} if absent else set()
        if any(words and words <= {stem(w) for w in _WORD.findall(t.name.lower())} for t in scene.things):
            found.wrong.append("the thing that is said to be absent is annotated")
    return found


def report(
    samples: Iterable[Sample], scenes: Mapping[str, Scene], dropped: Mapping[str, int], seed: int = 0, shown: int = 100
) -> tuple[dict[str, Any], list[tuple[Sample, list[str]]]]:
    """The figures, and `shown` random samples with their problems. `scenes` by `picture_key`; their bytes are not used.

    Grows with the pictures and the distinct words only.
    """
    words: Counter[str] = Counter()
    forms: set[str] = set()
    names = {tuple(_stems(name)) for scene in scenes.values() for thing in scene.things for name in _both(thing.name)}
    images: dict[str, list[int]] = {}
    turns, reasons, subtasks = Counter[int](), Counter[str](), Counter[str]()
    total, verdicts = 0, Counter[str]()
    random, kept = Random(seed), list[tuple[Sample, list[str]]]()
    for sample in samples:
        total += 1
        subtasks[sample.subtask or ""] += 1
        turns[len(sample.turns) // 2] += 1
        text = " ".join(REGION_MARK.sub(" ", turn.text.replace(IMAGE_MARK, "")) for turn in sample.turns)
        words.update(_WORD.findall(text.lower()))
        forms.add(form(sample.turns[0].text.replace(IMAGE_MARK, ""), names))
        picture = picture_key(sample.images[0].name, sample.image_bytes[0])
        counts = images.setdefault(picture, [0, 0])
        counts[0] += sum(len(region.boxes or [region.box]) for region in sample.regions)
        counts[1] += len(sample.turns) // 2
        wrong: list[str] = []
        if (scene := scenes.get(picture)) is not None:
            found = verdict(sample, scene)
            verdicts[found.verdict] += 1
            wrong = found.wrong + [f"unchecked: {one}" for one in found.unchecked]
            reasons.update(re.sub(r"\d[\d.]*|\{.*|'.*'", "#", one).split(": said")[0] for one in wrong)
        if len(kept) < shown:
            kept.append((sample, wrong))
        elif (place := random.randrange(total)) < shown:
            kept[place] = (sample, wrong)
    negatives = subtasks.get("negative", 0)
    figures: dict[str, Any] = {
        "table_a1": {
            "images": len(images),
            "words": len(words),
            "turns": f"{min(turns, default=0)}-{max(turns, default=0)}",
            "objects": sum(one[0] for one in images.values()),
            "qa_pairs": sum(number * count for number, count in turns.items()),
        },
        "paper": PAPER,
        "samples": total,
        "question_forms": len(forms),
        "subtasks": dict(subtasks),
        "negative_share": round(negatives / total, 4) if total else 0.0,
        "accepted": {
            "held_against_annotations": (held := sum(verdicts.values())),
            **{name: verdicts[name] for name in ("right", "unchecked", "wrong")},
            "share_right": round(verdicts["right"] / held, 4) if held else None,
        },
        "problems": dict(reasons),
        "dropped": dict(dropped),
        "objects_per_image": _histogram(one[0] for one in images.values()),
        "questions_per_image": _histogram(one[1] for one in images.values()),
        "turns": {str(k): v for k, v in sorted(turns.items())},
        "most_frequent_words": dict(words.most_common(30)),
    }
    return figures, kept


def form(question: str, names: set[tuple[str, ...]]) -> str:
    """A question without the things that it names, up to its question mark: `where is the _`."""
    words, out, at = _stems(question.split("?")[0]), [], 0
    while at < len(words):
        length = next((n for n in (3, 2, 1) if tuple(words[at : at + n]) in names), 0)
        out.append("_" if length else words[at])
        at += max(1, length)
    return re.sub(r"\b(leftmost|rightmost|largest) _", "_", " ".join(out)).replace(" an _", " a _")


def _both(name: str) -> tuple[str, str]:
    return name, plural(name)


def _stems(text: str) -> list[str]:
    return [stem(word) for word in _WORD.findall(text.lower())]


def _histogram(values: Iterable[int]) -> dict[str, int]:
    edges = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    out: Counter[str] = Counter()
    for value in values:
        low = max(edge for edge in edges if edge <= value)
        high = next((edge - 1 for edge in edges if edge > low), None)
        out[f"{low}-{high}" if high is None or high > low else str(low)] += 1
    return dict(sorted(out.items(), key=lambda one: int(one[0].split("-")[0])))


def marked(marks: Mapping[str, bool]) -> dict[str, Any]:
    """The accuracy of a person's marks (record key -> right), as in the paper's check of 100 samples."""
    right = sum(map(bool, marks.values()))
    return {"marked": len(marks), "right": right, "accuracy": round(right / len(marks), 4) if marks else None}


def page(figures: dict[str, Any], shown: list[tuple[Sample, list[str]]], draw: Callable[[Sample], bytes]) -> str:
    """One HTML file: figures, drop reasons, samples as pictures to mark right or wrong (saved as marks.json)."""
    columns = list(figures["table_a1"])
    compared = {"these data": figures["table_a1"], **{f"paper: {name}": one for name, one in PAPER.items()}}
    rows = [[name, *(one.get(column) for column in columns)] for name, one in compared.items()]
    lists = {
        "Left out": "dropped",
        "Problems": "problems",
        "Kinds": "subtasks",
        "Objects per image": "objects_per_image",
        "Questions per image": "questions_per_image",
    }
    tables = [f"<h2>{title}</h2>{_table([*figures[name].items()])}" for title, name in lists.items()]
    held = figures["accepted"]
    total = held["held_against_annotations"]
    said = ", ".join(f"{100 * held[name] / total:.1f}% {name}" for name in ("right", "unchecked", "wrong") if total)
    said = f"{said} of {total}" if total else "no annotations to hold them against"
    hand = figures.get("by_hand")
    return _PAGE.format(
        table=_table([["", *(column.replace("_", " ") for column in columns)], *rows]),
        lists="".join(tables),
        cards="".join(_card(sample, wrong, draw) for sample, wrong in shown),
        accepted=said,
        negatives=f"{100 * figures['negative_share']:.1f}%",
        forms=figures["question_forms"],
        hand=f"{hand['right']} of {hand['marked']} right" if hand else "no marks yet",
    )


def _table(rows: Iterable[Iterable[Any]]) -> str:
    """Cells as HTML; what is not known is left blank."""
    cells = ["".join(f"<td>{html.escape('' if v is None else str(v))}</td>" for v in row) for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _card(sample: Sample, wrong: list[str], draw: Callable[[Sample], bytes]) -> str:
    picture = base64.b64encode(draw(sample)).decode()
    note = html.escape("; ".join(wrong) or "measured and right")
    key = html.escape(sample.key)
    return (
        f'<figure><img alt="{key}" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{key}<br><small>{note}</small><br>"
        f'<label><input type="radio" name="{key}" value="1">right</label> '
        f'<label><input type="radio" name="{key}" value="0">wrong</label></figcaption></figure>'
    )


def to_json(figures: dict[str, Any]) -> str:
    """The figures as JSON."""
    return json.dumps(figures, indent=1, ensure_ascii=False) + "\n"


_PAGE = """<!doctype html><meta charset="utf-8"><title>Quality of generated data</title><style>
body{{font:15px system-ui;margin:24px;max-width:1500px}}table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;
padding:2px 8px;text-align:left}}figure{{display:inline-block;margin:6px;vertical-align:top;width:480px}}
img{{width:480px}}
</style><h1>Quality of generated data</h1><p>Held against the annotations (names, boxes, relations): <b>{accepted}</b>.
Negatives: {negatives}. Forms of question: {forms}.
By hand: <b id="marks">{hand}</b> <button onclick="save()">save marks.json</button></p>
{table}{lists}<h2>Random samples</h2>{cards}<script>
const marks={{}};document.addEventListener('change',e=>{{marks[e.target.name]=e.target.value==='1';
const n=Object.values(marks);const r=n.filter(x=>x).length;
document.getElementById('marks').textContent=r+' of '+n.length+' right ('+(100*r/n.length).toFixed(1)+'%)'}});
function save(){{const a=document.createElement('a');
a.href=URL.createObjectURL(new Blob([JSON.stringify(marks,null,1)]));a.download='marks.json';a.click()}}</script>
"""
