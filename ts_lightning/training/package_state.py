"""What a checkpoint of ours holds: the trained weights, and the class and base that they belong to."""

from typing import Any

import lightning as L

PREFIX = "vlm."


def pack(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Replace the full state by what trained, and name the module class and the base (class, name, sha256)."""
    checkpoint["state_dict"] = {PREFIX + k: v for k, v in module.vlm.trainable_state_dict().items()}
    checkpoint["base"] = module.vlm.identity()
    checkpoint["class_path"] = class_path(module)
    checkpoint["data_config"] = module.data_config


def unpack(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to this module; ValueError with one line for another class, base or shape."""
    seen_class = checkpoint.get("class_path")
    if seen_class != class_path(module):
        raise ValueError(
            f"checkpoint: seen class {seen_class}, expected {class_path(module)} "
            "(to start from its weights alone use the vlm's init_from)"
        )
    seen, expected = checkpoint["base"], module.vlm.identity()
    if wrong := [key for key in expected if seen.get(key) != expected[key]]:
        pair = f"{wrong[0]} {seen.get(wrong[0])}", f"{wrong[0]} {expected[wrong[0]]}"
        raise ValueError(f"checkpoint: trained on another base: seen {pair[0]}, expected {pair[1]}")
    state = {key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items()}
    own = module.vlm.trainable_state_dict()
    if missing := sorted(own.keys() ^ state.keys()):
        which = "no" if missing[0] in own else "an unknown"
        raise ValueError(
            f"checkpoint: seen {which} weight {missing[0]}, expected the {len(own)} trained weights of vlm"
        )
    for name, value in own.items():
        if state[name].shape != value.shape:
            shapes = f"seen shape {list(state[name].shape)}, expected {list(value.shape)}"
            raise ValueError(f"checkpoint: weight {name}: {shapes}")


def class_path(module: L.LightningModule) -> str:
    """The dotted name under which a module's class is stored."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
