"""Step-by-step answers and invalid questions (SCOUT)."""

from collections.abc import Sequence

from ts_lightning.metrics.accuracy import normalise_answer
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, mean
from ts_lightning.metrics.record import Record
from ts_lightning.metrics.steps import StepMetrics, said_steps, step_counts


class Steps(Protocol):
    """The rates of `StepMetrics`; the main figure is the share of questions whose final words are right, or that are
    called invalid where they are.
    """

    name = "steps"
    main = "right"
    convention = {
        "rule": "right: the final words of a valid question, or calling an invalid one so",
        "boxes": "of each step, IoU >= 0.5, one to one",
    }

    def takes(self, record: Record) -> bool:
        return record.truth.steps is not None

    def row(self, record: Record) -> Row:
        true, said = record.truth.steps, said_steps(record.answer)
        assert true is not None
        hits, totals = step_counts(said, true)
        right = said.rejected if true.rejected else normalise_answer(said.answer) == normalise_answer(true.answer)
        return {"value": float(right), "hits": hits, "totals": totals}

    def figures(self, rows: Sequence[Row]) -> Figures:
        hits, totals = ([sum(row[name][i] for row in rows) for i in range(5)] for name in ("hits", "totals"))
        rates = {
            name: hit / total if total else float("nan")
            for name, hit, total in zip(StepMetrics.rates, hits, totals, strict=True)
        }
        return {"right": mean([row["value"] for row in rows])} | rates
