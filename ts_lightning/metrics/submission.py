"""MMBench's file for its evaluation server, which knows the answers of the test split."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ts_lightning.grounding.foreign_text import table_cell
from ts_lightning.metrics.record import Record

COLUMNS = ("index", "question", "A", "B", "C", "D", "prediction")


def write_submission(records: Sequence[Record], path: str | Path) -> int:
    """Write the multiple-choice answers with `meta.index` as tab-separated rows of `COLUMNS`; returns how many.

    The prediction is the answer as it is: the server reads the option from it, wherever it stands. A cell that a
    spreadsheet would take for a formula gets an apostrophe in front (`table_cell`): people open this file before they
    send it, and an answer of that kind names no option by its first character anyway. ValueError where nothing is of
    MMBench.
    """
    chosen = [r for r in records if r.choices and r.meta.get("index") is not None]
    if not chosen:
        raise ValueError("--submission: seen no record with choices and meta.index, expected questions of MMBench")
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(COLUMNS)
        for record in chosen:
            options = [*(record.choices or ()), "", "", "", ""][:4]
            question = record.question.split("\nA. ")[0]  # the options stand below it
            writer.writerow(map(table_cell, [record.meta["index"], question, *options, record.text]))
    return len(chosen)
