"""What the data engine writes trains: generated questions with steps, through the command line."""

from pathlib import Path

from tests.integration import tiny
from tests.unit.generation_samples import input_shard
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.runs.load import load


def test_a_fit_on_generated_scout(tmp_path: Path) -> None:
    out = tmp_path / "scout"
    words = [str(input_shard(tmp_path, 4)), "--out", str(out), "--negatives", "0.3"]
    assert main(["data", "generate", "scout", *words]) == 0
    shards = f"{out}/*.tar"
    assert index_shards(shards).num_samples > 20
    config = tiny.config(shards, tmp_path / "run")
    config["trainer"] |= {"max_steps": 2, "limit_val_batches": 1}
    assert main(["fit", "-c", tiny.save(config, tmp_path / "given.yaml")]) == 0
    (path,) = (tmp_path / "run/checkpoints").glob("*.ckpt")
    trained = load(path).vlm.trainable_state_dict()
    assert all(value.isfinite().all() for value in trained.values())
    assert any(value.any() for value in trained.values())
