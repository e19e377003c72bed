"""What every protocol shares: a question becomes a row of plain numbers, the rows of all ranks become figures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from ts_lightning.metrics.record import Record

Row = dict[str, Any]
Figures = dict[str, Any]


class Values(NamedTuple):
    """Numbers whose mean is a suite's main figure; `keys`, `strata` and `pictures` name each one's question and groups.

    `strata` is None where there is one, `pictures` where those of some question are not known.
    """

    keys: list[str]
    values: list[float]
    strata: list[str] | None
    pictures: list[str] | None


class Protocol(Metric):
    """One kind of suite: which questions count, what an answer is worth, which figure is the first.

    A subclass says `takes`, `row` and `figures`. A row is what a question adds, as JSON values; `value` in it is the
    number whose mean is the figure `main` (left out where the main figure is no mean over questions), and `stratum` its
    group where the main figure is the unweighted mean of the groups' means. `unanswered` is what the row of a
    question without an answer says instead: to some rules an empty text is a yes, or a rejection. The state is the rows
    themselves, as bytes, so that any split over devices gives the same figures, those that are no sums too.

    reading: which of `readings` decides the main figure.
    annotations: the data set's own file, for figures that need what was not asked.
    """

    full_state_update = False
    higher_is_better = True
    name: ClassVar[str]
    main: ClassVar[str]
    readings: ClassVar[tuple[str, ...]] = ("lenient",)
    convention: ClassVar[dict[str, str]] = {}
    unanswered: ClassVar[Row] = {"value": 0.0}
    lines: list[Tensor]

    def __init__(self, reading: str | None = None, annotations: str | None = None) -> None:
        super().__init__()
        if reading is not None and reading not in self.readings:
            raise ValueError(f"reading of {self.name}: seen {reading!r}, expected one of {', '.join(self.readings)}")
        self.reading = reading or self.readings[0]
        self.annotations = annotations
        self.add_state("lines", [], dist_reduce_fx="cat")

    def told(self) -> dict[str, str]:
        """How it scores, for reports: its convention, the reading, and the options that were set."""
        return {**self.convention, "reading": self.reading}

    def takes(self, record: Record) -> bool:
        """Whether the record asks what this protocol scores."""
        raise NotImplementedError

    def row(self, record: Record) -> Row:
        """What one question adds; ValueError for a record without what the protocol needs."""
        raise NotImplementedError

    def figures(self, rows: Sequence[Row]) -> Figures:
        """The figures of some rows, at least one."""
        raise NotImplementedError

    def rows_of(self, records: Sequence[Record]) -> list[Row]:
        """The rows of the records that the protocol takes, each with its key, pictures (`about`) and subtask."""
        rows = []
        for record in records:
            if self.takes(record):
                about = None if record.pictures is None else f"{record.shard}:{record.pictures}"
                name = {"key": record.key, "about": about, "subtask": record.subtask, "cut_off": record.cut_off}
                row = self.row(record)
                if record.missing:
                    row |= {key: value for key, value in self.unanswered.items() if key in row}
                rows.append(name | row)
        return rows

    def update(self, records: Sequence[Record]) -> None:
        """Add questions; those that the protocol does not take don't count."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows_of(records))
        self.lines.append(torch.frombuffer(bytearray(text.encode() or b"\n"), dtype=torch.uint8).to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics'; a rank without a question takes part with none."""
        if not self.lines:
            self.lines.append(torch.tensor([10], dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def rows(self) -> list[Row]:
        """All rows of the state, in the order of their keys."""
        data = dim_zero_cat(self.lines).cpu().numpy().tobytes() if len(self.lines) else b""
        return sorted((json.loads(line) for line in data.splitlines() if line), key=lambda row: str(row["key"]))

    def compute(self) -> Figures:
        """The figures over all questions, {} over none; `subtasks` has each subtask's."""
        rows = self.rows()
        parts = self.by_subtask(rows)
        return self.result(rows) | ({"subtasks": parts} if parts else {})

    def result(self, rows: Sequence[Row]) -> Figures:
        """`figures`, and how many answers ended at the token limit."""
        return self.figures(rows) | {"cut_off": mean([row["cut_off"] for row in rows])} if rows else {}

    def by_subtask(self, rows: Sequence[Row]) -> dict[str, Figures]:
        """The figures of each subtask."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row["subtask"] or "", []).append(row)
        return {name: self.result(group) for name, group in sorted(groups.items()) if name}

    def values(self, rows: Sequence[Row]) -> Values:
        """The numbers whose mean is the main figure, none where it is no such mean."""
        valued = [row for row in rows if "value" in row]
        strata = [row["stratum"] for row in valued] if valued and "stratum" in valued[0] else None
        return Values([row["key"] for row in valued], [row["value"] for row in valued], strata, pictures_of(valued))

    def expect(self, record: Record, value: Any, name: str) -> Any:
        """`value`, or ValueError naming the record where it is None."""
        if value is None:
            raise ValueError(f"suite {record.suite}: {record.key}: seen no {name}, the protocol {self.name} expects it")
        return value


def pictures_of(rows: Sequence[Row]) -> list[str] | None:
    """What names each row's pictures; None where those of some row are not known."""
    names = [row["about"] for row in rows]
    return None if None in names else names


def mean(values: Sequence[float]) -> float:
    """The mean; NaN over nothing."""
    return sum(map(float, values)) / len(values) if values else float("nan")


def group_by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Rows by the text of one of their values, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row[name]), []).append(row)
    return groups


def plain(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures that are numbers."""
    return {k: float(v) for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
