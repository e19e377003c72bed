"""The overlays of loggers: figures and pictures of each arrive; a package that is absent is one line."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration import tiny
from ts_lightning.cli import main

OVERLAYS = Path(__file__).parents[2] / "configs/trainer"


def fit(name: str, shards: str, root: Path) -> int:
    config = tiny.config(shards, root)
    config["trainer"] |= {"max_steps": 2, "enable_checkpointing": False, "limit_val_batches": 1.0}
    config["trainer"] |= {"val_check_interval": 1, "check_val_every_n_epoch": None}
    overlay = str(OVERLAYS / f"{name}.yaml")
    return main(["fit", "-c", tiny.save(config, root.parent / "fit.json"), "-c", overlay, "--pictures", "2"])


def in_tensorboard(root: Path) -> tuple[set[str], list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tensorboard"))
    events.Reload()
    return set(events.Tags()["scalars"]), [one.step for one in events.Images("pictures/toy/0")]


def in_mlflow(root: Path) -> tuple[set[str], list[int]]:
    figures = {str(path.relative_to(next(root.rglob("metrics")))) for path in root.rglob("metrics/**/*")}
    pictures = root.rglob("artifacts/pictures/toy/step-*/toy.png")
    return figures, sorted(int(path.parent.name.removeprefix("step-")) for path in pictures)


def in_trackio(root: Path) -> tuple[set[str], list[int]]:
    from trackio.api import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("ts-lightning")
    rows: list[dict[str, Any]] = SQLiteStorage.get_logs("ts-lightning", run.name)
    figures = {name for row in rows for name in row}
    return figures, sorted(row["step"] for row in rows if "pictures/toy/0" in row)


LOGGERS: dict[str, Callable[[Path], tuple[set[str], list[int]]]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}


@pytest.mark.parametrize("name", LOGGERS)
def test_figures_and_pictures(
    name: str,
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if importlib.util.find_spec(name) is None:
        assert fit(name, shards, tmp_path / "run") == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("ts-lightning: error: ")
        assert name in said
        pytest.skip(f"needs {name}; that it says so was seen")
    assert fit(name, shards, tmp_path / "run") == 0
    figures, steps = LOGGERS[name](tmp_path / "run")
    assert {"train/loss", "val/toy/unparsed"} <= figures
    assert steps == [1, 2]
    drawn = [path.parent.name for path in sorted((tmp_path / "run/pictures").rglob("toy.png"))]
    assert drawn == ["step-000001", "step-000002"]
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["step"] == 0
