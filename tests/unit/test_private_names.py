"""Names of dependencies that their documentation does not promise: an upgrade may break each, so there are few.

Twelve was the aim and there are 26: thirteen that are private by their underscore or stand inside a loop of Lightning's
or DeepSpeed's, and thirteen that look public and are in no documentation, because vLLM and transformers have no other
door there. A name counts once, in however many places it is used, and what a listed class has counts with it.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ts_lightning"
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
PROMISED = {"_asdict", "_replace", "_exit", "_current_frames"}  # of Python itself, in its documentation
LIMIT = 26
OPTIONAL = {"deepspeed", "lmms_eval", "vllm"}  # dependencies that an environment need not have
# Modules inside a dependency whose names its documentation has; torch's documentation has all that are used here.
DOCUMENTED = {
    "lightning.fabric.plugins",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.cli",
    "lightning.pytorch.core.optimizer",
    "lightning.pytorch.loggers",
    "lightning.pytorch.loggers.logger",
    "lightning.pytorch.plugins.environments",
    "lightning.pytorch.strategies",
    "lightning.pytorch.trainer.states",
    "lightning.pytorch.utilities",
    "lightning.pytorch.utilities.exceptions",
    "lmms_eval.api.model",
    "lmms_eval.models.registry_v2",
    "pycocoevalcap.cider.cider",
    "torchmetrics.utilities.data",
    "transformers.cache_utils",
    "transformers.integrations.sdpa_attention",
    "transformers.masking_utils",
}
# Private names and imports from anywhere else are found in the code; attributes without an underscore are not.
LISTED = {
    # torch
    "_version": "whether a tensor was written to since its working copy was made",
    # Lightning
    "_prepare_subcommand_parser": "options of one subcommand alone: its public hook gives them to every one",
    "_parse_ckpt_path": "does nothing, so that a checkpoint's settings don't go over the given ones",
    "_set_hparams": "hyperparameters become plain before Lightning copies them with all weights",
    "_given_hyperparameters_context": "a module that is built from a checkpoint keeps the arguments it was given",
    "_batches_that_stepped": "the step that loggers get: Lightning counts it wrongly when a run goes on",
    "epoch_loop.max_steps": "a run that has only its last validation left: Lightning leaves before it",
    "epoch_loop.batch_progress": "the counters in a checkpoint, from which a run goes on between two steps",
    # DeepSpeed
    "_setup_model_and_optimizer": "the optimizer's groups, before DeepSpeed flattens them (Lightning's name)",
    "ds_optim_param": "a mark for alpha: DeepSpeed fails on sending a scalar",
    "averaged_gradients": "gradients between backward and step, to skip a step with NaN",
    "_hp_optimizer_states_linked": "DeepSpeed links the states of the first group alone",
    "_lazy_init_hp_params_optimizer_state": "the same",
    # transformers
    "register_checkpoint_conversion_mapping": "a class of ours keeps LLaVA's names of weights in its files",
    "get_checkpoint_conversion_mapping": "the same: LLaVA's own",
    "flex_attention_forward": "flex attention of packed rows, beside the documented sdpa_attention_forward",
    "PhiAttention": "fewer calls in a decoding step of Phi: its class is what tells that a layer's attention is it",
    "Molmo2ImageProcessor": "without torchvision the name at the top is only a placeholder that refuses",
    "get_rope_index": "positions in pictures as the model itself counts them, in the loader and without weights",
    # uvicorn
    "H11Protocol": "a client that sends half a header is left; uvicorn has no time-out for it",
    # vLLM: its plugins have an entry point, and no interface for layers
    "BaseLayerWithLoRA": "twins in place of an MLP, told by slot which package a token is of",
    "LoRAModelManager": "where a model gets its twins before vLLM measures memory",
    "LoRAModel": "a package is held as an adapter is",
    "PEFTHelper": "a package's folder in place of an adapter's",
    "lora_ops": "on CPUs a token without adapter takes the last one's: the index -1",
    "punica_cpu": "the same, where vLLM has imported it",
}


def own_names() -> set[str]:
    """Every name that the package itself defines: functions, classes, attributes, variables, arguments."""
    names = set()
    for node in (node for tree in MODULES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PROMISED


def used() -> Iterator[tuple[str, str]]:
    """(private name of a dependency, where): attributes and imports that are not ours, and what a class overrides."""
    own = own_names()
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
                yield node.attr, f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("ts_lightning", "__")):
                for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                    if _private(name):
                        yield name, f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.ClassDef):
                yield from ((name, f"{path.name}:{node.lineno}") for name in overridden(path, node))


def overridden(path: Path, node: ast.ClassDef) -> Iterator[str]:
    """Private names of a class that a base class from a dependency has too."""
    names = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    names |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and _is_self(part)}
    if not (names := {name for name in names if _private(name)}):
        return
    try:
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        return  # where it is missing this one file is not looked at
    cls = getattr(module, node.name, None)
    for base in inspect.getmro(cls)[1:] if isinstance(cls, type) else ():
        top = base.__module__.split(".")[0]
        if top != "ts_lightning" and top not in sys.stdlib_module_names:
            source = inspect.getsource(base)
            yield from (name for name in names if re.search(rf"\b{name}\b", source))


def undocumented() -> Iterator[tuple[str, str]]:
    """(name, where) of imports from inside a dependency, where its documentation has no such module."""
    for path, tree in MODULES.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
            top, *inside = (node.module or "").split(".")
            own = top in ("ts_lightning", "torch") or top in sys.stdlib_module_names
            if own or len(inside) < (1 if top in ("transformers", "vllm") else 2) or node.module in DOCUMENTED:
                continue
            yield from ((alias.name, f"{path.name}:{node.lineno}") for alias in node.names)


def test_every_private_name_has_its_reason() -> None:
    found: dict[str, str] = {}
    for name, where in (*used(), *undocumented()):
        found.setdefault(name, where)
    assert {name: where for name, where in found.items() if name not in LISTED} == {}


def test_the_list_is_short_and_true() -> None:
    text = "\n".join(path.read_text() for path in MODULES)
    assert [name for name in LISTED if name not in text] == [], "no longer used: take them out"
    assert len(LISTED) <= LIMIT
