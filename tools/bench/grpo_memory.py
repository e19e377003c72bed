"""Peak memory of GRPO steps whose reference is what trains, against those that keep a second model."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from tools.bench.grpo_step import COMPLETION, PROMPT, StepCase

STEPS = 2  # AdamW's states are there from the first step's end on


def growth(second_model: bool, threads: int, prompt: int, completion: int) -> int:
    """KiB by which this process grew at most from before the model to the last step's end."""
    torch.set_num_threads(threads)
    before = _kib("VmRSS")
    case = StepCase(prompt, completion, second_model=second_model)
    for _ in range(STEPS):
        case.whole(True)
    return _kib("VmHWM") - before


def compare(prompt: int = PROMPT, completion: int = COMPLETION) -> tuple[float, dict[str, float]]:
    """(ours / second model, MiB of each), each in a process of its own: a peak never falls again."""
    mib = {}
    for name, second_model in (("ours", False), ("second_model", True)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            kib = pool.submit(growth, second_model, torch.get_num_threads(), prompt, completion).result()
        mib[name] = round(kib / 1024, 1)
    return round(mib["ours"] / mib["second_model"], 3), mib


def _kib(name: str) -> int:
    """A field of this process's memory; getrusage's peak would begin with that of the parent."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0])
