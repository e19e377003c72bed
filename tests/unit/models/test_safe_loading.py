"""What loads a model, a tokenizer or a processor names, there and then, that no code of its folder runs."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "ts_lightning"
SAFE = {"trust_remote_code": False, "local_files_only": True}
WITHOUT_WEIGHTS = {"AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoConfig", "PreTrainedTokenizerFast"}
PUBLISHED_AS_PICKLES = {"models/backbones/llava_parts.py"}  # Vicuna and OpenAI's CLIP: torch's weights_only reader


def loads() -> Iterator[tuple[str, str, dict[str, object]]]:
    """(file and line, whose `from_pretrained`, the constants it is called with) of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
            ):
                where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                yield where, ast.unparse(node.func.value), constants(node)


def constants(call: ast.Call) -> dict[str, object]:
    return {one.arg: one.value.value for one in call.keywords if one.arg and isinstance(one.value, ast.Constant)}


def test_every_load_is_local_without_code_and_without_pickles() -> None:
    found = list(loads())
    for where, name, given in found:
        assert given.items() >= SAFE.items(), f"{where}: {name}"
        if name not in WITHOUT_WEIGHTS:
            reader = "weights_only" if where.split(":")[0] in PUBLISHED_AS_PICKLES else "use_safetensors"
            assert given.get(reader) is True, f"{where}: {name}"
    assert len(found) >= 10
    assert sum(name not in WITHOUT_WEIGHTS for _, name, _ in found) >= 3


def test_every_reader_of_pickles_reads_tensors_alone() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
                assert constants(node).get("weights_only") is True, found[-1]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "SentenceTransformer":
                assert constants(node).items() >= SAFE.items()
    assert found
