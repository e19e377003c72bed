"""The batch scripts of SLURM, with programs of the test in place of its own."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "tools/slurm"
SRUN = """#!/bin/bash
echo "$SRUN_CPUS_PER_TASK"
"""
WORDS = {"array_generate": ["list", "OUT"], "generate": ["scout"], "train": [], "validate": ["--ckpt_path", "FILE"]}


@pytest.mark.parametrize("name", WORDS)
def test_tasks_have_the_cores_that_the_job_was_given(name: str, tmp_path: Path) -> None:
    """srun of 22.05 and later takes them from no other variable."""
    for program, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho NodeAddr=x\n")):
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    (tmp_path / "list").write_text("a.tar\n")
    (tmp_path / "OUT/1").mkdir(parents=True)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "5"}
    env = os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = ["bash", str(SCRIPTS / f"{name}.sbatch"), *WORDS[name]]
    done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "5"
