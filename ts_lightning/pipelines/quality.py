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
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.pipelines.scenes import Scene, stem

_WORD = re.compile(r"[a-z]+")
_HOW = "to the left of|to the right of|above|below|larger than|smaller than"
_SIDE = re.compile(rf"\{{region:(\d+)\}} is ({_HOW}) the [\w -]+?\s?\{{region:(\d+)\}}")
_PLACE = re.compile(r"\{region:(\d+)\} is in the ((?:top |bottom )?(?:left|right)|top|bottom|center) of the image")
_COUNT = re.compile(r"boxes ((?:\{region:\d+\}(?:, )?)+) is (\w+)")
_NAMED = re.compile(r"(?:the|a|an|every) ([a-z][\w' -]*?)\s?(?:boxes )?\{region:(\d+)\}", re.IGNORECASE)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PAPER = {
    "Shikra's data": {"images": 883, "words": 7106, "turns": "1-4", "objects": 23692, "qa_pairs": 5922},
    "SCOUT": {"images": 30000, "words": 15524, "turns": None, "objects": 654314, "qa_pairs": 3113763},
}


def problems(sample: Sample, scene: Scene) -> list[str]:
    """What section 4's rule finds wrong: boxes below IoU 0.5 with what they name, relations that the boxes deny.

    Reads the record as written and the annotations, nothing of how it was made. Names are compared where the
    annotations know them: a phrase that names no annotated category is held against all boxes.
    """
    found = []
    text = sample.turns[-1].text
    names: dict[int, str] = {}
    for match in _NAMED.finditer(text):
        names.setdefault(int(match[2]), match[1].strip().lower())
    for i, region in enumerate(sample.regions):
        box = region.box
        if box is None:
            continue
        # A name may carry words that single it out: "leftmost person" is a person.
        known = [thing for thing in scene.things if i in names and _ends_with(names[i], thing.name)]
        best = max((iou(box, thing.box) for thing in known or scene.things), default=0.0)
        if best < 0.5:
            found.append(f"box {i} ({names.get(i, 'unnamed')}) has IoU {best:.2f} with the annotations")
    found += [f"relation is not so: {match[0]}" for match in _SIDE.finditer(text) if not _holds(match, sample)]
    for match in _PLACE.finditer(text):
        box = sample.regions[int(match[1])].box
        if box is not None and not _in_place(match[2], box):
            found.append(f"place is not so: {match[0]}")
    for match in _COUNT.finditer(text):
        number = len(REGION_MARK.findall(match[1]))
        if number < len(_NUMBERS) and match[2] != _NUMBERS[number]:
            found.append(f"count is not so: {match[0]}")
    if "negative" in sample.tags:
        absent = re.search(r"Step 1: Find (?:the |a |an )?(.+?)(?: in the image)?\.", text)
        words = {stem(word) for word in _WORD.findall(absent[1].lower())} if absent else set()
        if any(words and words <= {stem(w) for w in _WORD.findall(t.name.lower())} for t in scene.things):
            found.append("the thing that is said to be absent is annotated")
    return found


def _ends_with(phrase: str, name: str) -> bool:
    words, wanted = [stem(w) for w in _WORD.findall(phrase)], [stem(w) for w in _WORD.findall(name.lower())]
    return bool(wanted) and words[-len(wanted) :] == wanted


def _holds(match: re.Match[str], sample: Sample) -> bool:
    a, b = sample.regions[int(match[1])].box, sample.regions[int(match[3])].box
    if a is None or b is None:
        return True
    (ax, ay), (bx, by) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b))
    size_a, size_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return {
        "to the left of": ax < bx,
        "to the right of": ax > bx,
        "above": ay < by,
        "below": ay > by,
        "larger than": size_a > size_b,
        "smaller than": size_a < size_b,
    }[match[2]]


def _in_place(name: str, box: Box) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    words = name.split()
    across = 0 if "left" in words else 2 if "right" in words else 1
    down = 0 if "top" in words else 2 if "bottom" in words else 1
    return across / 3 - 0.01 <= x <= (across + 1) / 3 + 0.01 and down / 3 - 0.01 <= y <= (down + 1) / 3 + 0.01


