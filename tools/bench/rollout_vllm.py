"""Rollouts by our own loop and by a vLLM server on the same machine: tokens per second, at 1 and 8 prompts of G 8.

A small Qwen2-VL of random weights, 160 x 120 pictures; completions run to their limit. The server is started here
(TS_LIGHTNING_VLLM_PYTHON). The arithmetic at the end is for a GPU, where the small model's figures say nothing.
"""

import json
import os
import tempfile
from functools import partial
from pathlib import Path

import torch

from tests.unit.models.hf_families import FAMILIES, ROPE, make_folder
from tools.bench.harness import interleave, ratio
from ts_lightning.data.collate import collate
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.generate import all_rows_done
from ts_lightning.pipelines.toy_world.shards import grounding_samples
from ts_lightning.rl import RolloutCallback, VLLMEngine
from ts_lightning.rl.sampling import sample_groups

GROUP, TOKENS = 8, 48
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # where the environment does not say
H200 = {"bytes_per_second": 4.8e12, "flops": 7.9e14}


def folder_of(place: Path) -> Path:
    """A small Qwen2-VL with heads of a size that vLLM's attention has."""
    family = FAMILIES["qwen2_vl"]
    text = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "head_dim": 32}
    family.config["text_config"] |= text | {"rope_parameters": {**ROPE, "mrope_section": [4, 6, 6]}}
    family.config["vision_config"] |= {"embed_dim": 64, "hidden_size": 128}
    return make_folder("qwen2_vl", place / "model")


def arithmetic(parameters: float, layers: int, kv_width: int, prompt: int, answers: int) -> dict[str, float]:
    """Tokens per second that memory allows at bf16 in decoding: weights are read once a step, keys and values each.

    A loop that reads a shared prompt once a group reads the prompt's keys once for 8 answers; paged attention reads
    them for every answer.
    """
    weights, per_token = 2 * parameters, 2 * 2 * layers * kv_width
    own = weights + per_token * (prompt * answers / GROUP + answers * TOKENS / 2)
    paged = weights + per_token * answers * (prompt + TOKENS / 2)
    return {
        "shared prompt": answers * H200["bytes_per_second"] / own,
        "paged": answers * H200["bytes_per_second"] / paged,
    }


def main(rounds: int) -> int:
    """Check that both engines give the same log-probabilities, then time them with as many threads each."""
    os.environ |= {**CPU, **os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with tempfile.TemporaryDirectory() as place:
        folder = folder_of(Path(place))
        backbone = QwenVLBackbone(str(folder), codec="mirg", codec_grid="100", max_length=1024, max_pixels=12544)
        backbone.encoder.tokenizer.eos_token = "<|video_pad|>"  # hardly ever drawn: completions are full
        vlm = PlainVLM(backbone, train=[]).eval()
        samples = list(grounding_samples("val", 8))
        engine = VLLMEngine(arguments=["--enforce-eager", "--max-num-seqs", "64"])
        failed, results = False, {}
        for prompts in (1, 8):
            rows = [vlm.encode(sample, True) for sample in samples[:prompts]]
            batch = collate(rows, vlm.pad_id)
            options = {"num_generations": GROUP, "max_new_tokens": TOKENS, "stop_after": None}
            own, served = RolloutCallback(**options), RolloutCallback(**options, engine=engine)
            tokens = {}
            for name, callback in (("ours", own), ("vllm", served)):
                rollout = callback.roll_out(vlm, [batch], 0)[0]
                tokens[name] = sum(len(ids) for group in rollout.token_ids for ids in group)
            failed = failed or served.figures["mismatch_kl"] > 1e-5

            drawn = partial(sample_groups, vlm, batch, GROUP, TOKENS, stop_after=None)
            asked = partial(
                engine.sample_groups,
                vlm,
                batch,
                GROUP,
                TOKENS,
                1.0,
                1.0,
                None,
                0,
                0,
                all_rows_done,
                [f"{i}" for i in range(prompts)],
            )
            seconds = interleave({"ours": drawn, "vllm": asked}, rounds)
            speed = {name: [tokens[name] / s for s in values] for name, values in seconds.items()}
            for name, values in speed.items():
                spread = f"{min(values):.0f} to {max(values):.0f}"
                print(
                    f"{prompts} prompts x {GROUP}: {name:5} {sorted(values)[len(values) // 2]:7.0f} tokens/s ({spread})"
                )
            results[f"{prompts} prompts"] = {"ours/vllm seconds": ratio(seconds, "ours", "vllm"), "speed": speed}
    for prompts in (1, 8):
        bound = arithmetic(7.6e9, 28, 4 * 128, 1200, prompts * GROUP)
        print(
            f"7B in bf16, H200, {prompts} x {GROUP}: memory allows "
            + ", ".join(f"{k} {v:.0f}" for k, v in bound.items())
        )
    print(json.dumps({"case": "rollout_vllm", "passed": not failed, **results}))
    return int(failed)
