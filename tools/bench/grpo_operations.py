"""Operations of torch that one token of a rollout takes: the tiny twin, 32 completions."""

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.sampling import sample_groups

PROMPTS, GROUP, LENGTH = 4, 8, 40


class Operations(TorchDispatchMode):
    """Counts every call that reaches a kernel or makes a view."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


def operations_a_token(vlm: VLM | None = None) -> float:
    """Of decoding and sampling together; what the prompt takes is not in it."""
    vlm = vlm or TwinExpertVLM(TinyBackbone(), every=1, train_token_rows=["codec"])
    ids = torch.randint(100, 400, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = {
        "input_ids": ids,
        "valid": torch.ones_like(ids, dtype=torch.bool),
        "position_ids": torch.arange(LENGTH).expand(PROMPTS, -1),
        "step_ids": torch.full_like(ids, -1),
        "pixel_values": torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
        "task": torch.ones(PROMPTS, dtype=torch.long),
        "samples": [SimpleNamespace(id=str(i), where=f"bench:{i}") for i in range(PROMPTS)],
    }
    counts = {}
    for tokens in (3, 7):
        with Operations() as counted:
            vlm.eval().run(sample_groups, batch, GROUP, tokens)
        counts[tokens] = counted.count
    return (counts[7] - counts[3]) / 4
