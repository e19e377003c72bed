"""What a wheel has to hold beside the code."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ts_lightning"


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_every_tracked_data_file_is_package_data() -> None:
    listed = subprocess.run(["git", "ls-files", "-z", PACKAGE], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {ROOT / name for name in listed.stdout.split("\0") if name and not name.endswith(".py")}
    linked = {path for path in tracked if path.is_symlink()}  # folders of the repository that a wheel has too
    tracked = (tracked - linked) | {file for path in linked for file in path.rglob("*") if file.suffix != ".sh"}
    tracked = {path for path in tracked if path.is_file()}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in patterns["ts_lightning"] for path in PACKAGE.glob(pattern)}
    assert tracked
    assert sorted(str(path.relative_to(ROOT)) for path in tracked - packed) == []
