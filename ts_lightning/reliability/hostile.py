"""Item 11: input from a stranger. Nothing of it runs, every piece is refused in one line, memory stays small."""

import io
import json
import os
import pickle
import resource
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.models.pixels import load_pixels
from ts_lightning.reliability import images, tiny_run
from ts_lightning.training import CheckpointIO

LIMIT_MB = 1024


class Evil:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def attempts(folder: Path, hit: Path) -> dict[str, Callable[[], object]]:
    """Name -> what a stranger would like to happen; each has to raise ValueError, or fail as a command does."""
    torch.save({"state_dict": {}, "x": Evil(hit)}, folder / "evil.ckpt")
    (folder / "raw.ckpt").write_bytes(pickle.dumps(Evil(hit)))
    module = folder / "evil_module.py"
    module.write_text(f"import os\nos.system('touch {hit}')\nclass Evil: pass\n")
    sys.path.insert(0, str(folder))
    shards = tiny_run.write(folder / "good", 8)

    def tar(name: str, build: Callable[[tarfile.TarFile], None]) -> Callable[[], object]:
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            build(archive)
        return lambda: index_shards(str(folder / f"{name}.tar"))

    def member(name: str, data: bytes = b"{}", kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[..., None]:
        def build(archive: tarfile.TarFile) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 0 if kind != tarfile.REGTYPE else len(data)
            archive.addfile(info, io.BytesIO(data))

        return build

    def fit(change: Callable[[dict[str, Any]], None], name: str) -> Callable[[], object]:
        given = tiny_run.config(shards, folder / name, 1)
        change(given)
        path = tiny_run.save(given, folder / f"{name}.json")
        return lambda: _refused_command("fit", "-c", path)

    def callback(class_path: str, **init_args: Any) -> Callable[[dict[str, Any]], None]:
        return lambda c: c["trainer"]["callbacks"].append({"class_path": class_path, "init_args": init_args})

    def replaced(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda c: c["model"]["init_args"].__setitem__(key, value)

    return {
        "pickle in a checkpoint": lambda: CheckpointIO().load_checkpoint(folder / "evil.ckpt", weights_only=False),
        "bare pickle as a checkpoint": lambda: CheckpointIO().load_checkpoint(folder / "raw.ckpt"),
        "validate of a pickle": lambda: _refused_command("validate", "--ckpt_path", str(folder / "evil.ckpt")),
        "pipe URL": lambda: index_shards(f"pipe:touch {hit}"),
        "pipe URL with slashes": lambda: index_shards(f"pipe://touch {hit}"),
        "chained URL": lambda: index_shards("simplecache::file:///etc/passwd"),
        "pipe URL in a YAML": fit(lambda c: c["data"]["init_args"]["train"].update(shards=f"pipe:touch {hit}"), "pipe"),
        ".. member": tar("up", member("../../up.json")),
        "absolute member": tar("root", member("/tmp/root.json")),
        "symlink": tar("symlink", member("a.json", kind=tarfile.SYMTYPE, link="/etc/passwd")),
        "hard link": tar("hardlink", member("a.json", kind=tarfile.LNKTYPE, link="b.json")),
        "device": tar("device", member("a.json", kind=tarfile.CHRTYPE)),
        "pickle in a tar": tar("pickle", member("a.pkl", pickle.dumps(Evil(hit)))),
        "module of a stranger": fit(callback("evil_module.Evil"), "module"),
        "subprocess": fit(callback("subprocess.Popen", args=["touch", str(hit)]), "popen"),
        "torch.hub": fit(replaced("optimizer", {"class_path": "torch.hub.load", "init_args": {}}), "hub"),
        "cpp_extension": fit(replaced("optimizer", {"class_path": "torch.utils.cpp_extension.load"}), "cpp"),
        "callable": fit(callback("lightning.pytorch.callbacks.LambdaCallback", on_fit_start="os.abort"), "callable"),
        "bomb": lambda: load_pixels(images.png_header(12000, 12000), 32),
        "big bomb": lambda: load_pixels(images.png_header(60000, 60000), 32),
        "deep JSON": tar("deep", member("a.json", b"[" * 200_000)),
    }


def run(folder: Path) -> dict[str, Any]:
    """The figures; AssertionError with the names of what was not refused."""
    hit = folder / "HIT"
    wrong = []
    for name, attempt in attempts(folder, hit).items():
        try:
            attempt()
            wrong.append(f"{name}: not refused")
        except ValueError as error:
            if "\n" in str(error):
                wrong.append(f"{name}: {str(error)[:200]!r}")
        if hit.exists():
            wrong.append(f"{name}: EXECUTED")
            hit.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert not wrong, json.dumps(wrong)
    assert peak < LIMIT_MB, f"{peak:.0f} MB"
    return {"attempts": len(attempts(folder, hit)), "executed": 0, "peak_mb": round(peak)}


def _refused_command(*args: str) -> None:
    """ValueError with the command's one line when it ends with status 2."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        status = main(list(args))
    if status == 2:
        raise ValueError(said.getvalue().strip().splitlines()[-1])
