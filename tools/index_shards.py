"""Index and check shards.  python tools/index_shards.py 'DIR/*.tar' [...] [--out manifest.json | --check manifest.json]

Writes DIR/NAME.tar.idx beside each tar and prints a line for each. Exit status 1 for bad records, 2 for a bad shard.
"""

import argparse
import json
import sys
from pathlib import Path

from ts_lightning.data import index_shards
from ts_lightning.data.index import check_manifest


def main() -> int:
    parser = argparse.ArgumentParser(description="Index and check shards.")
    parser.add_argument("shards", nargs="+", help="tars or glob patterns")
    parser.add_argument("--out", help="write counts and hashes as JSON to this file")
    parser.add_argument("--check", help="compare every byte of the shards with this file")
    args = parser.parse_args()
    try:
        manifest = index_shards(args.shards)
        if args.check:
            check_manifest(manifest, Path(args.check))
        if args.out:
            Path(args.out).write_text(json.dumps(manifest.summary(), indent=1) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for shard in manifest.shards:
        print(f"{shard.path}  {len(shard.keys)} records  {shard.size} bytes  sha256 {shard.sha256[:12]}")
    print(f"{manifest.num_samples} records in {len(manifest.shards)} shards, manifest {manifest.sha256}")
    for line in manifest.bad:
        print(f"bad record {line}", file=sys.stderr)
    return 1 if manifest.bad else 0


if __name__ == "__main__":
    sys.exit(main())
