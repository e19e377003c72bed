"""The main job from shards to report: score the base, tune it, score it again, certify that it forgot nothing."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

from ts_lightning.cli.asked_in_words import score_in_words
from ts_lightning.cli.configurations import find_configuration
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.metrics.record import Record
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.reports.certificate import certify_checkpoint
from ts_lightning.reports.json_file import write_json
from ts_lightning.reports.pictures import write_sheets
from ts_lightning.reports.report import read_history, write_report
from ts_lightning.runs.load import load
from ts_lightning.runs.run import quiet_trainer
from ts_lightning.training import SFT, BaseModule

PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
BOXES = ("grounding", "new")  # known objects, and kinds that the base has never seen
SUITES = (*BOXES, "steps", "understanding")
NO_RANKS = {"SLURM_JOB_NAME": "interactive"}  # else Lightning takes a SLURM job's tasks for ranks that srun started


def main_job(config: Path, shards: Path, out: Path, overrides: Sequence[str] = ()) -> str:
    """Run the main job on `shards` with the fit configuration `config`; writes everything under `out`.

    Returns the table to print. SystemExit when the command line fails.
    """
    began = time.monotonic()
    print("scoring the base", flush=True)
    suites = {name: ShardSource(str(shards / f"val_{name}-*.tar")) for name in SUITES}
    untouched = SFT(PlainVLM(TinyBackbone(), train=["*"]))
    base = validate(untouched, suites)
    in_words = {name: score_in_words(untouched.vlm, str(suites[name].shards)) for name in BOXES}
    print(f"base scored after {time.monotonic() - began:.0f} s", flush=True)
    data = [f"--data.init_args.train.shards={shards}/train-*.tar"]
    data += [f"--data.init_args.val.{name}.shards={source.shards}" for name, source in suites.items()]
    fit = out / "fit"
    shutil.rmtree(fit, ignore_errors=True)  # a new run, not the continuation of an old one
    command = ["fit", "-c", str(config), *one_process_a_core(), f"--trainer.default_root_dir={fit}", *data, *overrides]
    if subprocess.run([sys.executable, "-m", "ts_lightning", *command], env=os.environ | NO_RANKS).returncode != 0:
        raise SystemExit(2)  # the command has said why
    print(f"tuned after {time.monotonic() - began:.0f} s; scoring and certifying", flush=True)
    checkpoint = fit / "checkpoints" / "last.ckpt"
    tuned_module = load(checkpoint)
    tuned = validate(tuned_module, suites)
    tuned_module.answer_as("auto")
    routed = validate(tuned_module, {"understanding": suites["understanding"]})
    tuned_module.answer_as()
    write_sheets(predict(tuned_module, suites), out / "pictures", limit=12)
    certificate = certify_checkpoint(checkpoint, [str(suites["understanding"].shards)])
    write_json(out / "certificate.json", certificate)
    report = {
        "base": grounding_scores(base),
        "base_in_words": in_words["grounding"],
        "tuned": grounding_scores(tuned) | {"alpha": tuned_module.vlm.log_values()["alpha"]},
        "new": {
            "base": suite_scores(base, "new"),
            "base_in_words": in_words["new"],
            "tuned": suite_scores(tuned, "new"),
        },
        "understanding": {
            "before": base["val/understanding/accuracy"],
            "after": tuned["val/understanding/accuracy"],
            "routed": routed["val/understanding/accuracy"],
            "subtasks": {
                k.split("/")[2]: v for k, v in base.items() if k.startswith("val/understanding/") and k.count("/") == 3
            },
        },
        "certificate": {k: v for k, v in certificate.items() if k != "sha256"},
        "seconds": time.monotonic() - began,
        "samples_per_second": training_speed(fit / "metrics.csv"),
        "peak_rss_mb": max(resource.getrusage(who).ru_maxrss for who in PROCESSES) / 1024,
    }
    return write_report(out, report, fit / "metrics.csv", title="Quickstart: TWIST on the toy world")


def one_process_a_core(most: int = 2) -> list[str]:
    """Arguments of `fit` that train in a process for each core: for a tiny model faster than threads of one process."""
    cores = min(most, len(os.sched_getaffinity(0)))
    ddp = ["-c", str(find_configuration("trainer/ddp.yaml")), "--trainer.accelerator=cpu"]
    return [*ddp, f"--trainer.devices={cores}"] if cores > 1 else []


def validate(module: BaseModule, suites: Mapping[str, ShardSource]) -> dict[str, float]:
    """All `val/...` figures of a module on the suites."""
    data = ShardDataModule(val=dict(suites), eval_batch_size=100)
    trainer = quiet_trainer()
    trainer.validate(module, data, verbose=False)
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


def predict(module: BaseModule, suites: Mapping[str, ShardSource], limit: int = 12) -> list[Record]:
    """Prediction records of the first `limit` questions of every suite."""
    few = {name: ShardSource(source.shards, max_samples=limit) for name, source in suites.items()}
    loaders = quiet_trainer().predict(module, ShardDataModule(val=few, eval_batch_size=limit)) or []
    return [Record.from_json(values) for batches in loaders for batch in batches for values in batch]


def grounding_scores(scores: Mapping[str, float]) -> dict[str, Any]:
    """Box scores of the grounding suite, then of its subtasks, then the step-by-step rates."""
    own = suite_scores(scores, "grounding")
    return {
        **{k: v for k, v in own.items() if "/" not in k},
        "rule": "IoU >= 0.5",
        "parser": "lenient",
        "subtasks": {k: v for k, v in own.items() if "/" in k},
        "steps": suite_scores(scores, "steps"),
    }


def suite_scores(scores: Mapping[str, float], suite: str) -> dict[str, float]:
    """The figures of one suite by their names in it."""
    prefix = f"val/{suite}/"
    return {name.removeprefix(prefix): value for name, value in scores.items() if name.startswith(prefix)}


def training_speed(history: Path) -> float:
    """Median samples per second of the run's metrics.csv; NaN of a run of a few steps, which logged none."""
    values = [v for _, v in read_history(history).get("train/samples_per_second", [])]
    return median_high(values) if values else float("nan")
