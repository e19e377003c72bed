"""How long a command takes before it does anything: CPU seconds of `--help`, of a wrong option, and of `fit`'s start.

    python -m tools.bench.startup

`fit` is counted until it has the first batch, on the committed toy shards, in a process of its own with one thread.
Exit status 1 where a figure is above what is wanted, or where a command does not end as it should.
"""

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST_STEP = f"""
import os, sys
from ts_lightning.cli import main, quick_imports
with quick_imports():
    from ts_lightning.training import BaseModule
BaseModule.training_step = lambda *args: os._exit(0)
sys.exit(main(["fit", "-c", "fit/toy_twist.yaml", "--trainer.enable_progress_bar=false", "--data.init_args.val=null",
    "--trainer.num_sanity_val_steps=0",
    "--data.init_args.train.shards={ROOT}/data_shards/toy/train-000000.tar"]) or "no step came")
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Words for Python, the most CPU seconds that are wanted (None: no bar), and how the process has to end."""

    words: list[str]
    most: float | None = None
    status: int = 0


CASES = {
    "import ts_lightning": Case(["-c", "import ts_lightning"], 0.2),
    "--help": Case(["-m", "ts_lightning", "--help"], 2.5),
    "a wrong verb": Case(["-m", "ts_lightning", "ftt"], 2.5, 2),
    "certify --help": Case(["-m", "ts_lightning", "certify", "--help"]),
    "fit --help": Case(["-m", "ts_lightning", "fit", "--help"]),
    "fit, a wrong option": Case(["-m", "ts_lightning", "fit", "--trainr.max_steps=1"], 2.5, 2),
    "fit, to the first step": Case(["-c", FIRST_STEP], 6.0),
}


def cpu_seconds(case: Case, folder: str) -> float:
    """User and system seconds of a Python process and its children; ValueError where it ends otherwise."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *case.words]
    done = subprocess.run(words, cwd=folder, env=known, capture_output=True, text=True, check=False)
    if done.returncode != case.status or "Traceback" in done.stderr:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ValueError(f"seen exit status {done.returncode} ({said}), expected {case.status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int = 3) -> int:
    """Print the least of `rounds` for each case beside the most that is wanted; 1 where one is above it or fails."""
    failed = False
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                seconds = min(cpu_seconds(case, folder) for _ in range(rounds))
            except ValueError as error:
                print(f"startup: {name}: {error}", file=sys.stderr)
                return 1
        above = case.most is not None and seconds > case.most
        wanted = "" if case.most is None else f"   wanted: at most {case.most} s{': ABOVE' if above else ''}"
        print(f"{name:28}{seconds:6.2f} s{wanted}", flush=True)
        failed |= above
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
