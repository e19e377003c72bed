"""Flickr30k Entities: captions whose phrases have boxes."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters.files import read_text
from ts_lightning.pipelines.converters.source import Picture, Pictures, clean, files_of, make, need, pick
from ts_lightning.pipelines.converters.voc import corners, number_in, parse_xml

TASKS = ("caption", "phrases")
_PHRASE = re.compile(r"\[/EN#(\d+)(/\S+) ([^\]]+)\]")


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, tasks: tuple[str, ...] = TASKS
) -> Iterator[Sample]:
    """Samples of `path`, the folder with Annotations/ID.xml and Sentences/ID.txt.

    `split` names a list of ids (test.txt). "caption" is a grounded caption a sentence (`meta.captions` has its plain
    text), "phrases" asks for each phrase with boxes. Boxes are counted from 1 as in VOC; a phrase with several boxes
    keeps them as `boxes`. Phrases without a box (scenes, things that can't be boxed) stay in the text and are counted.
    """
    folder, pictures = Path(path), pictures or Pictures()
    need(folder, "Annotations/*.xml")
    need(folder, "Sentences/*.txt")
    here = pictures.under(folder, "flickr30k-images", "flickr30k_images", "images")
    ids = [file.stem for file in files_of(folder, "Sentences/*.txt")]
    if split is not None:
        ids = read_text(need(folder, f"{split}.txt"), "ids").split()
    for number in ids:
        with here.dropped.row(f"picture {number}"):
            yield from _picture(folder, number, here, tasks)


def _picture(folder: Path, number: str, here: Pictures, tasks: tuple[str, ...]) -> Iterator[Sample]:
    annotations, said = folder / "Annotations" / f"{number}.xml", folder / "Sentences" / f"{number}.txt"
    if not annotations.is_file():
        here.dropped.note("sentences without an annotation file", number)
        return
    if not said.is_file():
        here.dropped.note("annotations without a sentences file", number)
        return
    root = parse_xml(annotations)
    size = (number_in(root, "size/width"), number_in(root, "size/height"))
    known = here.get(f"{number}.jpg", size if all(size) else None)
    if known is None:
        return
    boxes = _boxes(root, annotations.name, (known[0].width, known[0].height), here)
    for line, sentence in enumerate(read_text(said, "Flickr30k's sentences").split("\n")):
        with here.dropped.row(f"{number} sentence {line}"):
            if sentence.strip():
                yield from _sentence(f"{number}-{line}", number, known, sentence, boxes, tasks, here)


def _boxes(root: Element, name: str, size: tuple[int, int], pictures: Pictures) -> dict[str, list[Box]]:
    """Boxes by entity id."""
    found: dict[str, list[Box]] = {}
    for one in root.findall("object"):
        if (bounds := one.find("bndbox")) is None:
            continue
        x1, y1, x2, y2 = corners(bounds)
        box = pictures.dropped.box((x1 - 1, y1 - 1, x2 - 1, y2 - 1), size, name)
        if box is None:
            continue
        for entity in one.findall("name"):
            found.setdefault(str(entity.text), []).append(box)
    return found


def _sentence(
    key: str,
    number: str,
    picture: Picture,
    sentence: str,
    boxes: dict[str, list[Box]],
    tasks: tuple[str, ...],
    pictures: Pictures,
) -> Iterator[Sample]:
    text, plain, at, regions = "", "", 0, []
    sentence = clean(sentence)
    for match in _PHRASE.finditer(sentence):
        entity, kind, phrase = match.groups()
        between = sentence[at : match.start()]
        text, plain, at = text + between + phrase, plain + between + phrase, match.end()
        if not (found := boxes.get(entity)):
            pictures.dropped.note("phrases without a box (kept as text)", f"{key} {phrase}", stops=False)
            continue
        category = kind.strip("/").split("/")[0]
        place = {"box": found[0]} if len(found) == 1 else {"boxes": found}
        regions.append(SampleRegion(phrase=phrase, category=category, **place))  # type: ignore[arg-type]
        text += f" {{region:{len(regions) - 1}}}"
    text, plain = text + sentence[at:], plain + sentence[at:]
    meta = {"image_id": number, "captions": [plain]}
    if "caption" in tasks and regions:
        fields = {"task": "grounding", "subtask": "caption", "regions": regions, "answer": [*range(len(regions))]}
        yield make("flickr30k", key, [picture], [(pick("caption_grounded", key), text)], meta=meta, **fields)
    elif not regions:
        pictures.dropped.note("sentences without any box", key)
    for i, region in enumerate(regions if "phrases" in tasks else ()):
        fields = {"task": "grounding", "subtask": "phrase", "regions": [region], "answer": [0]}
        prompt = pick("rec", f"{key}-{i}", phrase=str(region.phrase))
        yield make("flickr30k", f"{key}-{i}", [picture], [(prompt, "{region:0}")], meta=meta, **fields)
