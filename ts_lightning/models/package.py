"""What trained, and nothing else: a package's options, weights from a checkpoint, the folder that it travels in."""

import hashlib
import json
import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ts_lightning.grounding.foreign_text import markdown_code, markdown_text
from ts_lightning.models.sharding import local, part_like

PREFIX = "vlm."
WEIGHTS = "package.safetensors"
CONFIG = "twin_config.json"
ROUTER = "task_router"
# What plain transformers says of a folder of ours: "has model type `...` but Transformers does not recognize this".
FOREIGN = "twin experts of ts_lightning, opened by ts_lightning.load(FOLDER)"
FORMAT = 1
_KEYS = {"format", "package", "base", "backbone", "codec", "options", "max_new_tokens", "sha256"}


@dataclass(frozen=True)
class PackageOptions:
    """How a package's layers and rows are made (the arguments of `TwinExpertVLM`), as `twin_config.json` stores them.

    ValueError names the option that is out of its range. An option that is new gets a default under which packages of
    before are what they were; `FORMAT` counts up when one that is there changes its meaning.
    """

    num_experts: int = 2
    top_k: int = 1
    eval_top_k: int | None = None
    every: int = 2
    first_layer: int = 0
    alpha_init: float = 0.5
    alpha_scope: str = "global"
    alpha_param: str = "raw"
    seed_experts: list[int] | None = None
    train_token_rows: list[str] = field(default_factory=list)
    new_tokens: list[str] = field(default_factory=list)
    expert_rank: int | None = None
    expert_targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("num_experts", "every", "top_k", "eval_top_k"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: seen {getattr(self, name)}, expected at least 1")
        if self.expert_targets and self.expert_rank is None:
            raise ValueError(f"expert_targets: seen {self.expert_targets} without expert_rank, expected both or none")
        if self.alpha_scope not in ("global", "layer"):
            raise ValueError(f"alpha_scope: seen {self.alpha_scope!r}, expected 'global' or 'layer'")

    @property
    def top_ks(self) -> tuple[int, int]:
        """Experts of a token in training and in evaluation, at most all."""
        evaluated = self.eval_top_k or self.top_k
        return min(self.top_k, self.num_experts), min(evaluated, self.num_experts)

    @classmethod
    def stored(cls, options: Mapping[str, Any], where: object) -> "PackageOptions":
        """The options of a file; ValueError for one that this version does not know."""
        if unknown := sorted(options.keys() - {option.name for option in fields(cls)}):
            known = ", ".join(option.name for option in fields(cls))
            raise ValueError(f"package {where}: options: seen {unknown[0]!r}, expected some of {known}")
        return cls(**options)

    def plain(self) -> dict[str, Any]:
        """As JSON holds them."""
        return asdict(self)


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
    """ValueError when weights were trained on another base than `expected`, or on other codes of it."""
    for key in ("class", "sha256", "quantization"):
        if seen.get(key) != expected.get(key):
            raise ValueError(f"checkpoint: trained on a base of {key} {seen.get(key)}, expected {expected.get(key)}")


def load_weights(
    own: Mapping[str, Tensor],
    source: Mapping[str, Tensor] | str,
    base: Mapping[str, Any] | None = None,
    required: Collection[str] | None = None,
    check_options: Callable[[Mapping[str, Any], str, Collection[str]], None] | None = None,
) -> set[str]:
    """Copy weights into the tensors `own`, from a state dict or from a checkpoint's file over the same base.

    `required` names those that must come (None: all of `own`). Returns the names that came. ValueError, before anything
    is copied, names the first weight that is missing, unknown or of another shape, or what `check_options` says of the
    class, the arguments and the weights of the checkpoint's vlm.
    """
    if isinstance(source, str):
        checkpoint = read_checkpoint(source)
        check_base(checkpoint["base"], base or checkpoint["base"])
        weights = {name.removeprefix(PREFIX): value for name, value in checkpoint["state_dict"].items()}
        if check_options is not None and (vlm := _stored_vlm(checkpoint)) is not None:
            check_options(vlm, source, weights)
        source = weights
    needed = set(own if required is None else required)
    if different := sorted((needed - source.keys()) | (source.keys() - own.keys())):
        which = "no" if different[0] in own else "an unknown"
        options = "the options that it was trained with: every, num_experts, rank, targets"
        expected = f"expected the {len(needed)} trained weights ({options})"
        raise ValueError(f"checkpoint: seen {which} weight {different[0]}, {expected}")
    for name, value in source.items():
        if value.shape != own[name].shape:
            shapes = f"seen shape {list(value.shape)}, expected {list(own[name].shape)}"
            raise ValueError(f"checkpoint: weight {name}: {shapes}")
    for name, value in source.items():
        local(own[name]).copy_(local(part_like(value, own[name])))
    return set(source)


def _stored_vlm(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """{class_path, init_args} of a checkpoint's vlm; None where it does not say."""
    found: Any = checkpoint.get("config")
    for key in ("model", "init_args", "vlm"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) and isinstance(found.get("init_args"), dict) else None


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_unchanged(path: Path, sha256: object, where: str) -> None:
    """ValueError for a file of other bytes than those that `sha256` was taken of; `where` names its folder."""
    if (seen := file_sha256(path)) != sha256:
        expected = f"seen sha256 {seen[:12]}, expected {str(sha256)[:12]}"
        raise ValueError(f"{where}: {path.name} changed since it was saved: {expected}")


def is_package(path: str | Path) -> bool:
    """Whether `path` is a folder written by `write_package`."""
    return (Path(path) / CONFIG).is_file()


def write_package(
    folder: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], scores: Mapping[str, float]
) -> None:
    """Write weights, `twin_config.json` and the card `README.md` into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    readable(folder)
    say_whose(folder)
    config = {"format": FORMAT, **config, "sha256": file_sha256(folder / WEIGHTS)}
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    parameters = sum(tensor.numel() for tensor in state.values())
    (folder / "README.md").write_text(_card(config, scores, parameters))


def readable(folder: Path) -> None:
    """Let others read the weights of a folder: safetensors writes them for the owner alone."""
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def say_whose(folder: Path) -> None:
    """Make plain transformers say in its error what the folder holds, in place of opening the base in silence."""
    (folder / "config.json").write_text(json.dumps({"model_type": FOREIGN}) + "\n")


def read_package(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(`twin_config.json`, weights) of a folder; ValueError in one line for what is missing, changed or not ours."""
    config = read_config(folder)
    weights = Path(folder) / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"package {folder}: seen no {WEIGHTS}, expected one beside {CONFIG}")
    check_unchanged(weights, config["sha256"], f"package {folder}")
    try:
        return config, load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"package {folder}: {WEIGHTS} can't be read ({error}), expected safetensors") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `twin_config.json` of a folder, checked."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"package: no {CONFIG} in {folder}, expected a folder made by save_pretrained")
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"package {path}: seen no JSON ({error}), expected a file made by save_pretrained") from None
    if not isinstance(config, dict) or set(config) != _KEYS or config["format"] != FORMAT:
        seen = sorted(config) if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"package {path}: seen {seen}, expected format {FORMAT} with {', '.join(sorted(_KEYS))}")
    for name in ("backbone", "options"):
        if not isinstance(config[name], dict):
            raise ValueError(f"package {path}: {name}: seen {type(config[name]).__name__}, expected an object")
    return config


