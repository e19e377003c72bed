"""Conversations of other tools: pairs of turns, picture marks where they stand, boxes in the picture that is meant."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, REGION_MARK, Sample, SampleRegion
from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.codecs.base import Mention
from ts_lightning.pipelines.converters.mig_bench import image_index, picture_of
from ts_lightning.pipelines.converters.source import MARKS, Dropped, LeftOut, Picture, clean

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
UNREAD = "rows with boxes that can't be read in the given notation"
_OTHER_MEDIA = re.compile(r"<(video|audio)>")
_MARKER = r"(?:bbox_2d|<\|box_start\|>|<box>)"
_NUMBERS = r"\[\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*\]|\(\s*\d+\s*,\s*\d+\s*\)\s*,\s*\(\s*\d+\s*,\s*\d+\s*\)"
_BOX = re.compile(rf"{_MARKER}|{_NUMBERS}")
_ASKED_BOX = re.compile(rf"{_MARKER}[\s\"':(\[]*\d|{_NUMBERS}")  # a question may show the form: [x1, y1, x2, y2]


def paired(turns: Sequence[tuple[str, object]], system: object = None) -> list[str]:
    """Questions and answers in turn, a system prompt before the first question. LeftOut for other roles or orders."""
    known = [(ROLES.get(role, role), text) for role, text in turns]
    if system:
        known = [("system", system), *known]
    heads = []
    while known and known[0][0] == "system":
        heads.append(known.pop(0)[1])
    if other := [role for role, _ in known if role not in ("user", "assistant")]:
        raise LeftOut("conversations with turns of other roles (tools, a later system prompt)", str(other[0]))
    if not known or len(known) % 2 or [role for role, _ in known] != ["user", "assistant"] * (len(known) // 2):
        raise LeftOut("conversations that are not pairs of turns")
    for _, text in [*((0, head) for head in heads), *known]:
        if not isinstance(text, str):
            raise TypeError(f"seen the text {str(text)[:40]!r}, expected a string")
    texts = [str(text) for _, text in known]
    texts[0] = "\n".join([*(str(head).strip() for head in heads), texts[0]])
    texts[1::2] = [text.strip() for text in texts[1::2]]
    if not all(texts[1::2]):
        raise LeftOut("conversations with an empty answer")
    return texts


def fingerprint(texts: Sequence[object]) -> str:
    """What tells whether the texts of an exported row are still those that were written."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def exported(row: dict[str, Any]) -> dict[str, Any] | None:
    """What `pipelines.export` kept of the record that a row was made of; None for a row of other tools."""
    kept = row.get("ts_lightning")
    return json.loads(kept) if isinstance(kept, str) else kept


def restored(kept: dict[str, Any], texts: Sequence[object], pictures: Sequence[Picture]) -> Sample | None:
    """The sample of an exported row as it was; None where its texts are others now, or nothing tells (`anew`)."""
    if kept.get("written") != fingerprint(texts):
        return None
    record = {name: value for name, value in kept.items() if name not in ("key", "written")}
    record["images"] = [{"name": image.name, "width": image.width, "height": image.height} for image, _ in pictures]
    data = [one for _, one in pictures if one is not None]
    return Sample.from_json(json.dumps(record), kept["key"], image_bytes=data)


def anew(kept: dict[str, Any], left_out: bool = False) -> str:
    """Why an exported row is no record as it was: it is kept as another tool's, or `left_out` for its boxes."""
    why = "that were edited since" if "written" in kept else "of an older version, to be exported again"
    then = "--codec reads them" if left_out else "kept as another tool's, without the record's further fields"
    return f"exported rows {'with boxes ' if left_out else ''}{why} ({then})"


