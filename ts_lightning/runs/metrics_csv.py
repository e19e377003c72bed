"""metrics.csv that a resumed run continues: whole rows only, each logged once, replaced in one rename."""

import csv
import os
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from ts_lightning.runs.checkpoint_io import sync
from ts_lightning.runs.run_lock import RunLock


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger writing to `<folder>/metrics.csv`, going on behind the rows that are there.

    With a `lock` it writes as its owner only: a process that woke up beside its successor adds no rows.
    """

    def __init__(self, folder: str, version: str = "") -> None:
        super().__init__(folder, name="", version=version)
        self.lock: RunLock | None = None

    def save(self) -> None:
        if self.lock is not None:
            self.lock.check()
        super().save()

    def sync(self) -> None:
        """Put the rows on the disk: after a power failure no checkpoint is ahead of them."""
        path = Path(self.experiment.metrics_file_path)
        if path.is_file():
            sync(path)
            sync(path.parent)

    def finalize(self, status: str) -> None:
        with nullcontext() if status == "success" else suppress(ValueError):  # the failure has been said
            super().finalize(status)

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the old file here; we take over its columns."""
        self.last: tuple[int | None, set[frozenset[str]]] = (None, set())
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Record a row. A row that was already written for this step, before a save, is not written twice."""
        if self.last[0] != step:
            self.last = (step, set())
        if (names := frozenset(metrics_dict)) not in self.last[1]:
            self.last[1].add(names)
            super().log_metrics(metrics_dict, step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        write_rows(path, fieldnames, read_rows(path))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows that were written to their end: what stands behind the last line break was cut by a crash."""
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return list(csv.DictReader(lines))


def write_rows(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    """Replace the file in one rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def cut_metrics(path: Path, steps: int, validation_follows: bool) -> None:
    """Keep the rows of the first `steps` optimizer steps.

    `validation_follows`: the checkpoint was written before the validation of its step, which will run again.
    """
    if not path.is_file():
        return
    rows = [row for row in read_rows(path) if int(row["step"]) < steps]
    if validation_follows:
        rows = [row for row in rows if int(row["step"]) < steps - 1 or not _has_validation(row)]
    with path.open(newline="") as file:
        names = next(csv.reader(file), [])
    write_rows(path, names, rows)


def _has_validation(row: dict[str, str]) -> bool:
    return any(name.startswith("val/") and value for name, value in row.items())
