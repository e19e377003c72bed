"""A real two-node SLURM: train over both nodes, requeue, signal before the limit, kill a node; compare the weights."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ts_lightning.reliability import tiny_run

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tools/slurm/local_cluster.sh"
STEPS = 24


def missing() -> str | None:
    """Why the cluster can't be started here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    programs = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]
    return f"{', '.join(programs)} not installed" if programs else None


class Cluster:
    """`with Cluster(folder) as cluster:` starts it and stops it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(CLUSTER), "start", str(self.folder)], check=True, env=self.env, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--state=RUNNING"], env=self.env, check=False)
        subprocess.run([str(CLUSTER), "stop", str(self.folder)], env=self.env, check=False)

    def call(self, *line: str) -> str:
        return subprocess.run(line, env=self.env, check=True, capture_output=True, text=True, cwd=self.folder).stdout

    def submit(self, given: dict[str, Any], name: str, *options: str, job: str = "train", rest: Any = ()) -> str:
        path = tiny_run.save(given, self.folder / f"{name}.yaml")
        line = [sys.executable, str(ROOT / "tools/submit.py"), "--job", job, "--config", path, "--nodes", "2"]
        extra = [f"--sbatch=--output={self.folder}/{name}.log", *options]
        found = re.search(r"Submitted batch job (\d+)", self.call(*line, *extra, "--", *rest))
        assert found is not None
        return found[1]

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self.call("scontrol", "show", "job", job))
        return found[1] if found else "?"

    def restarts(self, job: str) -> int:
        found = re.search(r"Restarts=(\d+)", self.call("scontrol", "show", "job", job))
        return int(found[1]) if found else 0

    def wait(self, job: str, seconds: float = 180) -> str:
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            if time.monotonic() > end:
                raise TimeoutError(f"job {job}: seen {state} after {seconds:.0f} s, expected its end")
            time.sleep(0.5)
        return state

    def kill_node(self, name: str) -> list[int]:
        """SIGKILL the node's slurmd; its job's processes are stopped, as on a machine that hangs. Returns those."""
        os.kill(int((self.folder / f"slurmd-{name}.pid").read_text()), signal.SIGKILL)
        left = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"SLURMD_NODENAME={name}".encode() in path.read_bytes() and b"SLURM_PROCID" in path.read_bytes():
                    left.append(int(path.parent.name))
                    os.kill(left[-1], signal.SIGSTOP)
        return left


def wait_for_step(root: Path, step: int, seconds: float = 120) -> None:
    """Until a checkpoint of at least `step` is there."""
    end = time.monotonic() + seconds
    while not any(int(p.stem.split("=")[1]) >= step for p in (root / "checkpoints").glob("step=*.ckpt")):
        if time.monotonic() > end:
            raise TimeoutError(f"{root}: no checkpoint of step {step} after {seconds:.0f} s")
        time.sleep(0.1)


def run(folder: Path) -> dict[str, Any]:
    """All of it; the figures. AssertionError where a run does not end as the unbroken one."""
    shards = tiny_run.write(folder / "shards", 100)
    figures: dict[str, Any] = {}
    with Cluster(folder / "cluster") as cluster:
        began = time.monotonic()
        whole = folder / "whole"
        assert cluster.wait(cluster.submit(tiny_run.config(shards, whole, STEPS), "whole")) == "COMPLETED"
        figures["unbroken_s"] = round(time.monotonic() - began)
        expected = tiny_run.state(whole, STEPS)

        began, root = time.monotonic(), folder / "requeued"
        # a limit of one minute, the signal 40 s before it: it comes while the pauses of 1.5 s make the run 36 s long
        options = ("--time", "1", "--signal", "40")
        job = cluster.submit(tiny_run.config(shards, root, STEPS, pause=1.5), "requeued", *options)
        wait_for_step(root, 2)
        cluster.call("scontrol", "requeue", job)
        assert cluster.wait(job, 300) == "COMPLETED"
        log = (cluster.folder / "requeued.log").read_text()
        figures["requeued_s"], figures["restarts"] = round(time.monotonic() - began), cluster.restarts(job)
        figures["usr1"] = len(re.findall("SIGUSR1: saved", log))
        assert figures["restarts"] >= 2, log[-3000:]
        assert figures["usr1"] >= 1, log[-3000:]
        assert tiny_run.same(tiny_run.state(root, STEPS), expected)
        assert tiny_run.metrics(root) == tiny_run.metrics(whole)

        checkpoint = ["--ckpt_path", str(root / f"checkpoints/step={STEPS}.ckpt")]
        given = {"trainer": {"accelerator": "cpu", "default_root_dir": str(folder / "scores")}}
        job = cluster.submit(given, "validate", job="validate", rest=checkpoint)
        assert cluster.wait(job) == "COMPLETED"
        assert "val/toy/" in (folder / "scores/validate/metrics.csv").read_text()

        began, root = time.monotonic(), folder / "node"
        job = cluster.submit(tiny_run.config(shards, root, STEPS, pause=0.5), "node")
        wait_for_step(root, 4)
        old = cluster.kill_node("n1")  # rank 0, the writer, is on it
        end = time.monotonic() + 90
        while cluster.restarts(job) == 0 and time.monotonic() < end:
            time.sleep(0.5)
        subprocess.run([str(CLUSTER), "node", str(cluster.folder), "n1"], env=cluster.env, check=True)
        wait_for_step(root, 8)
        for pid in old:  # the old writer wakes up beside the new one
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert cluster.wait(job, 240) == "COMPLETED"
        figures["dead_node_s"] = round(time.monotonic() - began)
        assert tiny_run.same(tiny_run.state(root, STEPS), expected)
        assert tiny_run.metrics(root) == tiny_run.metrics(whole)
    return figures
