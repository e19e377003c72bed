"""SIGKILL at random steps and during saves, a full disk, ranks and signals: the run ends as the undisturbed one."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.reliability import processes, tiny_run
from ts_lightning.runs import CheckpointIO
from ts_lightning.runs.resume import remove_unfinished
from ts_lightning.training import BaseModule, StepwiseSFT

STEPS = 24  # one epoch of 96 records


def undisturbed(folder: Path, ranks: int = 1, **data: Any) -> tuple[str, Path]:
    """(shards, root) of the run to compare with; made once in a folder."""
    root = folder / f"whole{ranks}"
    shards = str(folder / "shards/train-*.tar")
    if not (root / f"checkpoints/step={STEPS}.ckpt").exists():
        tiny_run.write(folder / "shards", 4 * STEPS)
        statuses = processes.finish(processes.start(given(shards, root, ranks, **data), root / "run.log", None, ranks))
        assert statuses == [0] * ranks, (root / "run.log").read_text()[-2000:]
    return shards, root


def given(shards: str, root: Path, ranks: int = 1, pause: float = 0.0, **data: Any) -> list[str]:
    """Arguments of a fit with so many ranks."""
    config = tiny_run.config(shards, root, STEPS, pause, **data)
    if ranks > 1:
        config["trainer"] |= {"devices": ranks, "strategy": "ddp"}
    return ["-c", tiny_run.save(config, root / "given.yaml")]


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Items 1 and 2: SIGKILL at `count` random steps of one epoch, the same command each time."""
    rng = random.Random(0)
    shards, whole = undisturbed(folder)
    root = folder / "killed"
    args, ids = given(shards, root), root / "ids.txt"
    for step in sorted(rng.randrange(STEPS) for _ in range(count)):

        def before(rank: int, step: int = step, how: int = rng.randrange(4), delay: float = rng.random() / 10) -> None:
            processes.record_ids(ids)
            die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            now = lambda module, call: module.trainer.global_step >= step  # noqa: E731
            if how == 0:
                processes.at(BaseModule, "training_step", now, die)
            elif how == 1:
                processes.at(StepwiseSFT, "row_losses", lambda m, call: now(m, call) and call % 4 == 3, die)
            else:  # and in the last step at the latest: a run that has ended can't be killed
                last = STEPS - 1 if how == 2 else min(step + 1, STEPS - 1)
                processes.at(BaseModule, "training_step", lambda m, c: m.trainer.global_step >= last, die)
                if how == 2:
                    processes.at(BaseModule, "training_step", now, lambda: threading.Timer(delay, die).start())
                else:
                    processes.at(BaseModule, "validation_step", now, die)

        statuses = processes.finish(processes.start(args, root / "run.log", before))
        assert statuses == [-signal.SIGKILL], f"{statuses} {(root / 'log').read_text()[-2000:]}"
    assert processes.finish(processes.start(args, root / "run.log", lambda rank: processes.record_ids(ids))) == [0]
    seen = [i for _, row in sorted(processes.read_ids(ids).items()) for i in row]
    figures = {
        "kills": count,
        "weights_optimizer_equal": tiny_run.same(tiny_run.state(root, STEPS), tiny_run.state(whole, STEPS)),
        "metrics_equal": tiny_run.metrics(root) == tiny_run.metrics(whole),
        "lost": 4 * STEPS - len(set(seen)),
        "twice": len(seen) - len(set(seen)),
    }
    assert figures["weights_optimizer_equal"], figures
    assert figures["metrics_equal"], figures
    assert figures["lost"] == figures["twice"] == 0, figures
    return figures


