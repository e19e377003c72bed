"""Weights of what trained: taken from a checkpoint or a package, checked, and copied in place."""

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ts_lightning.models.sharding import local, part_like

PREFIX = "vlm."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint as plain values and tensors; ValueError in one line when it is missing, cut or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint: no file {path}, expected one saved by fit")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint: {path} can't be read ({reason}), expected a whole file saved by fit") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "base"} <= checkpoint.keys():
        raise ValueError(f"checkpoint: {path} has no state_dict and base, expected a file saved by fit")
    return checkpoint


def check_base(seen: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """ValueError when weights were trained on another base than `expected`."""
    for key in ("class", "sha256"):
        if seen.get(key) != expected[key]:
            raise ValueError(f"checkpoint: trained on a base of {key} {seen.get(key)}, expected {expected[key]}")


def load_weights(
    own: Mapping[str, Tensor],
    source: Mapping[str, Tensor] | str,
    base: Mapping[str, Any] | None = None,
    required: Collection[str] | None = None,
) -> set[str]:
    """Copy weights into the tensors `own`, from a state dict or from a checkpoint's file over the same base.

    `required` names those that must come (None: all of `own`). Returns the names that came. ValueError, before anything
    is copied, names the first weight that is missing, unknown or of another shape.
    """
    if isinstance(source, str):
        checkpoint = read_checkpoint(source)
        check_base(checkpoint["base"], base or checkpoint["base"])
        source = {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()}
    needed = set(own if required is None else required)
    if different := sorted((needed - source.keys()) | (source.keys() - own.keys())):
        which = "no" if different[0] in own else "an unknown"
        raise ValueError(f"checkpoint: seen {which} weight {different[0]}, expected the {len(needed)} trained weights")
    for name, value in source.items():
        if value.shape != own[name].shape:
            shapes = f"seen shape {list(value.shape)}, expected {list(own[name].shape)}"
            raise ValueError(f"checkpoint: weight {name}: {shapes}")
    for name, value in source.items():
        local(own[name]).copy_(local(part_like(value, own[name])))
    return set(source)
