"""Learning-rate schedule and parameter groups."""

import functools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.moe import MoE
from ts_lightning.models.twin import Alpha
from ts_lightning.training import SFT
from ts_lightning.training.optimizer import build_optimizer, build_schedule, groups_of, keep_numbers, own_numbers
from ts_lightning.training.schedule import WarmupCosine, planned_steps


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(schedule: WarmupCosine, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_warm_up_then_cosine() -> None:
    schedule = WarmupCosine(sgd(), warmup_steps=2, total_steps=6, min_factor=0.1)
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)) for done in (0, 0.25, 0.5, 0.75, 1)]
    expected = [0.5, 1.0, *cosine, 0.1]  # after the end it stays at the minimum
    assert rates(schedule, 8) == pytest.approx([2.0 * factor for factor in expected])


def test_without_total_steps_it_stays_up() -> None:
    assert rates(WarmupCosine(sgd(), warmup_steps=2), 4) == [1.0, 2.0, 2.0, 2.0]


def test_state_holds_the_position_only() -> None:
    schedule = WarmupCosine(sgd(), warmup_steps=2, total_steps=6)
    before = rates(schedule, 6)
    again = WarmupCosine(sgd(), warmup_steps=2, total_steps=6)
    rates(again, 3)
    resumed = WarmupCosine(sgd(), warmup_steps=2, total_steps=6)
    resumed.optimizer.load_state_dict(again.optimizer.state_dict())
    resumed.load_state_dict(again.state_dict())
    assert rates(resumed, 3) == before[3:]
    assert "total_steps" not in again.state_dict()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="warmup_steps"):
        WarmupCosine(sgd(), warmup_steps=-1)


def trainer(max_steps: int = -1, max_epochs: int | None = None, batches: int = 10, limit: Any = 1.0) -> Any:
    datamodule = SimpleNamespace(train_dataloader=lambda: [None] * batches)
    return SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs, limit_train_batches=limit, datamodule=datamodule)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (trainer(max_steps=7), 7),
        (trainer(max_epochs=3), 30),
        (trainer(max_epochs=3, limit=4), 12),
        (trainer(max_epochs=3, limit=0.5), 15),
        (trainer(max_steps=25, max_epochs=3), 25),
        (trainer(max_steps=50, max_epochs=3), 30),
        (trainer(max_steps=5, max_epochs=-1), 5),
    ],
)
def test_planned_steps(made: Any, expected: int) -> None:
    assert planned_steps(made) == expected


def test_endless_training_needs_a_length() -> None:
    with pytest.raises(ValueError, match="max_steps -1, max_epochs -1"):
        planned_steps(trainer(max_epochs=-1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.moe = MoE.copies(nn.Linear(3, 3), 2, 1)
        self.mixing = Alpha(0.5)
        self.router_alpha = nn.Linear(3, 3, bias=False)  # a name says nothing
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_groups() -> None:
    optimizer = build_optimizer(
        functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3), Model(), alpha_lr_factor=10
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: (g["lr"], g["weight_decay"], len(g["params"])) for name, g in groups.items()} == {
        "decay": (0.1, 0.3, 4),
        "no_decay": (0.1, 0.0, 6),
        "alpha": (1.0, 0.0, 1),
    }


def test_schedule_keeps_the_factor_of_alpha() -> None:
    optimizer = build_optimizer(functools.partial(torch.optim.SGD, lr=0.1), Model(), 10)
    WarmupCosine(optimizer, warmup_steps=2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.5])


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "vision_layers": 1, "num_heads": 2}


class WithoutHooks(torch.optim.AdamW):
    """Restores without the hooks of torch, as 8-bit optimizers and DeepSpeed do."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})


@pytest.mark.parametrize("cls", [torch.optim.AdamW, WithoutHooks])
def test_a_resumed_optimizer_has_the_settings_it_was_made_with(cls: type[torch.optim.AdamW]) -> None:
    def made(rate: float, decay: float, beta: float) -> SFT:
        make = functools.partial(cls, lr=rate, weight_decay=decay, betas=(0.9, beta))
        module = SFT(PlainVLM(TinyBackbone(None, **SIZES), ["*"]), optimizer=make)
        module._trainer = trainer(max_steps=4)
        module._trainer.optimizers = [module.configure_optimizers()["optimizer"]]
        return module

    old, new = made(0.1, 0.3, 0.98), made(0.2, 0.01, 0.99)
    (optimizer,), (stored,) = new.trainer.optimizers, old.trainer.optimizers
    optimizer.load_state_dict(stored.state_dict())
    new.on_train_start()
    assert [(g["weight_decay"], g["betas"]) for g in optimizer.param_groups] == [
        (0.01, (0.9, 0.99)),
        (0.0, (0.9, 0.99)),
    ]
    rates = [group["lr"] for group in stored.param_groups]
    assert [group["lr"] for group in optimizer.param_groups] == rates  # until the schedule sets it


def test_the_state_of_an_optimizer_over_other_weights_is_refused_in_a_line() -> None:
    """11 of its 13 trainable parameters train: one Linear has a weight and a bias."""
    more = Model()
    more.frozen.requires_grad_(True)
    state = build_optimizer(torch.optim.AdamW, more).state_dict()
    with pytest.raises(ValueError, match=r"^checkpoint: seen an optimizer of 13 weights, expected of the 11 .*from"):
        build_optimizer(torch.optim.AdamW, Model()).load_state_dict(state)


def one_cycle(optimizer: torch.optim.Optimizer) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.1, total_steps=8)


def test_one_cycle_keeps_the_factor_of_alpha_and_its_momentum_over_a_restart() -> None:
    optimizer, again = (build_optimizer(torch.optim.AdamW, Model(), 10) for _ in range(2))
    own = own_numbers(again)
    schedule, _ = (build_schedule(one_cycle, made, 10) for made in (optimizer, again))
    for _ in range(7):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([rates[0], rates[0], 10 * rates[0]])
        again.load_state_dict(optimizer.state_dict())
        keep_numbers(again, own)
        assert again.state_dict() == optimizer.state_dict()
        optimizer.step()
        schedule.step()


def test_group_names() -> None:
    model = Model()
    assert {name: sorted(map(tuple, (p.shape for p in group))) for name, group in groups_of(model).items()} == {
        "decay": [(3, 3)] * 4,
        "no_decay": [(2, 3), (3,), (3,), (3,), (3,), (3,)],
        "alpha": [()],
    }


class Own(nn.Linear):
    """A module of the user's that says its group."""

    optimizer_group = "no_decay"


def test_a_module_says_its_own_group() -> None:
    groups = groups_of(nn.Sequential(Own(2, 2), nn.Linear(2, 2)))
    assert [len(groups[name]) for name in ("decay", "no_decay")] == [1, 3]


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(torch.optim.AdamW, Model().requires_grad_(False), 1.0)


def test_a_longer_schedule_begins_with_its_own_rate() -> None:
    """A finished run's last rate is 0: the first step of a longer one would be lost."""
    weight = torch.nn.Parameter(torch.zeros(1))
    done, longer = (torch.optim.SGD([weight], lr=1.0) for _ in range(2))
    schedule = WarmupCosine(done, total_steps=4)
    for _ in range(4):
        done.step()
        schedule.step()
    assert done.param_groups[0]["lr"] == 0
    later = WarmupCosine(longer, total_steps=8)
    longer.load_state_dict(done.state_dict())
    later.load_state_dict(schedule.state_dict())
    assert longer.param_groups[0]["lr"] == pytest.approx(0.5)  # the middle of half a cosine
