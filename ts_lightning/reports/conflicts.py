"""Several packages on one base: what each weighs, and whether one changes what another answers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ts_lightning.data import Sample
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.package import WEIGHTS, read_config, vlm_arguments
from ts_lightning.runs.batch import batch_for
from ts_lightning.runs.class_paths import instantiate
from ts_lightning.runs.load import found_device


def conflicts(
    folders: Sequence[Path], samples: Sequence[Sample], max_new_tokens: int = 32, device: str = "cpu"
) -> dict[str, Any]:
    """`sizes` (bytes of each package's file), and `matrix`: package -> another -> what differs with that one present.

    Every package is asked all samples of a skill, alone on a fresh base and then with the others installed one after
    the other; "base" is asked the understanding samples. A cell has `bitwise_equal` of the logits and `answers_changed`
    of the texts. ValueError for packages of one name, or samples that hold neither kind.
    """
    place, names = (
        found_device(device),
        [Path(os.path.abspath(folder)).name for folder in folders],
    )  # of links their own
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(f"packages: seen folders named {', '.join(names)}, expected two or more of different names")
    asked = [sample for sample in samples if sample.task != UNDERSTANDING]
    understood = [sample for sample in samples if sample.task == UNDERSTANDING]
    if not asked:
        raise ValueError("shards: seen no question of a skill, expected some to ask every package")
    packages = dict(zip(names, folders, strict=True))
    matrix: dict[str, dict[str, Any]] = {name: row(name, packages, asked, max_new_tokens, place) for name in names}
    if understood:
        matrix["base"] = row(UNDERSTANDING, packages, understood, max_new_tokens, place)
    sizes = {name: (folder / WEIGHTS).stat().st_size for name, folder in packages.items()}
    return {"sizes": sizes, "questions": {"skill": len(asked), UNDERSTANDING: len(understood)}, "matrix": matrix}


def row(
    task: str, packages: Mapping[str, Path], samples: Sequence[Sample], max_new_tokens: int, place: torch.device
) -> dict[str, Any]:
    """What changes for `task` as the packages are installed one after the other, its own first."""
    first = task if task in packages else next(iter(packages))
    vlm = alone(first, packages[first]).to(place)
    logits, texts = answered(vlm, task, samples, max_new_tokens)
    found: dict[str, Any] = {}
    for name, folder in packages.items():
        if name == first:
            continue
        vlm.install(folder, name)
        vlm.to(place)
        now, said = answered(vlm.eval(), task, samples, max_new_tokens)
        equal = torch.equal(now[:, : logits.shape[1]], logits) and bool((now[:, logits.shape[1] :] == -torch.inf).all())
        changed = sum(a != b for a, b in zip(texts, said, strict=True))
        found[name] = {"bitwise_equal": equal, "answers_changed": changed}
    return found


def alone(name: str, folder: Path) -> TwinExpertVLM:
    """The package of a folder on its base, as the skill `name`."""
    stored = read_config(folder)
    backbone = instantiate(Backbone, **stored["backbone"])
    return TwinExpertVLM(backbone, **(vlm_arguments(stored) | {"package": name}), init_from=str(folder)).eval()


@torch.no_grad()
def answered(vlm: TwinExpertVLM, task: str, samples: Sequence[Sample], max_new_tokens: int) -> tuple[Tensor, list[str]]:
    """Logits of the true answers [N, V], and the greedy answers."""
    rows = [[vlm.encode(sample, generating, task) for sample in samples] for generating in (False, True)]
    logits_NV = vlm(batch_for(vlm, rows[0], "right"))["logits"]
    return logits_NV, vlm.generate(batch_for(vlm, rows[1]), max_new_tokens)
