"""Figures of a step's rollouts over all ranks, and lines for a run that stops learning what it should."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ts_lightning.losses.grpo import equal_rewards
from ts_lightning.models.ranks import of_all

if TYPE_CHECKING:
    from ts_lightning.rl.rollout import Rollout

Sums = dict[str, tuple[float, float]]  # name -> (sum, count)
WATCHED = ("reward/format", "reward/object", "reward/total", "zero_variance", "tagged")


def rollout_figures(micro_batches: Sequence[Mapping[str, Any]], rollouts: Sequence["Rollout"]) -> Sums:
    """Sums and counts of this rank: `reward/<name>` (total: their sum), `reward_by_task/<subtask>`, lengths.

    `zero_variance`: the share of groups whose completions got one and the same reward, which teach nothing;
    `cut_off`: the share of completions that ran into the token limit; `tagged`: of those with a tag of the format.
    """
    sums: Sums = {}

    def add(name: str, total: float, count: float) -> None:
        before = sums.get(name, (0.0, 0.0))
        sums[name] = before[0] + total, before[1] + count

    for micro, rollout in zip(micro_batches, rollouts, strict=True):
        total_BG = rollout.total.view(len(rollout.completions), -1)
        for b, valid in enumerate(micro["row_valid"].tolist()):
            if not valid:
                continue  # a stand-in, which the loss leaves out
            sample, group = micro["samples"][b], rollout.completions[b]
            for name, values_N in rollout.rewards.items():
                add(f"reward/{name}", values_N.view_as(total_BG)[b].double().sum().item(), len(group))
            total = total_BG[b].double().sum().item()
            add("reward/total", total, len(group))
            add(f"reward_by_task/{sample.subtask or sample.task}", total, len(group))
            add("zero_variance", float(equal_rewards(total_BG[b : b + 1])), 1)
            add("completion_length", sum(len(one.token_ids) for one in group), len(group))
            add("tagged", sum("<answer>" in one.text or "<think>" in one.text for one in group), len(group))
            add("cut_off", sum(not one.stopped for one in group), len(group))
    return sums


def sum_over_ranks(sums: Sums) -> dict[str, float]:
    """Means over all ranks; a name that only some ranks have is known to all of them afterwards."""
    gathered = of_all(sums)
    names = sorted({name for part in gathered for name in part})
    totals = {name: [sum(part.get(name, (0.0, 0.0))[i] for part in gathered) for i in (0, 1)] for name in names}
    return {name: total / count for name, (total, count) in totals.items() if count}


@dataclass
class Watch:
    """Says once each, in one line, that a run has collapsed, has nothing to learn from, or learns the format alone.

    It looks at means over the last `window` rollouts. Collapsed: the total reward is below half of its best, and lower
    by `rise` at least. Nothing to learn: more than 95% of the groups have equal rewards. Format alone: since the first
    window the format reward rose by `rise` and the object reward by less than a tenth of that, or they stand above 0.9
    and below 0.1. The fields are plain values: what a checkpoint keeps.
    """

    window: int = 10
    rise: float = 0.1
    recent: list[dict[str, float]] = field(default_factory=list)
    first: dict[str, float] | None = None
    best: float = 0.0
    said: list[str] = field(default_factory=list)

    def add(self, step: int, figures: Mapping[str, float], example: str = "") -> list[str]:
        """Look at one more rollout, made at `step`; the lines to say about it. `example` is one of its completions."""
        kept = {name: figures[name] for name in WATCHED if name in figures}
        self.recent = [*self.recent, kept][-self.window :]
        if len(self.recent) < self.window:
            return []
        mean = {name: sum(f.get(name, 0.0) for f in self.recent) / self.window for name in kept}
        if self.first is None:
            self.first = mean
        found = self._found(mean, self.first, example)
        new = [kind for kind in found if kind not in self.said]
        self.said += new
        return [f"step {step}: {found[kind]}" for kind in new]

    def _found(self, mean: dict[str, float], first: dict[str, float], example: str) -> dict[str, str]:
        found: dict[str, str] = {}
        total = mean.get("reward/total", 0.0)
        self.best = max(self.best, total)
        if self.best > 0 and total < self.best / 2 and total <= self.best - self.rise:
            found["collapsed"] = (
                f"the run has collapsed: rewards of {total:.2f} on average, once {self.best:.2f}; lower the rate, "
                "raise kl_coeff"
            )
        flat = mean.get("zero_variance", 0.0)
        untagged = "reward/format" in mean and mean.get("tagged") == 0
        if flat > 0.95 and untagged:
            found["flat"] = (
                f"nothing to learn: no completion has <think> or <answer> tags, which the format reward wants, such as "
                f"{example[:120]!r}; start from an SFT with tags, or take ts_lightning.rl.strict_reward in its place"
            )
        elif flat > 0.95 and total == 0:
            found["flat"] = (
                f"nothing to learn: every reward is 0; a completion: {example[:120]!r}; check the boxes' notation, "
                "max_new_tokens and that the SFT answers such prompts"
            )
        elif flat > 0.95:
            found["flat"] = (
                f"nothing to learn: {flat:.0%} of the groups have equal rewards, {total:.2f} on average; raise "
                "temperature or num_generations, take prompts that are neither too hard nor too easy"
            )
        if "reward/format" in mean and "reward/object" in mean:
            form, thing = mean["reward/format"], mean["reward/object"]
            gained, learned = form - first.get("reward/format", form), thing - first.get("reward/object", thing)
            if (gained >= self.rise and learned < 0.1 * gained) or (form > 0.9 and thing < 0.1):
                found["format"] = (
                    f"only the format is learned: format reward {form:.2f} ({gained:+.2f} since the first steps), "
                    f"object reward {thing:.2f} ({learned:+.2f}); start from a longer SFT or weigh the object reward "
                    "more"
                )
        return found
