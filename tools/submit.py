"""Submit a job.  python tools/submit.py --config FIT.yaml --nodes 2 [--devices 8 --gpus-per-node 8] [--dry-run]

--job validate or array_generate take the other scripts of tools/slurm; what follows `--` goes to them as it is.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "slurm"


def command(args: argparse.Namespace) -> list[str]:
    """The sbatch call."""
    line = ["sbatch", f"--nodes={args.nodes}", f"--ntasks-per-node={args.devices}"]
    named = {"gpus-per-node": args.gpus_per_node, "cpus-per-task": args.cpus_per_task}
    named |= {"time": args.time, "partition": args.partition}
    line += [f"--{name}={value}" for name, value in named.items() if value]
    line += [f"--signal=USR1@{args.signal}"] if args.job == "train" else []
    line += [*args.sbatch, f"--export=ALL,PYTHON={sys.executable}", str(SCRIPTS / f"{args.job}.sbatch")]
    if args.job == "array_generate":
        return [*line, *args.rest]
    line += [part for path in args.config for part in ("-c", path)]
    return [*line, "--trainer.num_nodes", str(args.nodes), "--trainer.devices", str(args.devices), *args.rest]


def main() -> int:
    parser = argparse.ArgumentParser(description="Submit a job to SLURM.")
    parser.add_argument("--job", choices=["train", "validate", "array_generate"], default="train")
    parser.add_argument("--config", action="append", default=[], help="a YAML, may be repeated")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="ranks on each node")
    parser.add_argument("--gpus-per-node", help="as many as --devices where ranks use GPUs")
    parser.add_argument("--cpus-per-task", type=int, help="cores of each rank: one, and one for each loader worker")
    parser.add_argument("--time", help="limit, such as 24:00:00")
    parser.add_argument("--partition")
    parser.add_argument("--signal", type=int, default=120, help="seconds before the limit at which to save and requeue")
    parser.add_argument(
        "--sbatch", action="append", default=[], help="one more option of sbatch: --sbatch=--account=NAME"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command only")
    parser.add_argument("rest", nargs="*", help="arguments of the script, after --")
    args = parser.parse_args()
    missing = [path for path in args.config if not os.path.isfile(path)]
    if missing or (args.job == "train" and not args.config):
        print(f"error: --config: seen {missing or 'none'}, expected a YAML file", file=sys.stderr)
        return 2
    line = command(args)
    print(shlex.join(line), flush=True)
    return 0 if args.dry_run else subprocess.run(line, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
