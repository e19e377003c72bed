"""Copies of what trains are cast once while they are held, and are never those of other values."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import PhiConfig
from transformers.models.phi.modeling_phi import PhiMLP

from ts_lightning.models.moe import MoE
from ts_lightning.models.working_copies import WorkingCopies
from ts_lightning.training import CastOnce

HIDDEN, SIZE = 40, 72  # more than the tokens of a micro-batch


class Casts(TorchDispatchMode):
    """Counts casts of an expert's weights."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten._to_copy.default and set(args[0].shape) == {HIDDEN, SIZE}:
            self.count += args[0].dtype == torch.float32 and (kwargs or {}).get("dtype") == torch.bfloat16
        return operation(*args, **(kwargs or {}))


def make() -> MoE:
    torch.manual_seed(0)
    return MoE.copies(PhiMLP(PhiConfig(hidden_size=HIDDEN, intermediate_size=SIZE)), 2, 1)


def step(moe: MoE, optimizer: torch.optim.Optimizer, again: bool) -> tuple[list[Tensor], int]:
    """Gradients of two micro-batches, and the casts; then the optimizer's step."""
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    with Casts() as casts:
        for _ in range(2):
            x = torch.randn(16, HIDDEN, generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                y = checkpoint(moe, x, use_reentrant=False) if again else moe(x)
            y.float().square().sum().backward()
    found = [p.grad.clone() for p in moe.parameters() if p.grad is not None]
    optimizer.step()
    return found, casts.count


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_same_gradients_by_one_cast_a_weight(again: bool, fused: bool) -> None:
    def steps(held: bool) -> tuple[list[list[Tensor]], list[int]]:
        moe = make()
        optimizer = torch.optim.AdamW(moe.parameters(), lr=0.1, fused=fused)
        done = []
        for _ in range(2):  # the second one starts from other weights
            moe.working_copies = WorkingCopies() if held else None
            done.append(step(moe, optimizer, again))
        return [gradients for gradients, _ in done], [count for _, count in done]

    (plain, often), (kept, once) = steps(False), steps(True)
    assert once == [4, 4]  # two weights of two experts
    assert often[0] == 4 * 2 * (3 if again else 2)
    assert all(
        torch.equal(a, b) for theirs, ours in zip(plain, kept, strict=True) for a, b in zip(theirs, ours, strict=True)
    )


def test_no_copy_of_other_values() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.5)
    copies = WorkingCopies()

    def right() -> bool:
        return torch.equal(copies.of(weight, torch.bfloat16), weight.detach().bfloat16())

    assert right()
    assert copies.of(weight, torch.bfloat16) is copies.of(weight.detach(), torch.bfloat16)
    weight.grad = torch.ones(4, 4)
    optimizer.step()  # while they are held, which the callback does not do
    assert right()
    own = weight.data
    weight.data = torch.full((4, 4), 7.0)  # as the reference policy has its turn
    assert right()
    weight.data = own
    assert right()


class Module(L.LightningModule):
    """Two steps of a mixture of experts; `seen` are the casts of each."""

    def __init__(self) -> None:
        super().__init__()
        self.moe, self.seen = make(), list[bool]()

    def training_step(self, x: Tensor, number: int) -> Tensor:
        self.seen.append(self.moe.working_copies is not None)
        return self.moe(x).float().square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.parametrize("callbacks", [[], [CastOnce()]])
def test_the_callback_holds_them_for_a_step(callbacks: list[Any]) -> None:
    def fitted(given: list[Any]) -> Module:
        module, data = Module(), torch.utils.data.DataLoader(torch.ones(4, HIDDEN), batch_size=2)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", precision="bf16-mixed", callbacks=given, **options)
        trainer.fit(module, data)
        return module

    module, plain = fitted(callbacks), fitted([])
    assert module.seen == [bool(callbacks)] * 2
    assert module.moe.working_copies is None
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