def vlm_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `TwinExpertVLM` that make what a `twin_config.json` describes, over its backbone."""
    return {"package": config["package"], **config["options"], "quantization": config["base"].get("quantization")}


def listed_scores(scores: Mapping[str, float]) -> str:
    """The figures of a card, a line each."""
    lines = [f"- {markdown_text(name)}: {value:.4f}" for name, value in sorted(scores.items())]
    return "\n".join(lines) or "None were given when it was saved."


def _card(config: Mapping[str, Any], scores: Mapping[str, float], parameters: int) -> str:
    base, codec, name = config["base"], config["codec"], config["package"]
    lines = [
        f"# Package {markdown_code(name)}",
        "",
        "Twin experts of ts_lightning. The base is not in this folder, and the package changes none of its weights:",
        "understanding questions are answered by the untouched base.",
        "",
        "| | |",
        "|---|---|",
        f"| base | {markdown_text(base['class'])} {markdown_code(base['name'])} |",
        f"| sha256 of the base's weights | {markdown_code(base['sha256'])} |",
        f"| codec, grid, frame | {', '.join(markdown_text(codec[key]) for key in ('name', 'grid', 'frame'))} |",
        f"| parameters | {parameters:,} |",
        *(f"| {markdown_text(k)} | {markdown_text(v)} |" for k, v in sorted(config["options"].items())),
        "",
        "## Scores",
        "",
        listed_scores(scores),
        "",
        "## Use",
        "",
        "```bash",
        "ts-lightning validate --ckpt_path FOLDER -c SUITES.yaml",
        "```",
        "",
    ]
    return "\n".join(lines)
