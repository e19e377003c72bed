#!/usr/bin/env python
"""GRPO with rollouts by our own loop and by a vLLM server: one distribution, and runs beside each other.

    TS_LIGHTNING_VLLM_PYTHON=.venv-vllm/bin/python python -m tools.experiments.rollout_engines [--out FOLDER]

A small Qwen2-VL is tuned on the toy world's groups of pictures. Then: the rewards of many completions of the same
weights by each engine; runs of GRPO with each; one with rollouts ahead whose server is killed in the middle. Started
again, it does not repeat the runs that it has finished.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.bench.rollout_vllm import CPU, folder_of
from tools.experiments.fit_once import fit_once
from ts_lightning.data.collate import collate
from ts_lightning.data.write import write_shards
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples
from ts_lightning.rl import RolloutCallback, VLLMEngine
from ts_lightning.rl.handover import served, write_weights
from ts_lightning.rl.vllm_engine import URL
from ts_lightning.rl.vllm_server import OwnServer
from ts_lightning.runs.load import load
from ts_lightning.runs.metrics_log import read_metrics

STEPS, PROMPTS, GROUP, TOKENS = 10, 6, 4, 72
BACKBONE = {"codec": "mirg", "codec_grid": "100", "max_length": 1024, "max_pixels": 12544}
SMALL = ["--enforce-eager", "--max-num-seqs", "64", "--limit-mm-per-prompt", '{"image":6,"video":0}']


def configuration(folder: Path, shards: Path, kind: str, steps: int, seed: int, lr: float) -> dict[str, Any]:
    """A run that trains the whole model of a folder on shards: `SFT` or `GRPO`."""
    saver = {"every_n_train_steps": 5, "save_last": True, "save_top_k": -1, "filename": "{step}"}
    vlm = {
        "class_path": "ts_lightning.models.PlainVLM",
        "init_args": {
            "backbone": {
                "class_path": "ts_lightning.models.backbones.qwen_vl.QwenVLBackbone",
                "init_args": {"pretrained": str(folder), **BACKBONE},
            },
            "train": ["*"],
        },
    }
    batch = PROMPTS if kind == "GRPO" else 16
    return {
        "seed_everything": seed,
        "trainer": {
            **{"accelerator": "cpu", "devices": 1, "max_steps": steps, "max_epochs": -1, "log_every_n_steps": 1},
            **{"num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_model_summary": False},
            **{"enable_progress_bar": False, "gradient_clip_val": 1.0},
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}],
        },
        "model": {
            "class_path": f"ts_lightning.training.{kind}",
            "init_args": {
                "vlm": vlm,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.0}},
            },
        },
        "data": {
            "class_path": "ts_lightning.data.ShardDataModule",
            "init_args": {
                "train": {"shards": str(shards)},
                **{"global_batch_size": batch, "micro_batch_size": batch, "num_workers": 0},
            },
        },
    }


def with_rollouts(config: dict[str, Any], seed: int, engine: dict[str, Any] | None) -> dict[str, Any]:
    """A GRPO run with its completions drawn by an engine (None: our loop)."""
    rollout: dict[str, Any] = {"num_generations": GROUP, "max_new_tokens": TOKENS, "seed": seed}
    if engine is not None:
        rollout["engine"] = {"class_path": "ts_lightning.rl.VLLMEngine", "init_args": engine}
    config["trainer"]["callbacks"].append({"class_path": "ts_lightning.rl.RolloutCallback", "init_args": rollout})
    config["model"]["init_args"] |= {"kl_coeff": 0.0, "max_new_tokens": TOKENS}
    return config


def written(config: dict[str, Any], path: Path) -> Path:
    """The file of a configuration: JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def tuned(out: Path, steps: int) -> Path:
    """The folder of the small model after so many steps of SFT."""
    folder = out / "base"
    if not folder.is_dir():
        write_shards(multi_image_samples("sft", 600), out / "shards", "sft")
        write_shards(multi_image_samples("rl", 600), out / "shards", "rl")
        config = configuration(folder_of(out / "random"), out / "shards/sft-*.tar", "SFT", steps, 0, 1e-3)
        run = fit_once(written(config, out / "sft.yaml"), out / "sft")
        write_weights(load(run["checkpoint"]).vlm, folder)
    return folder


def estimate(values: list[float]) -> str:
    """Mean and half of its 95% interval, by the normal law."""
    return f"{mean(values):.3f} +- {1.96 * stdev(values) / len(values) ** 0.5:.3f}"


