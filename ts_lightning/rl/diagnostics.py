"""Figures of a step's rollouts over all ranks, and a line when a run stops learning what it should."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import distributed

if TYPE_CHECKING:
    from ts_lightning.rl.rollout import Rollout

log = logging.getLogger("ts_lightning.rl")
Sums = dict[str, tuple[float, float]]  # name -> (sum, count)


def rollout_figures(batch: Mapping[str, Any], rollouts: Sequence["Rollout"]) -> Sums:
    """Sums and counts of this rank: `reward/<name>` (total: their sum), `reward_by_task/<subtask>`, lengths.

    `zero_variance`: the share of groups whose completions got one and the same reward, which teach nothing;
    `cut_off`: the share of completions that ran into the token limit.
    """
    sums: Sums = {}

    def add(name: str, total: float, count: float) -> None:
        before = sums.get(name, (0.0, 0.0))
        sums[name] = before[0] + total, before[1] + count

    for micro, rollout in zip(batch["micro_batches"], rollouts, strict=True):
        total_BG = rollout.total.view(len(rollout.completions), -1)
        for name, values_N in rollout.rewards.items():
            add(f"reward/{name}", values_N.double().sum().item(), len(values_N))
        add("reward/total", total_BG.double().sum().item(), total_BG.numel())
        add("zero_variance", (total_BG == total_BG[:, :1]).all(1).sum().item(), len(total_BG))
        for sample, group, rewards_G in zip(micro["samples"], rollout.completions, total_BG, strict=True):
            add(f"reward_by_task/{sample.subtask or sample.task}", rewards_G.double().sum().item(), len(group))
            add("completion_length", sum(len(one.token_ids) for one in group), len(group))
            add("cut_off", sum(not one.stopped for one in group), len(group))
    return sums


def sum_over_ranks(sums: Sums) -> dict[str, float]:
    """Means over all ranks; a name that only some ranks have is known to all of them afterwards."""
    gathered: list[Any] = [sums]
    if distributed.is_available() and distributed.is_initialized():
        gathered = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, sums)
    names = sorted({name for part in gathered for name in part})
    totals = {name: [sum(part.get(name, (0.0, 0.0))[i] for part in gathered) for i in (0, 1)] for name in names}
    return {name: total / count for name, (total, count) in totals.items() if count}


class Watch:
    """Says in one line, once each, that a run has collapsed or learns the format alone.

    Both look at means over `window` steps: format-only is a format reward that rose by `rise` since the first window
    (or stands above 0.9) while the object reward rose by less than a tenth of it; collapsed is a run where more than
    95% of the groups have zero variance and the total reward is below a tenth of what it once was, or nothing.
    """

    def __init__(self, window: int = 50, rise: float = 0.1) -> None:
        self.window, self.rise = window, rise
        self.recent: deque[dict[str, float]] = deque(maxlen=window)
        self.first: dict[str, float] | None = None
        self.best = 0.0
        self.said: set[str] = set()

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Look at one more step."""
        self.recent.append(figures)
        if len(self.recent) < self.window:
            return
        names = ("reward/format", "reward/object", "reward/total", "zero_variance")
        mean = {name: sum(f.get(name, 0.0) for f in self.recent) / self.window for name in names}
        if self.first is None:
            self.first = mean
        self.best = max(self.best, mean["reward/total"])
        flat = mean["zero_variance"] > 0.95
        if flat and mean["reward/total"] <= 0.1 * self.best:
            self._say(
                "collapsed",
                f"step {step}: the run has collapsed: {mean['zero_variance']:.0%} of the groups have equal rewards of "
                f"{mean['reward/total']:.2f} on average (once {self.best:.2f}); lower the rate, raise kl_coeff",
            )
        gained = mean["reward/format"] - self.first["reward/format"]
        learned = mean["reward/object"] - self.first["reward/object"]
        if gained >= self.rise and learned < 0.1 * gained:
            self._say(
                "format",
                f"step {step}: only the format is learned: format reward +{gained:.2f}, object reward {learned:+.2f} "
                "since the first steps; start from a longer SFT or weigh the object reward more",
            )

    def _say(self, kind: str, line: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            log.warning(line)
