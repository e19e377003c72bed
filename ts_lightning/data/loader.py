"""Sized loaders around the stock DataLoader, and the account of unreadable records.

They are no DataLoaders themselves, so Lightning leaves their order alone, and they hold no state of their own.
"""

import logging
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import parent_process
from traceback import extract_tb
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ts_lightning.data.collate import collate, deal, join, samples_of, seen_pairs, spread
from ts_lightning.data.order import EvalBatches, Shares
from ts_lightning.data.reader import ShardDataset

log = logging.getLogger("ts_lightning.data")
LISTED = 20
SIGNALS = {signal.SIGTERM, signal.SIGUSR1}  # at which `fit` saves and stops (runs/signals.py)
ORPHAN_SECONDS = 5  # between two looks whether a loader's process still has its run


class BadRecords:
    """Counts distinct unreadable records, reports each once, stops beyond `max_fraction` of `total` with the list.

    A record is its `shard:key`, whatever is said about it at its next visit.
    """

    def __init__(self, total: int, max_fraction: float) -> None:
        self.limit = int(max_fraction * total + 1e-9)
        self.budget = f"max_bad_fraction {max_fraction} of {total}"
        self.seen: dict[str, str] = {}

    def add(self, found: Iterable[tuple[str, str]], report: Callable[[str], object] = log.warning) -> None:
        """Count (shard:key, why) pairs; ValueError with the list when there are too many."""
        before = len(self.seen)
        for where, why in found:
            if where not in self.seen:
                self.seen[where] = why
                report(f"bad record {where}: {why}")
        if before < len(self.seen) > self.limit:
            lines = [f"{where}: {why}" for where, why in list(self.seen.items())[:LISTED]]
            listed = "; ".join(lines) + ("; ..." if len(self.seen) > LISTED else "")
            raise ValueError(f"{len(self.seen)} bad records, expected at most {self.limit} ({self.budget}): {listed}")


def checked(batch: dict[str, Any], accounts: Sequence[BadRecords]) -> dict[str, Any]:
    """The batch, after its bad records were added to the accounts of their sources."""
    bad = batch.pop("bad")
    for number, account in enumerate(accounts):
        account.add(one for source, one in bad if source == number)
    if not batch:
        last = [": ".join(one) for _, one in bad[-1:]]
        raise ValueError(f"bad records: seen none readable beside {last}, expected some")
    return batch


def _bad(rows: list[dict[str, Any]]) -> list[tuple[int, tuple[str, str]]]:
    """The bad records of rows with the numbers of their sources."""
    return [(row.get("source", 0), row["bad"]) for row in rows if row["bad"]]


def _collate(rows: list[dict[str, Any]], pad_id: int, side: str) -> dict[str, Any]:
    """`collate` plus the lines of bad rows under "bad", which stand alone when a row has no tensors."""
    whole = all("input_ids" in row for row in rows)
    return (collate(rows, pad_id, side) if whole else {}) | {"bad": _bad(rows)}


def _collate_share(
    draws: list[list[dict[str, Any]]], pad_id: int, per_batch: int, by_length: bool, joined: bool
) -> dict[str, Any]:
    """A rank's rows of one global batch as micro-batches (`deal`; `spread` and `join`); `bad` as in `_collate`."""
    rows = [row for draw in draws for row in draw]
    batch: dict[str, Any] = {"bad": _bad(rows)}
    if not all("input_ids" in row for row in rows):
        return batch
    parts = map(join, spread(rows, per_batch)) if joined else deal(rows, per_batch, by_length)
    micro_batches = [collate(part, pad_id) for part in parts]
    return batch | {
        "micro_batches": micro_batches,
        "ids": [sample.id for row in rows if row["row_valid"] for sample in samples_of(row)],
        "num_questions": sum(len(micro["samples"]) for micro in micro_batches),
        "num_tokens": sum(int(micro["valid"].sum()) for micro in micro_batches),
        "num_positions": sum(micro["valid"].numel() for micro in micro_batches),
        "num_pairs": sum(map(seen_pairs, rows)),
        "num_answers": sum(int((micro["step_ids"] >= 0).sum()) for micro in micro_batches),
    }


