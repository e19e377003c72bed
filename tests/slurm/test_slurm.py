"""The sbatch files on a real two-node cluster, and the command that submits them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability import slurm
from ts_lightning.cli import main

SUBMIT = [sys.executable, "-m", "ts_lightning", "submit"]


def test_submit_prints_what_it_would_run(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("{}")
    line = [*SUBMIT, "--config", str(config), "--nodes", "2", "--devices", "4", "--time", "8:00:00"]
    done = subprocess.run([*line, "--dry-run", "--", "--watchdog", "60"], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[:5] == ["sbatch", "--nodes=2", "--ntasks-per-node=4", "--time=8:00:00", "--signal=USR1@120"]
    assert words[-8:] == ["-c", str(config), "--trainer.num_nodes", "2", "--trainer.devices", "4", "--watchdog", "60"]
    cores = ["--gpus-per-node", "4", "--cpus-per-task", "5", "--dry-run"]
    done = subprocess.run([*line, *cores], capture_output=True, text=True, check=True)
    assert done.stdout.split()[3:6] == ["--gpus-per-node=4", "--cpus-per-task=5", "--time=8:00:00"]
    done = subprocess.run([*SUBMIT, "--config", "no.yaml", "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "configuration: seen 'no.yaml', which is no file" in done.stderr


def test_a_job_takes_its_configuration_or_says_that_it_takes_none(capsys: pytest.CaptureFixture) -> None:
    words = ["submit", "--config", "configs/eval/rec.yaml", "--dry-run", "--job"]
    assert main([*words, "array_generate", "--", "list.txt", "OUT", "--ckpt_path", "FILE"]) == 0
    told = capsys.readouterr().out.split()[-6:]
    assert [told[3].rpartition("configs/")[2], *told[:3], *told[4:]] == [
        "eval/rec.yaml", "list.txt", "OUT", "-c", "--ckpt_path", "FILE",
    ]  # fmt: skip
    assert main([*words, "generate", "--", "scout", "x"]) == 2
    assert "--config: seen configs/eval/rec.yaml for --job generate, expected none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["--export=ALL,PYTHON={}"]),
        (["--sbatch=--account=A", "--sbatch=--export=HOME,WANDB_MODE=offline"],
         ["--account=A", "--export=HOME,WANDB_MODE=offline,PYTHON={}"]),
        (["--sbatch=--export", "--sbatch=ALL,X=1", "--sbatch=--hold"], ["--export", "ALL,X=1,PYTHON={}", "--hold"]),
    ],
)  # fmt: skip
def test_an_export_of_the_user_is_kept(given: list[str], expected: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["submit", "--job", "generate", "--dry-run", *given, "--", "scout"]) == 0
    *_, last = words = capsys.readouterr().out.split()
    assert last == "scout"
    assert words[3:-2] == [word.format(sys.executable) for word in expected]


@pytest.mark.slow
@pytest.mark.skipif(slurm.missing() is not None, reason=f"SLURM: {slurm.missing()}")
def test_broken_jobs_end_as_the_unbroken_one(tmp_path: Path) -> None:
    figures = slurm.run(tmp_path)
    print(figures)
    assert figures["restarts"] >= 2
