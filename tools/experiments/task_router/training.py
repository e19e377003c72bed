"""Training of the task router on (prompt, task) pairs, its accuracy, and its time on one core."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.models.task_router import TaskRouter, train_vocabulary, untrained

Pair = tuple[str, str]
KEPT_EVERY = 500


def train_router(
    pairs: Sequence[Pair],
    steps: int = 1500,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
    keep: Callable[[TaskRouter], None] = lambda router: None,
    start: TaskRouter | None = None,
) -> TaskRouter:
    """A router over the tasks of the pairs, in int8; classes are weighted to count alike.

    Its weights are a running average, and no rate depends on `steps`: what `keep` gets every 500 steps is what a
    training of so many steps gives. `start` is a saved router of the same tasks to go on from.
    """
    counts = Counter(task for _, task in pairs)
    tasks = [UNDERSTANDING, *sorted(set(counts) - {UNDERSTANDING})]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = start.floating() if start else untrained(tasks, train_vocabulary(prompt for prompt, _ in pairs))
        parameters: list[torch.Tensor] = [*router.bert.parameters(), *router.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=50)
        average = copy.deepcopy(router)
        averaged: list[torch.Tensor] = [*average.bert.parameters(), *average.head.parameters()]
        weights_C = torch.tensor([len(pairs) / max(1, counts[task]) for task in tasks])
        router.bert.train()
        batches = _batches(pairs, batch_size)
        for step in range(steps):
            chosen = [pairs[i] for i in batches[step % len(batches)]]
            target_B = torch.tensor([tasks.index(task) for _, task in chosen])
            loss = F.cross_entropy(router.logits([prompt for prompt, _ in chosen]), target_B, weights_C)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for mean, value in zip(averaged, parameters, strict=True):
                    mean.lerp_(value, max(0.003, 9 / (10 + step)))
            if (step + 1) % KEPT_EVERY == 0:
                keep(copy.deepcopy(average).quantized())
            if step % 100 == 0 or step + 1 == steps:
                report(step, loss.item())
    return average.quantized()


def _batches(pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Every pair once, in random order; prompts of like length share a batch, so that little is padded."""
    order, batches = torch.randperm(len(pairs)).tolist(), []
    for start in range(0, len(order), 32 * batch_size):
        chunk = sorted(order[start : start + 32 * batch_size], key=lambda i: len(pairs[i][0]))
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def confusion(router: TaskRouter, pairs: Sequence[Pair], batch_size: int = 256) -> tuple[Counter[Pair], list[Pair]]:
    """How often each (true, chosen) pair of tasks occurs, and the (prompt, true task) that went wrong."""
    counts: Counter[Pair] = Counter()
    wrong = []
    for i in range(0, len(pairs), batch_size):
        part = pairs[i : i + batch_size]
        chosen = router.probabilities([prompt for prompt, _ in part]).argmax(-1).tolist()
        for (prompt, task), index in zip(part, chosen, strict=True):
            counts[task, router.tasks[index]] += 1
            if router.tasks[index] != task:
                wrong.append((prompt, task))
    return counts, wrong


def accuracy(counts: Counter[Pair]) -> float:
    """The share of right choices."""
    return sum(n for (task, chosen), n in counts.items() if task == chosen) / max(1, counts.total())


def milliseconds(router: TaskRouter, prompts: Sequence[str]) -> tuple[float, float]:
    """(median, 99th percentile) time of one prompt, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for prompt in [*prompts[:5], *prompts]:
        began = time.perf_counter()
        router(prompt)
        times.append(1000 * (time.perf_counter() - began))
    torch.set_num_threads(threads)
    times = sorted(times[5:])
    return times[len(times) // 2], times[int(0.99 * (len(times) - 1))]
