"""Captions in words (CIDEr), grounded captions (COCO AP of their objects) and region classification (COCO AP)."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.metrics.class_mapping import ClassMapper, Embed, sentence_embedder
from ts_lightning.metrics.gic import SYNONYMS, Extract, caption_figures, caption_pairs
from ts_lightning.metrics.gic_names import AskedPairs
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, Values, pictures_of
from ts_lightning.metrics.protocols.words import Words
from ts_lightning.metrics.readings.captions import ptb_words
from ts_lightning.metrics.record import Record
from ts_lightning.metrics.region_class import classify, coco_ap


class Captions(Words):
    """CIDEr over the accepted captions of a photo, words as Stanford's PTB tokenizer gives them."""

    name = "captions"
    main = "cider"
    convention = {"rule": "CIDEr of pycocoevalcap over PTB words (by hand: the official tokenizer needs Java)"}

    def row(self, record: Record) -> Row:
        said = " ".join(ptb_words(record.text))
        return {"said": said, "true": [" ".join(ptb_words(text)) for text in record.truth.answers]}

    def values(self, rows: Sequence[Row]) -> Values:
        return Values([row["key"] for row in rows], cider(rows), None, pictures_of(rows))

    def figures(self, rows: Sequence[Row]) -> Figures:
        values = cider(rows)
        return {"cider": sum(values) / len(values)}


def cider(rows: Sequence[Row]) -> list[float]:
    """CIDEr of each caption; ModuleNotFoundError in one line where pycocoevalcap is not installed."""
    try:
        from pycocoevalcap.cider.cider import Cider
    except ModuleNotFoundError:
        raise ModuleNotFoundError("CIDEr needs pycocoevalcap: pip install 'ts-lightning[gic]'") from None
    said, true = ({i: [row["said"]] for i, row in enumerate(rows)}, {i: row["true"] for i, row in enumerate(rows)})
    return [float(value) for value in Cider().compute_score(true, said)[1]]


class WithClasses(Protocol):
    """What needs a COCO file (`annotations`) and a sentence transformer: answers in words go to the file's classes.

    Without the file the questions are only counted.
    """

    threshold: float = -1.0  # cosine below which a text is of no class
    embedder: str | None = None  # folder of a sentence transformer; the packaged MiniLM when None

    def told(self) -> dict[str, str]:
        known = super().told() | {"embedder": self.embedder or "the packaged MiniLM"}
        missing = {"scored": "no: it needs the data set's COCO file (--annotations)"}
        return known if self.annotations is not None else known | missing

    @property
    def least(self) -> str:
        """`, cosine >= 0.65`; nothing where every text has a class."""
        return f", cosine >= {self.threshold:g}" if self.threshold > -1 else ""

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The COCO file."""
        path = str(self.annotations)
        try:
            read = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: seen no JSON ({error}), expected a COCO instances file") from None
        if not isinstance(read, dict) or {"images", "annotations", "categories"} - set(read):
            raise ValueError(f"{path}: seen no images, annotations and categories, expected a COCO instances file")
        return read

    @cached_property
    def embed(self) -> Embed:
        return sentence_embedder(self.embedder)

    def by_subtask(self, rows: Sequence[Row]) -> dict[str, Figures]:
        """None: AP is of whole images."""
        return {}

    def expect_images(self, rows: Sequence[Row], ids: Sequence[Any]) -> None:
        """ValueError naming the first row whose image, by its id, the file lacks."""
        known = {one["id"] for one in self.truth["images"]}
        for row, image in zip(rows, ids, strict=True):
            if image not in known:
                raise ValueError(f"{self.annotations}: seen no image {image!r} of question {row['key']}, expected it")

    @property
    def classes(self) -> tuple[list[str], list[int]]:
        """Names and ids of the file's categories."""
        return [one["name"] for one in self.truth["categories"]], [one["id"] for one in self.truth["categories"]]


class GIC(WithClasses):
    """Grounded captions (TWIST & SCOUT, Table 2): COCO AP of the (name, box) pairs, each name mapped to a class."""

    name = "gic"
    main = "AP"
    convention = {"rule": "COCO AP of the (name, box) pairs; equal scores keep the order of the captions"}
    threshold: float = 0.65
    names_alone = False
    box_score = "similarity"
    extract: Extract = staticmethod(caption_pairs)

    def told(self) -> dict[str, str]:
        extract = self.extract
        asked = f"asked of {extract.model}" if isinstance(extract, AskedPairs) else None
        names = asked or "the last words before each box (grammar)"
        classes = "COCO's classes alone" if self.names_alone else "COCO's classes and their synonyms"
        score = "1" if self.box_score == "one" else "the similarity of the name to its class"
        return super().told() | {"names": f"{names}; {classes}{self.least}", "box score": score}

    def takes(self, record: Record) -> bool:
        return record.meta.get("image_id") is not None and "caption" in (record.subtask or "")

    def row(self, record: Record) -> Row:
        pairs = self.extract(record.text, record.answer)
        unnamed = sum(thing.is_box for thing in record.answer.objects) - len(pairs)
        about = {"image_id": record.meta["image_id"], "size": list(record.size)}
        return about | {"pairs": pairs, "unnamed": unnamed}

    def figures(self, rows: Sequence[Row]) -> Figures:
        unnamed = {"boxes_without_name": sum(row["unnamed"] for row in rows)}
        if self.annotations is None:
            return {"captions": len(rows), "pairs": sum(len(row["pairs"]) for row in rows)} | unnamed
        self.expect_images(rows, [row["image_id"] for row in rows])
        names, _ = self.classes
        synonyms = {} if self.names_alone else {k: v for k, v in SYNONYMS.items() if k in names}
        mapper = ClassMapper(names, self.embed, synonyms, self.threshold)
        return caption_figures(rows, self.truth, mapper, self.box_score) | unnamed


class RegionClass(WithClasses):
    """Region classification (ChatSpot, Table 1): accuracy, and COCO AP where each box carries its answer's class."""

    name = "region_class"
    main = "AP"
    convention = {"rule": "an answer is of the class whose name is most similar"}
    unanswered: ClassVar[Row] = {"text": None}

    def told(self) -> dict[str, str]:
        return super().told() | {"rule": self.convention["rule"] + self.least}

    def takes(self, record: Record) -> bool:
        return record.task == UNDERSTANDING and "bbox" in record.meta

    def row(self, record: Record) -> Row:
        meta = {
            name: self.expect(record, record.meta.get(name), f"meta.{name}") for name in ("image_id", "bbox", "score")
        }
        return {"text": record.text, "meta": meta | {"category_id": record.meta.get("category_id")}}

    def figures(self, rows: Sequence[Row]) -> Figures:
        if self.annotations is None:
            return {"questions": len(rows)}
        self.expect_images(rows, [row["meta"]["image_id"] for row in rows])
        names, ids = self.classes
        found = classify(rows, ClassMapper(names, self.embed, threshold=self.threshold), ids)
        images = sorted({row["meta"]["image_id"] for row in rows})
        ap, per_class = coco_ap(self.truth, found["results"], images)
        accuracy = {} if found["accuracy"] is None else {"accuracy": found["accuracy"]}
        return accuracy | ap | {"per_class": per_class}
