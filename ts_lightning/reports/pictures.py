"""From prediction records to pictures on disk."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.index import ShardIndex, index_shard
from ts_lightning.data.manifest import Manifest
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.boxes import iou
from ts_lightning.grounding.steps import REJECTION, is_rejection
from ts_lightning.metrics import target_steps
from ts_lightning.metrics.record import Record
from ts_lightning.models.pixels import open_picture
from ts_lightning.reports.drawing import Picture, contact_sheet, draw_picture
from ts_lightning.reports.sheets import Sheet
from ts_lightning.rl.log_pictures import log_pictures
from ts_lightning.training.callbacks import Callback


def make_picture(record: Record, sample: Sample) -> Picture:
    """What to draw for one record: its sample's pictures, and every box of the true answer on its own.

    ValueError with the shard and the key where a picture can't be read.
    """
    try:
        sheet = Sheet(sample.image_bytes) if len(sample.image_bytes) > 1 else None
        image = sheet.picture if sheet else open_picture(sample.image_bytes[0])
    except ValueError as error:
        raise ValueError(f"{record.shard}: {record.key}: {error}") from None
    truth, answer = record.truth, record.answer
    places = [region.all_boxes for region in sample.regions]
    if sheet:
        images = [region.image for region in sample.regions]
        places = [[sheet.place(i, box) for box in boxes] for i, boxes in zip(images, places, strict=True)]
    true = dict.fromkeys(box for boxes in target_steps(truth.text, places).step_boxes for box in boxes)
    words = [REJECTION] if is_rejection(truth.text) else list(truth.answers)
    note = record.subtask or record.suite
    if truth.box is not None:
        note += ": no box" if answer.box is None else f": IoU {iou(answer.box, truth.box):.2f}"
    steps = sheet.said(answer, record.image) if sheet else answer.step_boxes
    at = answer.counted.start if answer.counted else answer.span[0]
    return Picture(image, record.question, record.text, steps, list(true), note, ", ".join(words), at)


def write_pictures(records: Iterable[Record], folder: str | Path, limit: int | None = None) -> int:
    """One png per record, `<suite>-<key>.png`, the first `limit` of each suite; returns their number."""
    folder, count = Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, group in _by_suite(records, limit):
        for record, sample in _with_samples(group):
            path = folder / f"{_safe(name)}-{_safe(record.key)}.png"
            draw_picture(make_picture(record, sample)).save(path)
            count += 1
    return count


def write_sheets(records: Iterable[Record], folder: str | Path, limit: int = 12, title: str = "{suite}") -> list[Path]:
    """One contact sheet per suite, `<suite>.png`, of its first `limit` records (the first, not the best)."""
    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, group in _by_suite(records, limit):
        pictures = [make_picture(record, sample) for record, sample in _with_samples(group)]
        if pictures:
            paths.append(folder / f"{_safe(name)}.png")
            contact_sheet(pictures, title=title.format(suite=name)).save(paths[-1])
    return paths


class PredictionPictures(Callback):
    """Draw the first `number` answers of each suite (of rank 0's share) into `<default_root_dir>/pictures`.

    In a fit they are drawn at every validation, the same questions each time: a sheet a suite in
    `pictures/step-000250`, which loggers that take pictures get too.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.records: dict[str, list[Record]] = {}

    def keep(self, record: Record) -> None:
        """Keep a record of the first of its suite."""
        group = self.records.setdefault(record.suite, [])
        if len(group) < self.number:
            group.append(record)

    def kept(self) -> list[Record]:
        """The records, which are forgotten."""
        found, self.records = [record for group in self.records.values() for record in group], {}
        return found

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        for values in outputs if trainer.is_global_zero else ():
            self.keep(Record.from_json(values))

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        if records := self.kept():
            write_pictures(records, Path(trainer.default_root_dir) / "pictures")

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        for record in outputs["records"] if trainer.is_global_zero and not trainer.sanity_checking else ():
            self.keep(record)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if records := self.kept():
            step = trainer.global_step
            folder = Path(trainer.default_root_dir) / f"pictures/step-{step:06d}"
            for path in write_sheets(records, folder, self.number, "{suite}, step " + str(step)):
                log_pictures(trainer.loggers, f"pictures/{path.stem}", [path], step)


def _by_suite(records: Iterable[Record], limit: int | None) -> list[tuple[str, list[Record]]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.suite, []).append(record)
    return [(name, group[:limit]) for name, group in groups.items()]


def _with_samples(records: Iterable[Record]) -> Iterator[tuple[Record, Sample]]:
    """Each record with its sample, read from its shard; records without an image are left out."""
    readers: dict[str, tuple[ShardReader, ShardIndex]] = {}
    for record in records:
        path = record.shard
        if path not in readers:
            index = index_shard(path)
            readers[path] = ShardReader(Manifest.of(index)), index
        reader, index = readers[path]
        try:
            number = index.find(record.key)
        except KeyError:
            seen = repr(record.key)
            raise ValueError(f"{path}: seen no record {seen}, expected it: the predictions name it") from None
        sample = reader.read_question(index, number)
        if sample.image_bytes:
            yield record, sample


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
