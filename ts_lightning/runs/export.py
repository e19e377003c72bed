"""What was trained, in other shapes: a package or adapter folder, a checkpoint, a standalone transformers directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts_lightning.grounding.foreign_text import markdown_code, markdown_text
from ts_lightning.models import VLM, LoRAVLM, TaskRouter, TwinExpertVLM
from ts_lightning.models.backbones.base import notation
from ts_lightning.models.package import file_sha256, listed_scores, say_whose
from ts_lightning.runs.checkpoint_io import CheckpointIO
from ts_lightning.runs.class_paths import plain
from ts_lightning.runs.load import BASE, INSTALLED, STANDALONE
from ts_lightning.runs.package_state import pack
from ts_lightning.runs.whole_folder import whole_folder

TARGETS = ("package", "adapter", "checkpoint", "standalone")


def export(module: Any, kind: str, target: Path, scores: Mapping[str, float] | None = None) -> None:
    """Write `module` as one of `TARGETS`; ValueError for a kind that its vlm does not have, or for a folder of another.

    `standalone` is the merged model (LoRA) or the tuned model itself, in the layout of the backbone, which plain
    transformers loads; of TWIST it holds `base`, which it loads too, `package`, and installed ones in `packages`.
    """
    vlm, wanted = module.vlm, {"package": TwinExpertVLM, "adapter": LoRAVLM}
    if kind not in TARGETS:
        raise ValueError(f"export: seen {kind!r}, expected one of {', '.join(TARGETS)}")
    if kind in wanted and not isinstance(vlm, wanted[kind]):
        raise ValueError(f"export: seen a {type(vlm).__name__}, expected a {wanted[kind].__name__} for a {kind}")
    if kind == "standalone" and (codes := vlm.identity().get("quantization")):
        raise ValueError(f"export: seen a base in {codes} for a standalone model, expected --to package or adapter")
    if kind == "checkpoint":
        write_checkpoint(module, target)
        return
    with whole_folder(target, kind) as folder:
        if kind == "standalone":
            _keep_base(vlm, target)
            write_standalone(module, folder, scores)
        elif isinstance(vlm, TwinExpertVLM | LoRAVLM):
            vlm.save_pretrained(folder, scores, max_new_tokens=module.max_new_tokens)


def _keep_base(vlm: VLM, target: Path) -> None:
    """ValueError for a target that would lose the base of `vlm`: a standalone folder that it was trained over.

    Not where the same base is written to its place again: of twin experts, or of a whole model that nothing trained.
    """
    if not isinstance(pretrained := vlm.backbone.init_args.get("pretrained"), str):
        return
    base, place = Path(pretrained).resolve(), target.resolve()
    twins = isinstance(vlm, TwinExpertVLM)
    again = base == (place / BASE if twins else place) and (twins or not vlm.trainable_state_dict())
    if base in (place, place / BASE) and not again:
        raise ValueError(f"export: {target}: seen the base {pretrained} of what is exported, expected another folder")


def change_rank(vlm: VLM, kind: str, rank: int) -> dict[str, float]:
    """Give the package of `vlm` experts of low rank, or full copies (0); the relative error of each layer's difference.

    ValueError where there is no package, or the shape stores how the vlm was made.
    """
    if not isinstance(vlm, TwinExpertVLM) or kind not in ("package", "standalone"):
        seen = f"{kind} of a {type(vlm).__name__}"
        raise ValueError(f"--rank: seen --to {seen}, expected package or standalone of a TwinExpertVLM")
    return vlm.to_rank(rank or None)


def give_router(vlm: VLM, kind: str, folder: Path) -> None:
    """Let the package of `vlm` bring a task router; ValueError where there is no package, or no task for its skill."""
    if not isinstance(vlm, TwinExpertVLM) or kind not in ("package", "standalone"):
        seen = f"{kind} of a {type(vlm).__name__}"
        raise ValueError(f"--router: seen --to {seen}, expected package or standalone of a TwinExpertVLM")
    router = TaskRouter.load(folder)
    if vlm.package not in router.tasks:
        raise ValueError(f"--router {folder}: seen {', '.join(router.tasks)}, expected {vlm.package} among its tasks")
    vlm.task_router = router


def write_checkpoint(module: Any, path: Path) -> None:
    """A checkpoint with the weights and the configuration of `module`, without a position in any run."""
    checkpoint: dict[str, Any] = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {},
        "epoch": 0,
        "global_step": 0,
        "loops": None,
    }
    pack(module, checkpoint)
    CheckpointIO().save_checkpoint(checkpoint, path)


def write_standalone(module: Any, folder: Path, scores: Mapping[str, float] | None = None) -> None:
    """Everything in one folder: nothing else is needed to load it."""
    vlm, backbone, base = module.vlm, module.vlm.backbone, folder
    if isinstance(vlm, TwinExpertVLM):
        vlm.save_pretrained(folder / "package", scores, max_new_tokens=module.max_new_tokens)
        for name in vlm.skills:
            if name != vlm.package:
                vlm.save_pretrained(folder / INSTALLED / name, name=name, max_new_tokens=module.max_new_tokens)
        vlm.remove_packages()
        base = folder / BASE
        say_whose(folder)
    elif isinstance(vlm, LoRAVLM):
        vlm.merge()
    backbone.save(base, None)
    spec = plain(backbone, "backbone")
    spec["init_args"] = {k: v for k, v in spec["init_args"].items() if k not in backbone.made_by}
    stored = {"backbone": spec, "max_new_tokens": module.max_new_tokens}
    if base == folder:  # twin experts know the sha256 of their base
        stored["sha256"] = {path.name: file_sha256(path) for path in folder.glob("*.safetensors")}
    (folder / STANDALONE).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_card(vlm, scores or {}))


def _card(vlm: VLM, scores: Mapping[str, float]) -> str:
    kinds = {TwinExpertVLM: "Twin experts and their base", LoRAVLM: "A model with its LoRA adapter merged into it"}
    title = next((name for kind, name in kinds.items() if isinstance(vlm, kind)), "A tuned model")
    base, codec = vlm.identity(), notation(vlm.codec)
    return (
        f"# {title}\n\nBase: {markdown_text(base['class'])} {markdown_code(base['name'])}, boxes as "
        f"{', '.join(markdown_text(codec[key]) for key in ('name', 'grid', 'frame'))}. Opened by "
        f"`ts_lightning.load(FOLDER)`.\n\n## Scores\n\n{listed_scores(scores)}\n"
    )
