"""`ts-lightning data index`."""

import sys
from pathlib import Path

from ts_lightning.data import index_shards
from ts_lightning.data.manifest import check_manifest
from ts_lightning.reports.json_file import write_json


def index(*shards: str, out: Path | None = None, check: Path | None = None) -> int:
    """Index shards and check every record: NAME.tar.idx beside each tar, and a line for each.

        ts-lightning data index 'data_shards/coco/*.tar' --out manifest.json
        ts-lightning data index 'data_shards/coco/*.tar' --check manifest.json

    Exit status 1 for bad records, 2 for a bad shard.

    Args:
        shards: tars or glob patterns
        out: write counts and hashes as JSON to this file
        check: compare every byte of the shards with this file
    """
    manifest = index_shards(list(shards))
    if check is not None:
        check_manifest(manifest, check)
    if out is not None:
        write_json(out, manifest.summary())
    for shard in manifest.shards:
        counts = f"{shard.num_questions} questions  {shard.num_records} records"
        print(f"{shard.path}  {counts}  {shard.size} bytes  sha256 {shard.sha256[:12]}")
    print(f"{manifest.num_samples} questions in {len(manifest.shards)} shards, manifest {manifest.sha256}")
    for where, why in manifest.bad:
        print(f"bad record {where}: {why}", file=sys.stderr)
    return 1 if manifest.bad else 0