def saves(folder: Path, count: int) -> dict[str, Any]:
    """Item 4: SIGKILL at `count` moments of a save, TMPDIR on another file system.

    Saves that had returned before they could be killed are counted apart, and made up for.
    """
    rng = random.Random(0)
    path = folder / "saves/a.ckpt"
    state = {"state_dict": {"w": torch.arange(4_000_000, dtype=torch.float32)}, "count": 0}

    def save(number: int) -> None:
        os.environ["TMPDIR"] = "/dev/shm"
        CheckpointIO().save_checkpoint(state | {"count": number}, path)

    seconds = min(interrupted(partial(save, 0), None) or 0.0 for _ in range(3))
    kept = old = new = too_late = 0
    while old + new < count:
        number = old + new + too_late + 1
        after = seconds * (old + new + rng.random()) / count  # one in each of `count` parts of a save
        returned = interrupted(partial(save, number), after) is not None
        loaded = CheckpointIO().load_checkpoint(path)
        assert torch.equal(loaded["state_dict"]["w"], state["state_dict"]["w"])  # type: ignore[index]
        assert loaded["count"] in ({number} if returned else {kept, number}), loaded["count"]
        remove_unfinished(path.parent)
        assert {p.name for p in path.parent.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}
        too_late += returned
        seconds = after if returned else seconds
        assert too_late <= count, f"{too_late} saves returned before they were killed, the last within {after} s"
        old += loaded["count"] == kept
        new += loaded["count"] == number and not returned
        kept = loaded["count"]
    figures = {"kills": count, "loaded_the_old": old, "loaded_the_new": new, "left_over": 0, "too_late": too_late}
    assert 3 * old >= count, figures  # on a busy machine as many at least are killed while they write
    return figures


def interrupted(save: Callable[[], None], after: float | None) -> float | None:
    """Do `save` in a child and kill that `after` seconds from the start of the save; its seconds if it returned."""
    reader, writer = os.pipe()

    def tell() -> None:
        os.write(writer, b"<")
        save()
        os.write(writer, b">")

    child = processes._fork.Process(target=tell)
    child.start()
    os.close(writer)
    assert os.read(reader, 1) == b"<"
    began = time.monotonic()
    if after is not None:
        time.sleep(after)
        child.kill()
    returned, seconds = os.read(reader, 1) == b">", time.monotonic() - began  # nothing: the pipe's other end is gone
    os.close(reader)
    child.join()
    assert child.exitcode == -signal.SIGKILL or returned, child.exitcode
    return seconds if returned else None


MOMENTS = (  # before the first save; between that and the first validation; in a save, a validation, the last step
    *(("training_step", 0), ("row_losses", 1), ("optimizer_zero_grad", 2), ("training_step", 3)),
    *(("on_save_checkpoint", 2), ("on_save_checkpoint", 8), ("validation_step", 4), ("validation_step", 24)),
    *(("training_step", 13), ("row_losses", 23)),
)
LAST = 7  # the validation behind the last step


def full_disk(folder: Path) -> dict[str, Any]:
    """Item 5: the disk is full from one moment of a run on; freed, the same command ends as the undisturbed run.

    A tmpfs of 24 MB where root may mount, else a limit on the size of files.
    """
    shards, whole = undisturbed(folder)
    resumed = named = found_room = 0
    mounted = False
    for number, (method, step) in enumerate(MOMENTS):
        place = folder / f"small{number}"
        place.mkdir()
        mounted = _mounted(place)
        try:
            root, config = place / "run", folder / f"given{number}.yaml"
            args, log = ["-c", tiny_run.save(tiny_run.config(shards, root, STEPS), config)], folder / f"log{number}"
            before = partial(_fill_at, place if mounted else None, method, step)
            statuses = processes.finish(processes.start(args, log, before))
            said = log.read_text()
            # at its end a run takes its watchdog's mark away: the block may be all that the last lines need
            room = statuses == [0] and number == LAST
            found_room += room
            assert statuses == [2] or room, f"{method} {step}: {statuses} {said[-2000:]}"
            assert "Traceback" not in said, said[-2000:]
            named += bool(re.search(rf"error: .*{re.escape(str(root))}.*not (written|saved) \(", said))
            (place / "filler").unlink(missing_ok=True)
            assert processes.finish(processes.start(args, log)) == [0], log.read_text()[-2000:]
            equal = tiny_run.same(tiny_run.state(root, STEPS), tiny_run.state(whole, STEPS))
            resumed += equal and tiny_run.metrics(root) == tiny_run.metrics(whole)
            left = [path.name for path in root.rglob("*") if path.name.endswith(".tmp")]
            assert left == [], left
        finally:
            if mounted:
                subprocess.run(["umount", str(place)], check=False)
    figures = {"mounted": mounted, "moments": len(MOMENTS), "file_named": named, "found_room": found_room}
    figures["state_and_metrics_equal"] = resumed
    assert named + found_room == resumed == len(MOMENTS), figures
    return figures


def _mounted(place: Path) -> bool:
    line = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    return os.geteuid() == 0 and not subprocess.run(line, check=False, capture_output=True).returncode


