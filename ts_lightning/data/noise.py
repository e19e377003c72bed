"""Box noise: the boxes of questions as a careless hand would draw them (ChatSpot 5.1)."""

from dataclasses import dataclass, replace
from random import Random

from ts_lightning.data.sample import REGION_MARK, Sample
from ts_lightning.grounding.region_sampling import noisy_box


@dataclass
class NoisyBoxes:
    """A sample with `noisy_box` on the boxes of its questions; the draw depends on (seed, sample id, visit) alone.

    `visit` counts how often the record came before: training draws anew each time, evaluation is always visit 0. A
    region that an answer names keeps its box: it is the truth there.
    """

    scale: float
    seed: int = 0

    def __call__(self, sample: Sample, visit: int = 0) -> Sample:
        asked, answered = (
            {int(i) for turn in sample.turns if turn.role == role for i in REGION_MARK.findall(turn.text)}
            for role in ("user", "assistant")
        )
        regions = list(sample.regions)
        for i in sorted(asked - answered):
            if (box := regions[i].box) is not None:
                random = Random(f"{self.seed} {sample.id} {i}" + (f" {visit}" if visit else ""))
                regions[i] = replace(regions[i], box=noisy_box(box, self.scale, random))
        return replace(sample, regions=regions)
