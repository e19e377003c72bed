"""Whole steps of `trl.GRPOTrainer` on the weights, prompt and trainable set of `bench.grpo_step`."""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PhiConfig, PhiForCausalLM

from tools.bench.grpo_step import COMPLETION, GROUP, KL, PROMPT, WORD, make_vlm


def _rising(completions: list[Any], **kwargs: Any) -> list[float | None]:
    return [float(i) for i in range(len(completions))]


def trl_steps(rounds: int, ours: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of TRL's whole steps, each followed by one of ours; the first round is warm-up. {} without trl."""
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        return {}
    vlm = make_vlm()
    config: Any = vlm.backbone.model.config.text_config
    tokenizer = copy.deepcopy(vlm.tokenizer)
    tokenizer.padding_side = "left"
    causal = PhiForCausalLM(PhiConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"}))
    causal.model.load_state_dict(vlm.backbone.decoder.state_dict())
    causal.lm_head.weight = causal.model.embed_tokens.weight
    causal.config.eos_token_id = causal.generation_config.eos_token_id = tokenizer.eos_token_id
    seconds: dict[str, list[float]] = {name: [] for name in ("trl", *ours)}
    with tempfile.TemporaryDirectory() as folder:
        causal.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        given = GRPOConfig(
            output_dir=str(Path(folder) / "out"),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=COMPLETION,
            beta=KL,
            loss_type="grpo",
            learning_rate=1e-6,
            max_steps=rounds + 1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            generation_kwargs={"min_new_tokens": COMPLETION},
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        prompts = Dataset.from_list([{"prompt": WORD * PROMPT}] * 8)
        trainer: Any = GRPOTrainer(
            folder,
            reward_funcs=_rising,
            args=given,
            train_dataset=prompts,
            processing_class=tokenizer,
        )
        for name, parameter in trainer.model.named_parameters():
            parameter.requires_grad_(".mlp." in name and (".0." in name or ".2." in name))

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                times = {"trl": time.perf_counter() - self.start}
                for name, step in ours.items():
                    start = time.perf_counter()
                    step()
                    times[name] = time.perf_counter() - start
                if state.global_step > 1:
                    for name, value in times.items():
                        seconds[name].append(value)

        trainer.add_callback(Clock())
        trainer.train()
        seconds["trained_parameters"] = [float(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))]
    return seconds
