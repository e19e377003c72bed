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

from tests.reliability import tiny_run

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tools/slurm/local_cluster.sh"
STEPS = 24
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


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
        # the ranks, which start in another folder, find the run's own callback and may use it
        self.env |= {"PYTHONPATH": str(ROOT), "TS_LIGHTNING_CLASS_PREFIXES": tiny_run.__name__}

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(CLUSTER), "start", str(self.folder)], check=True, env=self.env, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--state=RUNNING"], env=self.env, check=False)
        subprocess.run([str(CLUSTER), "stop", str(self.folder)], env=self.env, check=False)

    def call(self, *line: str, **environment: str) -> str:
        env = self.env | environment
        return subprocess.run(line, env=env, check=True, capture_output=True, text=True, cwd=self.folder).stdout

    def submit(
        self, given: dict[str, Any], name: str, *options: str, job: str = "train", nodes: int = 2, rest: Any = ()
    ) -> str:
        path = tiny_run.save(given, self.folder / f"{name}.yaml")
        line = [sys.executable, "-m", "ts_lightning", "submit", "--job", job, "--config", path, "--nodes", str(nodes)]
        extra = [f"--sbatch=--output={self.folder}/{name}.log", *options]
        # ranks write their errors themselves: srun, which forwards them otherwise, dies with its node
        errors = dict.fromkeys(("SRUN_ERROR", "SLURM_STDERRMODE"), f"{self.folder}/{name}-%t.err")  # new and old names
        errors |= {"SRUN_OPEN_MODE": "a", "SLURM_OPEN_MODE": "a"}
        found = re.search(r"Submitted batch job (\d+)", self.call(*line, *extra, "--", *rest, **errors))
        assert found is not None
        return found[1]

    def field(self, job: str, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", self.call("scontrol", "show", "job", job))
        return found[1] if found else ""

    def restarts(self, job: str) -> int:
        return int(self.field(job, "Restarts") or 0)

    def wait(self, job: str, seconds: float = 180) -> str:
        end = time.monotonic() + seconds
        while (state := self.field(job, "JobState")) not in (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
        ):
            if time.monotonic() > end:
                raise TimeoutError(f"job {job}: seen {state} after {seconds:.0f} s, expected its end")
            time.sleep(0.5)
        return state

    def revive(self, name: str) -> None:
        subprocess.run([str(CLUSTER), "node", str(self.folder), name], env=self.env, check=True)

    def silence(self, name: str, number: signal.Signals) -> list[int]:
        """A node goes silent: slurmd is killed, its slurmstepds and its job get a signal. Returns those, ranks first.

        SIGKILL is a crash, SIGSTOP a machine that hangs. Daemons go first: a slurmstepd would report the end of a step.
        """
        job, daemons = [], set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"SLURMD_NODENAME={name}".encode() in path.read_bytes() and b"SLURM_PROCID" in path.read_bytes():
                    job.append(int(path.parent.name))
                    parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
                    if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                        daemons.add(parent)
        job.sort(key=is_rank, reverse=True)
        os.kill(int((self.folder / f"slurmd-{name}.pid").read_text()), signal.SIGKILL)
        for pid in (*daemons, *job):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return [*job, *daemons]


def is_rank(pid: int) -> bool:
    """Whether a process is Python, not a shell, srun or a daemon of SLURM."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


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
    with Cluster(folder / "cluster") as cluster:
        began, whole = time.monotonic(), folder / "whole"
        assert cluster.wait(cluster.submit(tiny_run.config(shards, whole, STEPS), "whole")) == "COMPLETED"
        figures: dict[str, Any] = {"unbroken_s": round(time.monotonic() - began)}
        for part in (requeued, dead_node, woken_writer):
            began = time.monotonic()
            figures |= part(cluster, folder, shards)
            figures[f"{part.__name__}_s"] = round(time.monotonic() - began)
        scores(cluster, folder, shards)
    return figures


def requeued(cluster: Cluster, folder: Path, shards: str) -> dict[str, Any]:
    """`scontrol requeue`, and USR1 before the time limit."""
    root = folder / "requeued"
    # SLURM looks every 30 s whether the end is 40 s, or up to 60 s more, away: the signal comes 20 to 80 s after the
    # start, and pauses of 3.8 s keep the run at work until then, on a fast machine too
    options = ("--time", "2", "--signal", "40")
    job = cluster.submit(tiny_run.config(shards, root, STEPS, pause=3.8), "requeued", *options)
    wait_for_restart(cluster, job)
    wait_for_line(cluster.folder / "requeued.log", "resuming from")
    cluster.call("scontrol", "requeue", job)
    assert cluster.wait(job, 300) == "COMPLETED"
    log = (cluster.folder / "requeued.log").read_text()
    figures = {"restarts": cluster.restarts(job), "usr1": len(re.findall("SIGUSR1: saved", log))}
    assert figures["restarts"] >= 2, log[-3000:]
    assert figures["usr1"] >= 1, log[-3000:]
    compare(root, folder / "whole")
    return figures


def dead_node(cluster: Cluster, folder: Path, shards: str) -> dict[str, Any]:
    """One of two nodes crashes, the one with rank 0; the job is requeued, and runs on both when it is back."""
    root = folder / "node"
    job = cluster.submit(tiny_run.config(shards, root, STEPS, pause=0.5), "node")
    wait_for_step(root, 4)
    cluster.silence("n1", signal.SIGKILL)
    wait_for_restart(cluster, job)
    cluster.revive("n1")
    assert cluster.wait(job, 240) == "COMPLETED"
    compare(root, folder / "whole")
    return {}


def woken_writer(cluster: Cluster, folder: Path, shards: str) -> dict[str, Any]:
    """A job of one rank goes on on the other node; its old writer, still alive, is refused by the run's lock."""
    root = folder / "woken"
    job = cluster.submit(tiny_run.config(shards, root, STEPS, pause=1.0), "woken", nodes=1)
    whole = cluster.submit(tiny_run.config(shards, folder / "single", STEPS), "single", nodes=1)
    wait_for_step(root, 4)
    node = cluster.field(job, "NodeList")
    assert cluster.wait(whole) == "COMPLETED"  # the other node is free
    old = cluster.silence(node, signal.SIGSTOP)
    wait_for_restart(cluster, job)
    wait_for_step(root, 8)
    wake(old)
    assert cluster.wait(job, 240) == "COMPLETED"
    log = (cluster.folder / "woken-0.err").read_text()
    refused = re.search(rf"seen taken over by job {job} restart 1 .*; nothing was written", log)
    assert refused, log[-3000:]
    compare(root, folder / "single")
    cluster.revive(node)
    return {"old_writer": refused[0]}


def scores(cluster: Cluster, folder: Path, shards: str) -> None:
    """`validate` on both nodes, and an array of two prediction tasks that is submitted twice."""
    checkpoint = ["--ckpt_path", str(folder / f"requeued/checkpoints/step={STEPS}.ckpt")]
    given = {"trainer": {"accelerator": "cpu", "default_root_dir": str(folder / "scores")}}
    assert cluster.wait(cluster.submit(given, "validate", job="validate", rest=checkpoint)) == "COMPLETED"
    assert "val/toy/" in (folder / "scores/validate/metrics.csv").read_text()

    tars = sorted(Path(shards).parent.glob("*.tar"))[:2]
    (folder / "shards.txt").write_text("".join(f"{tar}\n" for tar in tars))
    line = [str(folder / "shards.txt"), str(folder / "array"), *checkpoint, "--trainer.accelerator", "cpu"]
    files = [folder / f"array/{task}/predictions.jsonl" for task in (1, 2)]
    written = set()
    for _ in range(2):  # the second time there is nothing left to do
        job = cluster.submit({}, "array", "--sbatch=--array=1-2", job="array_generate", nodes=1, rest=line)
        end = time.monotonic() + 120
        while job in cluster.call("squeue", "-h", "-o", "%A %F") and time.monotonic() < end:
            time.sleep(0.5)
        assert all(path.is_file() for path in files), (cluster.folder / "array.log").read_text()[-3000:]
        written.add(tuple(path.stat().st_mtime_ns for path in files))
    assert len(written) == 1, "a finished task was run again"


def compare(root: Path, whole: Path) -> None:
    """Weights, optimizer and metrics are the unbroken run's, bit for bit."""
    assert tiny_run.same(tiny_run.state(root, STEPS), tiny_run.state(whole, STEPS)), root
    assert tiny_run.metrics(root) == tiny_run.metrics(whole), root


def wait_for_line(log: Path, line: str, seconds: float = 120) -> None:
    """Until the job has said it."""
    end = time.monotonic() + seconds
    while line not in log.read_text():
        if time.monotonic() > end:
            raise TimeoutError(f"{log}: seen no {line!r} after {seconds:.0f} s")
        time.sleep(0.1)


def wait_for_restart(cluster: Cluster, job: str, seconds: float = 180) -> None:
    """Until SLURM has given the node up and the job is on its way again."""
    end = time.monotonic() + seconds
    while cluster.restarts(job) == 0:
        if time.monotonic() > end:
            raise TimeoutError(f"job {job}: seen no restart after {seconds:.0f} s")
        time.sleep(0.5)


def wake(processes: list[int]) -> None:
    """Let the stopped ranks go on, and end the rest: an old srun would end the new life's step, of the same name."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT if is_rank(pid) else signal.SIGKILL)