def _fill_at(place: Path | None, method: str, step: int, rank: int) -> None:
    """From the given step's method on, there is no room: a file that takes all of it, or a limit of this process."""

    def fill() -> None:
        if place is None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        with (place / "filler").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue

    cls = StepwiseSFT if method == "row_losses" else BaseModule
    processes.at(cls, method, lambda module, call: module.trainer.global_step >= step, fill)


PHASES = ("first batch", "accumulation", "optimizer", "validation", "saving")


def signals(folder: Path, count: int) -> dict[str, Any]:
    """Item 7: SIGTERM and SIGUSR1 in every phase, to either rank or both of two."""
    rng = random.Random(0)
    shards, whole = undisturbed(folder, 2)
    expected = tiny_run.state(whole, STEPS)
    hangs = same_step = equal = 0
    for number in range(count):
        root = folder / f"signal-{number}"
        phase = PHASES[number % len(PHASES)]
        sent = (signal.SIGTERM, signal.SIGUSR1)[number // len(PHASES) % 2]
        to = (0, 1, None)[number % 3]
        step = 0 if phase == "first batch" else rng.randrange(1, STEPS // 2)

        def before(
            rank: int, root: Path = root, phase: str = phase, sent: int = sent, to: Any = to, step: int = step
        ) -> None:
            processes.record_ids(root / f"ids-{rank}.txt")
            if to not in (rank, None):
                return
            now = lambda module, call: module.trainer.global_step >= step  # noqa: E731
            place = {
                "first batch": (BaseModule, "training_step"),
                "accumulation": (StepwiseSFT, "row_losses"),
                "optimizer": (BaseModule, "optimizer_zero_grad"),
                "validation": (BaseModule, "validation_step"),
                "saving": (BaseModule, "on_save_checkpoint"),
            }[phase]
            when = (lambda m, c: now(m, c) and c % 2 == 0) if phase == "accumulation" else now
            processes.at(*place, when, lambda: os.kill(os.getpid(), sent))

        statuses = processes.finish(processes.start(given(shards, root, 2), root / "run.log", before, 2), 90)
        hangs += None in statuses
        assert statuses == [128 + sent] * 2, f"{phase}, {sent}, {to}: {statuses} {(root / 'log').read_text()[-2000:]}"
        saved = torch.load(root / "checkpoints/stopped.ckpt", weights_only=True)["global_step"]
        same_step += all(max(processes.read_ids(root / f"ids-{rank}.txt")) + 1 == saved for rank in (0, 1))
        assert processes.finish(processes.start(given(shards, root, 2), root / "run.log", None, 2), 90) == [0, 0]
        equal += tiny_run.same(tiny_run.state(root, STEPS), expected)
        shutil.rmtree(root)
    figures = {"signals": count, "hangs": hangs, "same_step_saved": same_step, "weights_equal_after_resume": equal}
    assert (hangs, same_step, equal) == (0, count, count), figures
    return figures


def lost_ranks(folder: Path, bound: float = 5.0) -> dict[str, Any]:
    """Item 8: one of two ranks is killed, sleeps for ever, or is stopped; all are gone within the bound + 10 s."""
    shards, _ = undisturbed(folder, 2)
    figures: dict[str, Any] = {"bound_s": bound}
    actions = {
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "sleeping": lambda: time.sleep(1000),
        "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    }
    for name, action in actions.items():
        root = folder / f"lost-{name}"
        mark = root / "mark.txt"

        def act(mark: Path = mark, action: Any = action) -> None:
            mark.touch()
            action()

        def before(rank: int, act: Any = act) -> None:
            if rank == 1:
                processes.at(BaseModule, "training_step", lambda m, c: m.trainer.global_step >= 3, act)

        args = [*given(shards, root, 2, pause=0.7), "--watchdog", str(bound)]
        statuses = processes.finish(processes.start(args, root / "run.log", before, 2), 90)
        seconds = time.time() - mark.stat().st_mtime
        log = (root / "run.log").read_text()
        assert None not in statuses, f"{name}: {statuses}"
        assert 0 not in statuses, f"{name}: {statuses}"
        assert seconds <= bound + 10, f"{name}: {seconds}"
        if name != "killed":
            assert "rank 1 " in log, log[-2000:]
            assert re.search(r"stands at step [23] ", log), log[-2000:]  # marks are half a second old
        figures[f"{name}_s"] = round(seconds, 1)
    return figures
