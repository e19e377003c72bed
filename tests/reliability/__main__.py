"""Break runs on purpose and compare: python -m tests.reliability all [--quick], or numbers such as 1 7 8.

One JSON line for each item; exit status 1 when one fails. docs/reliability.md says what each item is.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # zero-ulp comparisons need one thread count
os.environ.setdefault("WANDB_MODE", "offline")

from tests.reliability import damage, fuzz, hostile, images, kills, slurm, stored_images, streams

ITEMS = {
    "1": ("kills at random steps; one epoch", lambda d, quick: kills.kills(d, 3 if quick else 30)),
    "3": ("other ranks and workers", lambda d, quick: streams.elastic(d, quick)),
    "4": ("kills during saves", lambda d, quick: kills.saves(d, 10 if quick else 50)),
    "5": ("full disk", lambda d, quick: kills.full_disk(d)),
    "6": ("SLURM", lambda d, quick: slurm.run(d)),
    "7": ("signals on two ranks", lambda d, quick: kills.signals(d, 5 if quick else 100)),
    "8": ("a rank dies or hangs", lambda d, quick: kills.lost_ranks(d)),
    "9": ("damaged shards", lambda d, quick: damage.damage(d, quick)),
    "10": ("bad images", lambda d, quick: images.corpus() | stored_images.both(d)),
    "11": ("malicious input", lambda d, quick: hostile.run(d, quick)),
    "12": ("two processes against one", lambda d, quick: streams.two_processes(d)),
    "14": ("files of a stranger", lambda d, quick: fuzz.fuzz(d, quick)),
    "13": ("loader", lambda d, quick: streams.loader(d, quick)),
}
SAME = {"2": "1"}  # one run of kills shows both


def main() -> int:
    parser = argparse.ArgumentParser(description="Break runs on purpose and compare.")
    parser.add_argument("items", nargs="+", help=f"all, or some of {', '.join(ITEMS)} (2 is 1)")
    parser.add_argument("--quick", action="store_true", help="few repetitions, as CI runs them")
    args = parser.parse_args()
    every = [n for n in ITEMS if n != "6" or slurm.missing() is None]
    chosen = every if args.items == ["all"] else list(dict.fromkeys(SAME.get(n, n) for n in args.items))
    if unknown := [n for n in chosen if n not in ITEMS]:
        parser.error(f"seen {unknown[0]}, expected all or some of {', '.join(ITEMS)}")
    failed = False
    for number in chosen:
        title, run = ITEMS[number]
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            try:
                result = {"ok": True, **run(Path(folder), args.quick)}
            except Exception as error:
                failed, result = True, {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
                traceback.print_exc()
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({"item": number, "what": title, "seconds": seconds, **result}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
