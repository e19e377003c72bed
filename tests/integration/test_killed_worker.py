"""A loader process that the system kills (out of memory) ends the run in one line, and the same command goes on."""

import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from tests import ranks
from tests.reliability import tiny_run

STEPS = 6


def fit(config: str, log: Path) -> BaseProcess:
    words = ["fit", "--allow_classes", "tests.reliability.tiny_run", "-c", config]
    return ranks.start(partial(ranks.command, words), log)[0]


def status(process: BaseProcess, seconds: float) -> int | None:
    process.join(seconds)
    return process.exitcode


def test_a_killed_loader_process_is_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    shards = tiny_run.write(tmp_path / "data", 20)
    configs = {}
    for name, pause in (("whole", 0.0), ("killed", 0.5)):
        given = tiny_run.config(shards, tmp_path / name, STEPS, pause, num_workers=1)
        configs[name] = tiny_run.save(given, tmp_path / f"{name}.yaml")
    assert status(fit(configs["whole"], tmp_path / "whole.log"), 200) == 0
    run = fit(configs["killed"], tmp_path / "killed.log")
    until = time.monotonic() + 150
    while not list((tmp_path / "killed").glob("checkpoints/step=2.ckpt")) and time.monotonic() < until:
        time.sleep(0.05)
    for child in psutil.Process(run.pid).children():
        if "resource_tracker" not in " ".join(child.cmdline()):
            child.kill()
    assert status(run, 100) == 1
    text = (tmp_path / "killed.log").read_text()
    assert "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.startswith("ts-lightning: error: data: loader process ")
    assert last.endswith("the same command goes on from the last checkpoint)")
    assert status(fit(configs["killed"], tmp_path / "again.log"), 200) == 0
    assert tiny_run.same(*(tiny_run.state(tmp_path / name, STEPS) for name in ("whole", "killed")))
