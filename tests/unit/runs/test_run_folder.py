"""A run's folder is empty, a run's, or a folder of folders."""

from pathlib import Path

import pytest

from ts_lightning.runs.run_folder import HEADER, check_folder, check_writers


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "thesis.tex", "run.lock", "checkpoints/"])
def test_a_folder_of_others_is_refused(name: str, tmp_path: Path) -> None:
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("PRECIOUS")
    with pytest.raises(
        ValueError, match=rf"default_root_dir: seen '{name.rstrip('/')}' in .*, which no run has written"
    ):
        check_folder(tmp_path)


def test_folders_that_are_taken(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    (tmp_path / "another run").mkdir()
    for name in ("given.yaml", "slurm-1.out", "train-000000.tar"):
        (tmp_path / name).write_text("")
    check_folder(tmp_path)
    (tmp_path / "metrics.csv").write_text("")
    (tmp_path / "config.yaml").write_text(HEADER + "2.6.6\n")
    check_folder(tmp_path)
    with pytest.raises(ValueError, match="seen the file"):
        check_folder(tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dirpath", "/elsewhere"),
        ("save_dir", "s3://bucket/x"),
        ("filename", "../../x"),
        ("version", "/x"),
        ("dir", ".."),
    ],
)
def test_writers_stay_inside(name: str, value: str, tmp_path: Path) -> None:
    def trainer(**arguments: object) -> dict[str, object]:
        return {"callbacks": [{"class_path": "x.Y", "init_args": arguments}]}

    with pytest.raises(ValueError, match=rf"^trainer\.callbacks\[0\]\.init_args\.{name}: seen '{value}', expected a "):
        check_writers(trainer(**{name: value}), tmp_path)
    check_writers(trainer(dirpath=str(tmp_path / "a"), filename="{step}", version=3, save_dir=None), tmp_path)
