"""The folder in which a package travels: its weights as safetensors, what they belong to, and a card for people."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ts_lightning.grounding.foreign_text import markdown_code, markdown_text

WEIGHTS = "package.safetensors"
CONFIG = "twin_config.json"
ROUTER = "task_router"
FORMAT = 1
_KEYS = {"format", "package", "base", "backbone", "codec", "options", "max_new_tokens", "sha256"}


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
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    config = {"format": FORMAT, **config, "sha256": digest}
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    parameters = sum(tensor.numel() for tensor in state.values())
    (folder / "README.md").write_text(_card(config, scores, parameters))


def read_package(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(`twin_config.json`, weights) of a folder; ValueError in one line for what is missing, changed or not ours."""
    config = read_config(folder)
    weights = Path(folder) / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"package {folder}: seen no {WEIGHTS}, expected one beside {CONFIG}")
    seen = hashlib.sha256(weights.read_bytes()).hexdigest()
    if seen != config["sha256"]:
        raise ValueError(
            f"package {folder}: {WEIGHTS} changed since it was saved: seen sha256 {seen[:12]}, "
            f"expected {str(config['sha256'])[:12]}"
        )
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
        *(
            [f"- {markdown_text(k)}: {value:.4f}" for k, value in sorted(scores.items())]
            or ["None were given when it was saved."]
        ),
        "",
        "## Use",
        "",
        "```bash",
        "ts-lightning validate --ckpt_path FOLDER -c SUITES.yaml",
        "```",
        "",
    ]
    return "\n".join(lines)