def one_distribution(folder: Path, url: str, prompts: int, group: int) -> None:
    """Print the mean reward of each engine's completions of the same prompts by the same weights, and differences."""
    vlm = PlainVLM(QwenVLBackbone(str(folder), **BACKBONE), train=[]).eval()  # type: ignore[arg-type]
    samples = list(multi_image_samples("rl", prompts))
    batches = [
        collate([vlm.encode(one, True) for one in samples[i : i + 16]], vlm.pad_id) for i in range(0, prompts, 16)
    ]
    options: dict[str, Any] = {"num_generations": group, "max_new_tokens": TOKENS}
    draws = {"ours": RolloutCallback(**options), "ours, another seed": RolloutCallback(**options, seed=1)}
    draws["vLLM"] = RolloutCallback(**options, engine=VLLMEngine(url=url))
    means, logps = dict[str, list[float]](), dict[str, list[float]]()
    for name, callback in draws.items():
        rollouts = [callback.roll_out(vlm, [batch], 0)[0] for batch in batches]
        means[name] = [value for one in rollouts for value in one.total.view(-1, group).mean(1).tolist()]
        sums = [(one.old_logp_NS * one.mask_NS).sum(1).view(-1, group).mean(1) for one in rollouts]
        logps[name] = [value for part in sums for value in part.tolist()]
        completions = [one for rollout in rollouts for rows in rollout.completions for one in rows]
        length = estimate([float(len(one.token_ids)) for one in completions])
        stopped = mean(one.stopped for one in completions)
        print(
            f"{name}: {len(completions)} completions, reward {estimate(means[name])} over prompts, {length} tokens, "
            f"{stopped:.3f} ended by themselves",
            flush=True,
        )
    for name in list(draws)[1:]:
        for what, values in (("reward", means), ("log-probability of a completion", logps)):
            apart = [a - b for a, b in zip(values[name], values["ours"], strict=True)]
            print(f"{name} less ours, {what}, a prompt: {estimate(apart)}", flush=True)


def figures(root: Path, name: str) -> list[float]:
    """A figure of a run at each of its steps."""
    return [row[name] for row in read_metrics(root) if name in row]


def killed(config: Path, root: Path, server: OwnServer) -> None:
    """Run with a server that is killed, and started again, behind the fifth step."""
    line = [sys.executable, "-m", "ts_lightning", "fit", "-c", str(config), f"--trainer.default_root_dir={root}"]
    with subprocess.Popen(line, env={**os.environ, URL: server.url}) as run:
        while not list(root.glob("checkpoints/step=5*.ckpt")):
            if run.poll() is not None:
                raise SystemExit("the run ended before its server was killed")
            time.sleep(0.05)
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        print("server killed", flush=True)
        server.start()
        print("server back", flush=True)
    if run.returncode:
        raise SystemExit(f"the run ended with status {run.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/rollout_engines"))
    parser.add_argument("--sft-steps", type=int, default=250)
    parser.add_argument("--prompts", type=int, default=96, help="of the comparison at the same weights")
    parser.add_argument("--group", type=int, default=8, help="completions of each of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    os.environ |= {**CPU, **os.environ}
    out = args.out.absolute()
    folder = tuned(out, args.sft_steps)
    vlm = PlainVLM(QwenVLBackbone(str(folder), **BACKBONE), train=["*"])
    server = OwnServer(folder, arguments=[*served(vlm, {}), *SMALL], log=out / "vllm.log")
    try:
        server.start()
        one_distribution(folder, server.url, args.prompts, args.group)
        os.environ[URL] = server.url
        rewards: dict[str, list[float]] = {"ours": [], "vLLM": []}
        for seed in args.seeds:
            for name, engine in (("ours", None), ("vLLM", dict[str, Any]())):
                root = out / f"{name}-{seed}"
                config = configuration(folder, out / "shards/rl-*.tar", "GRPO", STEPS, seed, 3e-4)
                fit_once(written(with_rollouts(config, seed, engine), root / "given.yaml"), root)
                rewards[name].append(mean(figures(root, "train/reward/total")))
                loss = max(map(abs, figures(root, "train/loss")))
                kl = max(figures(root, "train/mismatch_kl"), default=0.0)
                print(
                    f"{name}, seed {seed}: mean reward {rewards[name][-1]:.3f} of {STEPS} steps, |loss| at most "
                    f"{loss:.2g}, mismatch_kl at most {kl:.2g}",
                    flush=True,
                )
        for name, values in rewards.items():
            print(
                f"{name}: mean reward {mean(values):.3f} of {len(values)} runs, {min(values):.3f} to {max(values):.3f}"
            )
        root = out / f"killed-{int(time.time())}"
        config = configuration(folder, out / "shards/rl-*.tar", "GRPO", STEPS, 0, 3e-4)
        killed(written(with_rollouts(config, 0, {"ahead": 1}), root / "given.yaml"), root, server)
        for name in ("reward/total", "staleness", "mismatch_kl"):
            print(f"killed, {name}: {' '.join(f'{value:.2g}' for value in figures(root, f'train/{name}'))}")
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
