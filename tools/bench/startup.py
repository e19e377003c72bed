"""How long a command takes before it does anything: CPU seconds of `--help`, of a wrong option, and of `fit`'s start.

    python -m tools.bench.startup

`fit` is counted until it has the first batch, on the committed toy shards, in a process of its own with one thread.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST_STEP = f"""
import os
from ts_lightning.cli import main, quick_imports
with quick_imports():
    from ts_lightning.training import BaseModule
BaseModule.training_step = lambda *args: os._exit(0)
main(["fit", "-c", "fit/toy_twist.yaml", "--trainer.enable_progress_bar=false", "--data.init_args.val=null",
      "--trainer.num_sanity_val_steps=0", "--data.init_args.train.shards={ROOT}/data_shards/toy/train-000000.tar"])
"""
CASES = {
    "import ts_lightning": (["-c", "import ts_lightning"], 0.2),
    "--help": (["-m", "ts_lightning", "--help"], 2.5),
    "a wrong verb": (["-m", "ts_lightning", "ftt"], 2.5),
    "certify --help": (["-m", "ts_lightning", "certify", "--help"], None),
    "fit --help": (["-m", "ts_lightning", "fit", "--help"], None),
    "fit, a wrong option": (["-m", "ts_lightning", "fit", "--trainr.max_steps=1"], 2.5),
    "fit, to the first step": (["-c", FIRST_STEP], 6.0),
}


def cpu_seconds(words: list[str], folder: str) -> float:
    """User and system seconds of a Python process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int = 3) -> int:
    """Print the least of `rounds` for each case beside the most that is wanted."""
    for name, (words, most) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds = min(cpu_seconds(words, folder) for _ in range(rounds))
        print(f"{name:28}{seconds:6.2f} s{'' if most is None else f'   wanted: at most {most} s'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
