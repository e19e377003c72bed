"""What a checkpoint of ours holds: the trained weights, and the class and base that they belong to."""

from collections.abc import Mapping
from typing import Any, Protocol

from ts_lightning.models.package import PREFIX, check_base
from ts_lightning.models.sharding import gathered
from ts_lightning.models.vlm import VLM
from ts_lightning.runs.class_paths import plain


class TrainedModule(Protocol):
    """What is asked of a LightningModule here."""

    vlm: VLM
    data_config: dict[str, Any] | None


def stored_hparams(module: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain values, with the class; ValueError names the one that can't be stored."""
    stored = {key: value if key.startswith("_") else plain(value, key) for key, value in given.items()}
    return {**stored, "_class_path": class_path(module), "_instantiator": "lightning.pytorch.cli.instantiate_module"}


def pack(module: "TrainedModule", checkpoint: dict[str, Any]) -> None:
    """Replace the full state by what trained, and name the module class and the base (class, name, sha256).

    Sharded weights are gathered: every rank has to call it.
    """
    checkpoint["state_dict"] = {PREFIX + k: gathered(v) for k, v in module.vlm.trainable_state_dict().items()}
    checkpoint["base"] = module.vlm.identity()
    checkpoint["class_path"] = class_path(module)
    checkpoint["data_config"] = module.data_config


def unpack(module: "TrainedModule", checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint's weights; ValueError with one line if it is of another class, base or shape."""
    seen_class = checkpoint.get("class_path")
    if seen_class != class_path(module):
        raise ValueError(
            f"checkpoint: seen class {seen_class}, expected {class_path(module)} "
            "(to start from its weights alone use the vlm's init_from)"
        )
    check_base(checkpoint["base"], module.vlm.identity())
    state = {key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items()}
    module.vlm.load_trainable_state_dict(state)


def class_path(module: object) -> str:
    """The dotted name under which a module's class is stored."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
