"""Box noise: the boxes of questions as a careless hand would draw them (ChatSpot 5.1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from ts_lightning.data.sample import REGION_MARK, Sample
from ts_lightning.grounding.region_sampling import noisy_box


@dataclass
class NoisyBoxes:
    """`encode` of a sample whose question boxes were moved by `noisy_box`; the draw depends on (seed, sample id) alone.

    A region that an answer names keeps its box: it is the truth there.
    """

    encode: Callable[..., dict[str, Any]]
    scale: float
    seed: int = 0

    def __call__(self, sample: Sample, for_generation: bool = False) -> dict[str, Any]:
        return self.encode(self.moved(sample), for_generation=for_generation)

    def moved(self, sample: Sample) -> Sample:
        """The sample with noise on the boxes of its questions."""
        asked, answered = (
            {int(i) for turn in sample.turns if turn.role == role for i in REGION_MARK.findall(turn.text)}
            for role in ("user", "assistant")
        )
        regions = list(sample.regions)
        for i in sorted(asked - answered):
            if (box := regions[i].box) is not None:
                random = Random(f"{self.seed} {sample.id} {i}")
                regions[i] = replace(regions[i], box=noisy_box(box, self.scale, random))
        return replace(sample, regions=regions)
