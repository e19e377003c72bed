"""`ts-lightning submit`."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

from ts_lightning.cli.configurations import find_configuration

SCRIPTS = Path(__file__).parent / "slurm"


def submit(
    *,
    job: Literal["train", "validate", "generate", "array_generate"] = "train",
    config: list[str] = (),  # type: ignore[assignment]
    nodes: int = 1,
    devices: int = 1,
    gpus_per_node: str | None = None,
    cpus_per_task: int | None = None,
    time: str | None = None,
    partition: str | None = None,
    signal: int = 120,
    sbatch: list[str] = (),  # type: ignore[assignment]
    dry_run: bool = False,
    rest: list[str] = (),  # type: ignore[assignment]
) -> int:
    r"""Submit a job to SLURM.

        ts-lightning submit --config fit/twist_moe_llava_phi2.yaml trainer/slurm.yaml --nodes 2 --devices 8 \
            --gpus-per-node 8 -- --data.init_args.global_batch_size 128
        ts-lightning submit --job validate -- --ckpt_path FILE -c eval/rec.yaml

    What follows `--` goes to the job as it is.

    Args:
        job: train (`fit`), validate, generate (`data generate NAME`) or array_generate (`predict` of a list of shards)
        config: configurations, one over the other; none for generate
        nodes: how many
        devices: ranks on each node
        gpus_per_node: as many as --devices where ranks use GPUs
        cpus_per_task: cores of each rank: one, and one for each loader worker
        time: limit, such as 24:00:00
        partition: SLURM's
        signal: seconds before the limit at which to save and requeue
        sbatch: more options of sbatch: --sbatch=--account=NAME
        dry_run: print the command only
        rest: what follows `--`
    """
    if job == "train" and not config:
        raise ValueError("--config: seen none, expected a YAML file")
    if job == "generate" and config:
        raise ValueError(f"--config: seen {config[0]} for --job generate, expected none: it takes options alone")
    files = [str(find_configuration(name)) for name in config]
    line = ["sbatch", f"--nodes={nodes}", f"--ntasks-per-node={devices}"]
    named = {"gpus-per-node": gpus_per_node, "cpus-per-task": cpus_per_task, "time": time, "partition": partition}
    line += [f"--{name}={value}" for name, value in named.items() if value]
    line += [f"--signal=USR1@{signal}"] if job == "train" else []
    line += [*_with_python(sbatch), str(SCRIPTS / f"{job}.sbatch")]
    given = [part for path in files for part in ("-c", path)]
    if job in ("train", "validate"):
        line += [*given, "--trainer.num_nodes", str(nodes), "--trainer.devices", str(devices), *rest]
    else:
        line += [*rest[:2], *given, *rest[2:]]  # array_generate: LIST OUT come first
    print(shlex.join(line), flush=True)
    return 0 if dry_run else subprocess.run(line, check=False).returncode


def _with_python(options: list[str]) -> list[str]:
    """The options of sbatch, whose `--export` (ours if there is none) names the Python that the job runs."""
    python = f"PYTHON={sys.executable}"
    before = ["", *options]  # a value may be a word of its own
    own = [name == "--export" or option.startswith("--export=") for name, option in zip(before, options, strict=False)]
    if not any(own):
        return [*options, f"--export=ALL,{python}"]
    return [f"{option},{python}" if is_own else option for is_own, option in zip(own, options, strict=True)]