def with_marks(texts: Sequence[str], number: int, where: str, dropped: Dropped) -> list[str]:
    """The texts cleaned, the first with its picture marks where they stand; LeftOut where they don't fit `number`.

    A conversation without any mark gets them before its first question (`make`).
    """
    if media := next((match for text in texts if (match := _OTHER_MEDIA.search(text))), None):
        raise LeftOut("rows with video or sound (pictures alone can be trained on)", media[0])
    first, total = texts[0].count(IMAGE_MARK), sum(text.count(IMAGE_MARK) for text in texts)
    if total not in (0, number):
        raise LeftOut(MARKS, f"{total} marks, {number} pictures")
    if total > first:
        raise LeftOut("rows with a picture in a later turn (they stand in the first question)")
    if number and not total:
        dropped.note("rows without picture marks (the pictures go before the question)", where, stops=False)
    marked = IMAGE_MARK.join(clean(part) for part in texts[0].split(IMAGE_MARK))
    marked = re.sub(rf"^((?:{IMAGE_MARK})+)(?=\S)", lambda m: m[1].replace(IMAGE_MARK, f"{IMAGE_MARK}\n"), marked)
    return [marked, *(clean(text) for text in texts[1:])]


def with_boxes(
    texts: Sequence[str], pictures: Sequence[Picture], codec: Codec, where: str, dropped: Dropped
) -> tuple[list[str], list[SampleRegion]]:
    """The texts with region marks for the boxes of `codec`'s notation, and the regions, each in its picture.

    Of several pictures a box is in the one that its notation names, else in the one named last before it in its turn,
    else the one named in its turn or in the question. LeftOut where none is named, or a box can't be read.
    """
    sizes = [(image.width, image.height) for image, _ in pictures]
    out: list[str] = []
    regions: list[SampleRegion] = []
    question = ""
    for number, text in enumerate(texts):
        question = text if number % 2 == 0 else question
        readings = [{mention.start: mention for mention in codec.parse(text, size)} for size in sizes]
        starts = sorted({start for reading in readings for start in reading})
        done, at = "", 0
        for start in starts:
            found = next(reading[start] for reading in readings if start in reading)
            if start < at:
                continue
            image = _picture_of(found, text, question, len(sizes))
            mention = readings[image].get(start) if image < len(sizes) else None
            if mention is None or not (boxes := mention.boxes):
                continue  # stays as text, and is found below
            place = {"box": boxes[0]} if len(boxes) == 1 else {"boxes": boxes}
            regions.append(SampleRegion(image=image, phrase=mention.phrase, **place))  # type: ignore[arg-type]
            if mention.further:
                seen = f"{where}: {', '.join(mention.further)}"
                dropped.note("boxes whose object has further keys (its label alone is kept)", seen, stops=False)
            done += f"{text[at:start]}{{region:{len(regions) - 1}}}"
            at = mention.end
        out.append(done + text[at:])
    if left := unread(out):
        raise LeftOut(UNREAD, left)
    return out, regions


def unread(texts: Sequence[str]) -> str | None:
    """What looks like a box that nobody read, in questions and answers in turn; None for nothing.

    In a question the form of a box without its numbers is none.
    """
    found = ((_BOX if number % 2 else _ASKED_BOX).search(text) for number, text in enumerate(texts))
    return next((match[0] for match in found if match), None)


def answered(texts: Sequence[str]) -> list[int] | None:
    """The regions that the last answer names, which is what is scored; None for an answer in words."""
    named = [int(index) for index in REGION_MARK.findall(texts[-1])] if texts else []
    return list(dict.fromkeys(named)) or None


def count_unread(texts: Sequence[str], where: str, dropped: Dropped) -> None:
    """Count a row whose texts hold boxes that nobody read; it is kept."""
    if unread(texts):
        dropped.note("rows with boxes in their texts (kept as words; --codec reads them)", where, stops=False)


def _picture_of(mention: Mention, text: str, question: str, number: int) -> int:
    if number == 1:
        return mention.image or 0
    if mention.image is not None:
        return mention.image
    for known in (picture_of(text, mention.start), image_index(question, last=True)):
        if known is not None:
            return known
    raise LeftOut("rows with a box in one of several pictures, and none is named")