def report(
    samples: Iterable[Sample], scenes: Mapping[str, Scene], dropped: Mapping[str, int], seed: int = 0, shown: int = 100
) -> tuple[dict[str, Any], list[tuple[Sample, list[str]]]]:
    """The figures, and `shown` random samples with their problems. `scenes` by picture name; their bytes are not used.

    Grows with the pictures and the distinct words only.
    """
    words: Counter[str] = Counter()
    images: dict[str, list[int]] = {}
    turns, reasons, subtasks = Counter[int](), Counter[str](), Counter[str]()
    accepted = checked = total = 0
    random, kept = Random(seed), list[tuple[Sample, list[str]]]()
    for sample in samples:
        total += 1
        subtasks[sample.subtask or ""] += 1
        turns[len(sample.turns) // 2] += 1
        text = " ".join(REGION_MARK.sub(" ", turn.text.replace(IMAGE_MARK, "")) for turn in sample.turns)
        words.update(_WORD.findall(text.lower()))
        counts = images.setdefault(sample.images[0].name, [0, 0])
        counts[0] += sum(len(region.boxes or [region.box]) for region in sample.regions)
        counts[1] += len(sample.turns) // 2
        wrong: list[str] = []
        if (scene := scenes.get(sample.images[0].name)) is not None:
            checked += 1
            wrong = problems(sample, scene)
            accepted += not wrong
            reasons.update(re.sub(r"\d[\d.]*|\{.*", "#", one) for one in wrong)
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
        "subtasks": dict(subtasks),
        "negative_share": round(negatives / total, 4) if total else 0.0,
        "accepted": {"checked": checked, "right": accepted, "share": round(accepted / checked, 4) if checked else None},
        "problems": dict(reasons),
        "dropped": dict(dropped),
        "objects_per_image": _histogram(one[0] for one in images.values()),
        "questions_per_image": _histogram(one[1] for one in images.values()),
        "turns": {str(k): v for k, v in sorted(turns.items())},
        "most_frequent_words": dict(words.most_common(30)),
    }
    return figures, kept


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
    share = figures["accepted"]["share"]
    said = "not checked" if share is None else f"{100 * share:.1f}% of {figures['accepted']['checked']}"
    hand = figures.get("by_hand")
    return _PAGE.format(
        table=_table([["", *(column.replace("_", " ") for column in columns)], *rows]),
        lists="".join(tables),
        cards="".join(_card(sample, wrong, draw) for sample, wrong in shown),
        accepted=said,
        negatives=f"{100 * figures['negative_share']:.1f}%",
        hand=f"{hand['right']} of {hand['marked']} right" if hand else "no marks yet",
    )


def _table(rows: Iterable[Iterable[Any]]) -> str:
    """Cells as HTML; what is not known is left blank."""
    cells = ["".join(f"<td>{html.escape('' if v is None else str(v))}</td>" for v in row) for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _card(sample: Sample, wrong: list[str], draw: Callable[[Sample], bytes]) -> str:
    picture = base64.b64encode(draw(sample)).decode()
    note = html.escape("; ".join(wrong) or "accepted by the rule")
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
padding:2px 8px;text-align:left}}figure{{display:inline-block;margin:6px;vertical-align:top;width:360px}}
img{{width:360px}}
</style><h1>Quality of generated data</h1><p>Accepted by the rule (boxes at IoU 0.5, relations): <b>{accepted}</b>.
Negatives: {negatives}. By hand: <b id="marks">{hand}</b> <button onclick="save()">save marks.json</button></p>
{table}{lists}<h2>Random samples</h2>{cards}<script>
const marks={{}};document.addEventListener('change',e=>{{marks[e.target.name]=e.target.value==='1';
const n=Object.values(marks);const r=n.filter(x=>x).length;
document.getElementById('marks').textContent=r+' of '+n.length+' right ('+(100*r/n.length).toFixed(1)+'%)'}});
function save(){{const a=document.createElement('a');
a.href=URL.createObjectURL(new Blob([JSON.stringify(marks,null,1)]));a.download='marks.json';a.click()}}</script>
"""