def lost_worker(error: BaseException) -> str | None:
    """One line for the errors by which torch says that a loader's process died; None for others.

    torch raises it wherever the program is: what runs there may make another error of it, whose cause it is then. While
    a batch is handed over, its connection breaks first.
    """
    match = re.match(r"DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\) (.*)", str(error))
    if match is not None:
        how = f"{match[1]} {match[2].split('.')[0]}"
    elif isinstance(error, ConnectionError | EOFError) and any(
        frame.filename.endswith("/multiprocessing/connection.py") for frame in extract_tb(error.__traceback__)
    ):
        how = "ended while it handed a batch over"
    else:
        return lost_worker(error.__cause__) if error.__cause__ else None
    return (
        f"data: loader process {how} (out of memory?), expected it to go on (fewer data.num_workers take less memory; "
        "the same command goes on from the last checkpoint)"
    )


def outlive_signals(worker: int) -> None:
    """Keep a loader's process alive when all processes of a run are told to stop, as SLURM and systemd do.

    The run itself still has to come to a step's or a batch's end. Only the run's own SIGTERM ends the process, by which
    torch and multiprocessing end what is left over, and the end of a run that was killed, even in a read that stalls.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True, name="signals").start()


def _end_with_parent() -> None:
    started_by, run = os.getppid(), parent_process()  # the same, but where a server forks
    while os.getppid() == started_by:
        told = signal.sigtimedwait(SIGNALS, ORPHAN_SECONDS)
        if told and run and (told.si_signo, told.si_pid) == (signal.SIGTERM, run.pid):
            break
    os._exit(0)


class _Loader:
    """A stock DataLoader and the accounts of its sources' bad records."""

    def __init__(
        self, dataset: Dataset, batches: Any, workers: int, ahead: int, collate_fn: Callable, bad: Sequence[BadRecords]
    ) -> None:
        self.batches = batches
        self.bad_records = bad
        self._loader: Iterable[dict[str, Any]] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate_fn,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=max(ahead, 2 // workers) if workers else None,
            persistent_workers=workers > 0 and isinstance(self, TrainLoader),
            in_order=True,
            worker_init_fn=outlive_signals,
        )

    def close(self) -> None:
        """End the workers now; the garbage collector would wait 5 seconds for each."""
        self._loader = ()


class TrainLoader(_Loader):
    """This rank's share of every global batch: {"micro_batches": [batch, ...], "ids": [...], "num_questions": int}.

    Its rows are dealt to the micro-batches by length (`collate.deal`), or joined there (`collate.join`). `ids` are
    those of the valid questions in the stream's order, `num_questions` counts all, `num_tokens` of `num_positions` are
    no padding, `num_pairs` are seen (`collate.seen_pairs`), `num_answers` tokens have a loss. Iteration starts at the
    stream's state; `len` is the number of optimizer steps of a whole epoch. look_ahead: batches have the micro-batches
    of the next global batch under `ahead`, where there is one.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Shares,
        workers: int,
        pad_id: int,
        bad_records: Sequence[BadRecords],
        by_length: bool = True,
        joined: bool = False,
        look_ahead: bool = False,
    ) -> None:
        self.look_ahead = look_ahead
        given: dict[str, Any] = {
            "pad_id": pad_id,
            "per_batch": batches.per_batch,
            "by_length": by_length,
            "joined": joined,
        }
        share = partial(_collate_share, **given)
        super().__init__(dataset, batches, workers, 1, share, bad_records)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = (checked(batch, self.bad_records) for batch in self._loader)
        return self._with_next(batches) if self.look_ahead else batches

    def _with_next(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        repeats, waiting = self.batches.stream.repeats, deque[dict[str, Any]]()
        for batch in batches:
            waiting.append(batch)
            if len(waiting) > repeats:
                yield waiting.popleft() | {"ahead": batch["micro_batches"]}
        yield from waiting

    def state_dict(self) -> dict[str, Any]:
        """Nothing: Lightning warns about loaders without it, but the position is the datamodule's to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


class EvalLoader(_Loader):
    """Generation batches (prompts, padded on the left) of one suite, each record once over all ranks."""

    def __init__(
        self, dataset: ShardDataset, batches: EvalBatches, workers: int, pad_id: int, bad_records: BadRecords
    ) -> None:
        super().__init__(dataset, batches, workers, 2, partial(_collate, pad_id=pad_id, side="left"), [bad_records])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._loader:
            yield checked(batch, self.bad_records)
