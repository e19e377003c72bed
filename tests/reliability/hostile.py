"""Item 11: input from a stranger. Nothing of it runs, every piece is refused in one line, memory stays small."""

import copy
import io
import json
import resource
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from tests.reliability import hostile_files, hostile_places, tiny_run
from tests.reliability.hostile_files import Attempts, Evil
from tests.reliability.hostile_places import COMMANDS
from ts_lightning.cli import main
from ts_lightning.data import index_shards

LIMIT_MB = 1024
_MODULE = "import os\nos.system('touch {hit}')\nclass Evil: pass\n"


def attempts(folder: Path, hit: Path) -> Attempts:
    """Name -> what a stranger would like to happen; each has to raise ValueError, or fail as a command does."""
    (folder / "evil_module.py").write_text(_MODULE.format(hit=hit))
    sys.path.insert(0, str(folder))
    torch.save({"state_dict": {}, "x": Evil(hit)}, folder / "evil.ckpt")
    return {
        **configurations(folder, tiny_run.write(folder / "good", 8), hit),
        "validate of a pickle": lambda: _refused_command("validate", "--ckpt_path", str(folder / "evil.ckpt")),
        "pipe URL": lambda: index_shards(f"pipe:touch {hit}"),
        "pipe URL with slashes": lambda: index_shards(f"pipe://touch {hit}"),
        "chained URL": lambda: index_shards("simplecache::file:///etc/passwd"),
        **hostile_files.tars(folder, hit),
        **hostile_files.pictures(),
        **hostile_files.checkpoints(folder, hit),
        **hostile_files.folders(folder, hit),
    }


def configurations(folder: Path, shards: str, hit: Path) -> Attempts:
    """YAMLs that name what is not theirs to name, run code by their syntax, or grow."""

    def fit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
        given = copy.deepcopy(tiny_run.config(shards, folder / name, 1))
        given["trainer"]["callbacks"].pop()  # the pause, which is not ours to name
        change(given)
        path = tiny_run.save(given, folder / f"{name}.json")
        return lambda: _refused_command("fit", "-c", path)

    def text(name: str, content: str) -> Callable[[], object]:
        (folder / f"{name}.yaml").write_text(content)
        return lambda: _refused_command("fit", "-c", str(folder / f"{name}.yaml"))

    def callback(class_path: str, **init_args: Any) -> Callable[[dict[str, Any]], None]:
        return lambda c: c["trainer"]["callbacks"].append({"class_path": class_path, "init_args": init_args})

    def resumed(given: dict[str, Any], **trainer: Any) -> None:
        """Without a ckpt_path Lightning goes on from the file of this callback."""
        callback("lightning.pytorch.callbacks.OnExceptionCheckpoint", dirpath=str(folder), filename="evil")(given)
        given["trainer"] |= trainer

    def replaced(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda c: c[part].get("init_args", c[part]).__setitem__(key, value)

    def grpo(given: dict[str, Any]) -> None:
        given["model"]["class_path"] = "ts_lightning.training.GRPO"
        callback(
            "ts_lightning.rl.RolloutCallback", num_generations=2, rewards={"x": "ts_lightning.rl.rewards.import_module"}
        )(given)

    grown = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11))
    hub = {"class_path": "torch.hub.load", "init_args": {}}
    evil = str(folder / "evil.ckpt")
    asynchronous = [{"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"}]
    sharded = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
    loader = {"class_path": "ts_lightning.training.SFT.load_from_checkpoint"}
    assert fit("as it should be", lambda c: None)() is None  # what is refused below is refused for what it changes
    return {
        "pipe URL in a YAML": fit("pipe", lambda c: c["data"]["init_args"]["train"].update(shards=f"pipe:touch {hit}")),
        "python in a YAML": text("python", f"trainer: !!python/object/apply:os.system ['touch {hit}']\n"),
        "YAML that grows": text("grown", grown),
        "YAML that allows itself": fit("allow", lambda c: c.update(allow_classes="evil_module")),
        "module of a stranger": fit("module", callback("evil_module.Evil")),
        "subprocess": fit("popen", callback("subprocess.Popen", args=["touch", str(hit)])),
        "what our modules import": fit("ours", callback("ts_lightning.cli.os.system", command=f"touch {hit}")),
        "torch.hub": fit("hub", replaced("model", "optimizer", hub)),
        "cpp_extension": fit("cpp", replaced("model", "optimizer", {"class_path": "torch.utils.cpp_extension.load"})),
        "callable": fit("callable", callback("lightning.pytorch.callbacks.LambdaCallback", on_fit_start="os.abort")),
        "encoder": fit("encoder", replaced("data", "encode", "ts_lightning.cli.os.abort")),
        "reward": fit("reward", grpo),
        "checkpoint": fit("checkpoint", lambda c: c.update(ckpt_path=evil)),
        "checkpoint by a URL": fit("url", lambda c: c.update(ckpt_path="http://127.0.0.1/evil.ckpt")),
        "weights_only": fit("weights_only", lambda c: c.update(ckpt_path=evil, weights_only=False)),
        "checkpoint of a callback": fit("resumed", resumed),
        "plugin that unpickles": fit("plugin", lambda c: resumed(c, plugins=asynchronous)),
        "strategy that unpickles": fit("strategy", lambda c: resumed(c, strategy=sharded)),
        "load_from_checkpoint": fit(
            "load_from",
            lambda c: c.update(model=loader | {"init_args": {"checkpoint_path": evil, "weights_only": False}}),
        ),
    }


def run(folder: Path, quick: bool = False) -> dict[str, Any]:
    """The figures; AssertionError with the names of what was not refused."""
    hit = folder / "HIT"
    wrong = []
    chosen = attempts(folder, hit)
    for name, attempt in chosen.items():
        try:
            attempt()
            wrong.append(f"{name}: not refused")
        except ValueError as error:
            if "\n" in str(error).strip():
                wrong.append(f"{name}: {str(error)[:200]!r}")
        if hit.exists():
            wrong.append(f"{name}: EXECUTED")
            hit.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert not wrong, json.dumps(wrong)
    assert peak < LIMIT_MB, f"{peak:.0f} MB"
    (folder / "walk").mkdir()
    walk = hostile_places.walk(folder / "walk", every=8 if quick else 1, commands=("fit",) if quick else COMMANDS)
    return {"attempts": len(chosen), "peak_mb": round(peak), **walk}


def _refused_command(*args: str) -> None:
    """ValueError with the command's one line when it ends with status 2."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        status = main(list(args))
    if status == 2:
        raise ValueError(said.getvalue().strip().splitlines()[-1])
