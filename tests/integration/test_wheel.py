"""What `pip install` leaves a user with: the whole main job works from an empty folder, far from the repository."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COCO = ROOT.parent / "shared/real/coco_mini"
PARTS = ("ts_lightning", "configs", "tools", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("pip") is None, reason="pip is not installed"),
    pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools, which builds the wheel, is not installed"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy: an old build folder would put deleted files into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PARTS:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*line, "-w", str(out), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ts-lightning` of a new environment that has the wheel and, of this one, everything else."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    line = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*line, str(wheel)], check=True)
    (packages,) = home.glob("lib/*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home / "bin/ts-lightning"


Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return known | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


@pytest.fixture(scope="module")
def run(command: Path, folder: Path) -> Run:
    """Run the command in the empty folder and return what it prints; it has to succeed."""

    def call(line: str, *more: str) -> str:
        words = [str(command), *line.split(), *more]
        done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return call


@pytest.fixture(scope="module")
def checkpoint(run: Run, folder: Path) -> str:
    """The quickstart's, trained for a few steps on a little data."""
    assert "5 shards in data_shards/toy_world" in run("data toy --train 128 --val 8")
    few = "--data.init_args.global_batch_size 2 --data.init_args.micro_batch_size 1"
    table = run(f"quickstart --steps 60 --train 128 --val 8 {few}")
    assert re.search(r"retention certificate +passed", table)
    assert (folder / "outputs/quickstart/report.md").is_file()
    return "outputs/quickstart/fit/checkpoints/last.ckpt"


def test_a_wheel_has_what_a_user_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for path in [*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("tools/slurm/*.sbatch")]:
        place = f"configs/{path.parent.name}" if path.suffix == ".yaml" else "cli/slurm"
        assert f"ts_lightning/{place}/{path.name}" in names
    assert {name.split("/")[0] for name in names} == {
        "ts_lightning",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }


def test_evaluate(run: Run, checkpoint: str, folder: Path) -> None:
    assert "| grounding |" in run(f"evaluate --ckpt {checkpoint} --suites eval/toy.yaml --out outputs/report")
    assert (folder / "outputs/report/report.html").is_file()


def test_certify(run: Run, checkpoint: str) -> None:
    assert "PASSED" in run(f"certify --ckpt {checkpoint} --shards data_shards/toy_world/val_understanding-*.tar")


def test_export(run: Run, checkpoint: str, folder: Path) -> None:
    run(f"export --ckpt {checkpoint} --to package --out outputs/package")
    assert [*(folder / "outputs/package").glob("*.safetensors")]


@pytest.mark.skipif(not COCO.is_dir(), reason="no COCO photographs beside the repository")
def test_photographs_from_their_files_to_a_fit(run: Run, folder: Path) -> None:
    files = ["--images", str(COCO / "train2017"), "--annotations", str(COCO / "annotations/instances_train2017.json")]
    assert "171 records" in run("data convert coco --out data_shards/coco --prefix train", *files)
    run("fit -c fit/coco_localization.yaml --trainer.max_steps=20 --data.init_args.num_workers=0")
    assert (folder / "outputs/coco_localization/config.yaml").is_file()
    assert [*(folder / "outputs/coco_localization/checkpoints").glob("*.ckpt")]


def test_a_question_over_http(command: Path, folder: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra demo is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([str(command), "serve", "--port", str(port)], cwd=folder, env=environment())
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/api/model")
                connection.getresponse().read()
                break
            except ConnectionRefusedError:
                time.sleep(0.3)
        asked = {"images": [], "regions": [], "texts": ["What is two and two?"], "task": "understanding"}
        connection.request("POST", "/api/ask", json.dumps(asked), {"Content-Type": "application/json"})
        events = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        assert events[-1].get("done") is True, events
    finally:
        server.terminate()
        server.wait(30)
