"""metrics.jsonl, the log of a run: lines are only ever appended. metrics.csv is made from it when a fit ends."""

import csv
import io
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ts_lightning.runs.checkpoint_io import disk_error, replace_file, sync
from ts_lightning.runs.run_lock import RunLock

log = logging.getLogger("ts_lightning.runs")
NAME, TABLE = "metrics.jsonl", "metrics.csv"
RESUMED, FINISHED = "resumed_after", "finished"


class MetricsLog(Logger):
    """Append each row to `<folder>/metrics.jsonl`, one write; make `metrics.csv` of it at the end of a fit.

    A line is a row, {"step": 3, "epoch": 0, "train/loss": 2.5}, or one of two marks: {"resumed_after": n}, the run
    goes on from n optimizer steps and rows of later ones don't count any more; {"finished": n}. A run that was killed
    and goes on logs a step again, so of two values of one name and step the last counts. With a `lock` only its
    owner writes: a process that woke up beside its successor adds nothing.
    """

    name = version = ""  # ModelCheckpoint puts its files into <save_dir>/<name>/<version>/checkpoints

    def __init__(self, folder: str | Path, lock: RunLock | None = None) -> None:
        super().__init__()
        self.path, self.lock = Path(folder) / NAME, lock
        self.last: dict[str, Any] | None = None  # the row that was written last

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = {"step": int(step or 0), **{name: _plain(value) for name, value in metrics.items()}}
        if self.last is None or not row.items() <= self.last.items():  # a save writes its step's row before Lightning
            self._append(row)
            self.last = row

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml and in every checkpoint."""

    @rank_zero_only
    def mark(self, name: str, steps: int) -> None:
        """Note that the run goes on after, or ends at, so many optimizer steps."""
        if name == RESUMED and not self.path.is_file():
            for row in _csv_rows(self.path.with_name(TABLE)):  # of an earlier version, which wrote the table alone
                self._append(row)
        self._append({name: steps})
        self.last = None

    @rank_zero_only
    def sync(self) -> None:
        """Put the lines on the disk: after a power failure no checkpoint is ahead of them."""
        if self.path.is_file():
            sync(self.path)
            sync(self.path.parent)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Make metrics.csv; where the run failed that has been said already, and this fails in silence."""
        if self.path.is_file():
            with suppress(*([] if status == "success" else [OSError])):
                replace_file(self.path.with_name(TABLE), table(read_metrics(self.path)))

    def _append(self, line: dict[str, Any]) -> None:
        if self.lock is not None:
            self.lock.check()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError(f"{self.path}: seen something that is no file, expected the log of a run")
                data = (json.dumps(line) + "\n").encode()
                if status.st_size and os.pread(file, 1, status.st_size - 1) != b"\n":
                    data = b"\n" + data  # a line that a crash or a full disk cut off stays by itself
                while data:
                    data = data[os.write(file, data) :]
            finally:
                os.close(file)
        except OSError as error:
            raise disk_error(self.path, error) from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run in order: for each step one of training and one of validation, both only where there is one.

    `path` is a run's folder, its metrics.jsonl or its metrics.csv; the table alone is read where there is no log.
    Lines that can't be read are left out, and counted in a warning.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if (folder / NAME).is_file() and (path.is_dir() or path.name in (NAME, TABLE)):
        return _merged(_lines(folder / NAME))
    return _merged(_csv_rows(folder / TABLE if path.is_dir() else path))


def finished_steps(folder: Path) -> int | None:
    """The steps at which the run in `folder` was finished; None when it was not, or went on afterwards."""
    found = None
    if (folder / NAME).is_file():
        for line in _lines(folder / NAME, quiet=True):
            if RESUMED in line or FINISHED in line:
                found = line.get(FINISHED)
    return found


def complete_table(folder: Path) -> None:
    """Make metrics.csv of a finished run's log, where a full disk had room for the last line and not for the table."""
    if (folder / NAME).is_file() and not (folder / TABLE).exists():
        replace_file(folder / TABLE, table(read_metrics(folder / NAME)))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV: step and epoch first, then a column for each name; empty where a row has none."""
    names = dict.fromkeys(["step", "epoch", *(name for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _merged(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in lines:
        if RESUMED in line:
            rows = {key: row for key, row in rows.items() if key[0] < line[RESUMED]}
        elif "step" in line:
            rows.setdefault((line["step"], any(name.startswith(("val/", "test/")) for name in line)), {}).update(line)
    return [rows[key] for key in sorted(rows)]


def _lines(path: Path, quiet: bool = False) -> Iterator[dict[str, Any]]:
    """The rows and marks in a log."""
    bad = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if _is_line(value):
            yield value
        elif line.strip():
            bad.append(number)
    if bad and not quiet:
        log.warning("%s: %d lines that can't be read are left out (the first is line %d)", path, len(bad), bad[0])


def _is_line(value: Any) -> bool:
    if not isinstance(value, dict) or not all(type(number) in (int, float) for number in value.values()):
        return False
    steps = [value[name] for name in ("step", RESUMED, FINISHED) if name in value]
    return len(steps) == 1 and type(steps[0]) is int and steps[0] >= 0


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, numbers as numbers; a row with anything else is left out, and counted in a warning."""
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", errors="replace")
    bad = []
    for number, cells in enumerate(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")), 2):
        try:
            row = {str(name): _number(cell) for name, cell in cells.items() if cell}
        except (ValueError, AttributeError):
            row = {}
        if _is_line(row):
            yield row
        else:
            bad.append(number)
    if bad:
        log.warning("%s: %d rows that can't be read are left out (the first is line %d)", path, len(bad), bad[0])


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _plain(value: Any) -> Any:
    """A tensor's value, or what is a number already."""
    return value.item() if hasattr(value, "item") else value
