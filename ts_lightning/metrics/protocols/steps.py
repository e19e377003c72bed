"""Step-by-step answers and invalid questions (SCOUT)."""

from collections.abc import Sequence

from ts_lightning.metrics.accuracy import normalise_answer
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, mean
from ts_lightning.metrics.record import Record
from ts_lightning.metrics.steps import StepAnswer, StepMetrics, match_boxes, said_steps, step_counts


class Steps(Protocol):
    """The rates of `StepMetrics`; the main figure is the share of questions whose final words are right, or that are
    called invalid where they are. Where the truth ends without words, the boxes of the last step have to be right.
    """

    name = "steps"
    main = "right"
    convention = {
        "rule": "right: the final words of a valid question (the last step's boxes where it has no words), or calling "
        "an invalid one so",
        "boxes": "of each step, IoU >= 0.5, one to one",
    }

    def takes(self, record: Record) -> bool:
        return record.truth.steps is not None

    def row(self, record: Record) -> Row:
        true, said = record.truth.steps, said_steps(record.answer)
        assert true is not None
        hits, totals = step_counts(said, true)
        right = _is_right(said, true)
        return {"hits": hits, "totals": totals} | ({} if right is None else {"value": float(right)})

    def figures(self, rows: Sequence[Row]) -> Figures:
        hits, totals = ([sum(row[name][i] for row in rows) for i in range(5)] for name in ("hits", "totals"))
        rates = {
            name: hit / total if total else float("nan")
            for name, hit, total in zip(StepMetrics.rates, hits, totals, strict=True)
        }
        return {"right": mean([row["value"] for row in rows if "value" in row])} | rates


def _is_right(said: StepAnswer, true: StepAnswer) -> bool | None:
    """Whether the question is answered rightly; None where the truth ends with neither words nor boxes."""
    if true.rejected:
        return said.rejected
    if true.answer:
        return normalise_answer(said.answer) == normalise_answer(true.answer)
    boxes, wanted = said.step_boxes[-1], true.step_boxes[-1]
    return not said.rejected and match_boxes(boxes, wanted) == max(len(boxes), len(wanted)) if wanted else None
