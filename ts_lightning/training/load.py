"""From a checkpoint file to the module that was trained."""

from pathlib import Path
from typing import Any

from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

from ts_lightning.training.base import BaseModule
from ts_lightning.training.checkpoint_io import CheckpointIO
from ts_lightning.training.class_paths import instantiate


def load(path: str | Path) -> BaseModule:
    """The LightningModule of the class, with the vlm and the weights, that the checkpoint stores; on the CPU, in eval.

    FileNotFoundError or ValueError (one line) for a missing, truncated or foreign file, and for another base.
    """
    checkpoint = CheckpointIO().load_checkpoint(path)
    stored = stored_model(checkpoint, path)
    with _given_hyperparameters_context(dict(stored["init_args"]), "lightning.pytorch.cli.instantiate_module"):
        module = instantiate(BaseModule, **stored)
    module.on_load_checkpoint(checkpoint)
    return module.eval()


def stored_model(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The {class_path, init_args} of a checkpoint's module; the vlm's `init_from` is dropped, own weights follow."""
    hparams = dict(checkpoint.get("hyper_parameters") or {})
    class_path = hparams.pop("_class_path", None)
    if class_path is None:
        raise ValueError(f"checkpoint {path}: seen no module class, expected a checkpoint written by ts_lightning")
    hparams.pop("_instantiator", None)
    vlm_args = (hparams.get("vlm") or {}).get("init_args", {})
    if vlm_args.get("init_from"):
        hparams["vlm"] = {**hparams["vlm"], "init_args": {**vlm_args, "init_from": None}}
    return {"class_path": class_path, "init_args": hparams}
