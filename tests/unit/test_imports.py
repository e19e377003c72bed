"""The one-way import rule, and the names of files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ts_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {"grounding", "models", "losses", "metrics", "data"}
UPPER = {*FLOORS, "rl", "runs", "training"}
MAY_IMPORT = {
    "grounding": set(),
    "models": {"grounding"},
    "losses": {"grounding"},
    "metrics": {"grounding"},
    "data": {"grounding"},
    "rl": FLOORS,
    "runs": FLOORS,
    "training": UPPER,
    "pipelines": {"grounding", "data", "models"},  # models: the processor of a local model that writes data
    "vllm_plugin": set(),  # another environment imports it
    "reports": UPPER,
    "serve": {*UPPER, "reports"},
    "cli": {*UPPER, "pipelines", "reports", "serve", ""},  # "": the version
    "__main__": {"cli"},
}
# Third-party packages that only some places may import; others are free.
ONLY_IN = {
    "lightning": ("cli/", "training/", "runs/", "reports/", "data/datamodule.py", "rl/rollout.py"),
    "transformers": ("models/", "pipelines/llm_client.py", "serve/"),
    "peft": ("models/",),
    "sentence_transformers": ("metrics/class_mapping.py",),
    "webdataset": ("data/", "pipelines/"),
    "torchvision": (),
    "vllm": ("vllm_plugin/",),
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def part(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    own = place.parts[0].removesuffix(".py")
    for name in imported(path):
        top = name.split(".")[0]
        if top == "ts_lightning":
            if own != "__init__" and part(name) != own:
                assert part(name) in MAY_IMPORT[own], f"{place} imports {name}"
        elif top in ONLY_IN:
            assert str(place).startswith(ONLY_IN[top]) if ONLY_IN[top] else False, f"{place} imports {name}"


def test_files_are_named_for_what_they_do() -> None:
    for path in FILES:
        assert path.name not in ("utils.py", "helpers.py", "misc.py"), path


def test_text_is_ascii() -> None:
    for path in [*FILES, *PACKAGE.parent.glob("configs/*/*.yaml"), *PACKAGE.rglob("templates/*.txt")]:
        assert path.read_text().isascii(), path
