"""Metrics over two CPU processes: the same numbers as one process, with uneven batches and with an idle rank."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests import ranks
from ts_lightning.grounding import get_codec
from ts_lightning.grounding.boxes import Box
from ts_lightning.metrics import AnswerAccuracy, BoxAccuracy, MeanIoU, StepAnswer, StepMetrics, box_tensor
from ts_lightning.metrics.protocols import make_protocol, plain
from ts_lightning.metrics.record import Record, Truth

COUNT = 11
SPLITS = {"uneven": [range(7), range(7, COUNT)], "empty_rank": [range(COUNT), range(0)]}
BATCH = 3


def fill(rows: range) -> dict[str, torch.Tensor]:
    """Feed the questions `rows` of one fixed set in batches of 3 and return every metric's result."""
    rng = torch.Generator().manual_seed(1)
    low, size = torch.rand(COUNT, 2, generator=rng) * 0.5, 0.1 + torch.rand(COUNT, 2, generator=rng) * 0.4
    true = torch.cat([low, low + size], dim=1).double()
    noisy = true + 0.05 * torch.randn(COUNT, 4, generator=rng)
    pred = [None if i % 5 == 3 else tuple(noisy[i].tolist()) for i in range(COUNT)]
    answers = ["red" if i % 3 else "blue" for i in range(COUNT)]
    miou, acc, words, steps = MeanIoU(), BoxAccuracy(), AnswerAccuracy(), StepMetrics()
    for start in range(rows.start, rows.stop, BATCH):
        part = range(start, min(start + BATCH, rows.stop))
        at = list(part)
        boxes = box_tensor([pred[i] for i in part])
        miou.update(boxes, true[at], torch.tensor([[300, 240]] * len(at)))
        acc.update(boxes, true[at])
        words.update([answers[i] for i in part], [["red"]] * len(at))
        steps.update(
            [StepAnswer(answers[i], [[pred[i]] if pred[i] else []], i % 4 == 0) for i in part],
            [StepAnswer("red", [[tuple(true[i].tolist())]], i % 6 == 0) for i in part],
        )
    results = {f"{type(m).__name__}/{k}": v for m in (miou, acc, words, steps) for k, v in m.compute().items()}
    for name in PROTOCOLS:  # their state is lists of rows, empty on an idle rank
        protocol = make_protocol(name)
        records = [record(name, i, pred[i], true[i], answers[i]) for i in rows]
        for start in range(0, len(records), BATCH):
            protocol.update(records[start : start + BATCH])
        figures = plain(protocol.compute())
        results |= {f"{name}/{k}": torch.tensor(v) for k, v in figures.items() if v == v}
    return results


PROTOCOLS = ("localization", "mig", "phrases", "steps", "circular", "mme", "yes_no", "vqa")


def record(name: str, i: int, box: Box | None, true: torch.Tensor, word: str) -> Record:
    """Question i as `name` scores it: boxes in tasks of unequal size, or words in pairs that may lie on two ranks."""
    asked: dict[str, Any] = {"key": f"q{i:02d}", "subtask": "phrase" if name == "phrases" else f"task{i % 3}"}
    if name in ("localization", "mig", "phrases"):
        text = "none" if box is None else get_codec("scout").format([tuple(min(1.0, max(0.0, v)) for v in box)])
        truth = tuple(true.tolist())
        return Record(name, text=text, truth=Truth(box=truth, boxes=(truth,)), **asked)
    if name == "steps":
        return Record(name, text=word, truth=Truth(steps=StepAnswer("red", [[]], i % 4 == 0)), **asked)
    meta = {"question_id": i // 2, "category": f"c{i % 2}", "image_id": i // 4}
    said = "yes" if word == "red" else "no"
    return Record(name, text=said, truth=Truth(answers=("yes",)), choices=("yes", "no"), meta=meta, **asked)


def worker(folder: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({name: fill(split[rank]) for name, split in SPLITS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    expected = fill(range(COUNT))
    assert len(expected) > 60
    assert all(torch.isfinite(value) for value in expected.values())
    ranks.finish(partial(worker, str(tmp_path)), tmp_path / "log", 2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for split in SPLITS:
            assert results[split].keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(results[split][key], value, rtol=1e-12, atol=0, msg=f"{split} {key}")
