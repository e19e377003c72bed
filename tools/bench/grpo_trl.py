"""Whole steps of `trl.GRPOTrainer` on the weights, prompt, pictures and trainable set of `bench.grpo_step`."""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PhiConfig, PhiForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

from tools.bench.grpo_step import COMPLETION, GROUP, KL, PROMPT, WORD, end_bias, make_vlm

TEMPLATE = "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"  # noqa: E501


def _rising(completions: list[Any], **kwargs: Any) -> list[float | None]:
    return [float(i) for i in range(len(completions))]


def _text_model(vlm: Any, folder: str) -> Any:
    """The decoder alone; returns what reads its prompts."""
    config: Any = vlm.backbone.model.config.text_config
    tokenizer = copy.deepcopy(vlm.tokenizer)
    tokenizer.padding_side = "left"
    causal = PhiForCausalLM(PhiConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"}))
    causal.model.load_state_dict(vlm.backbone.decoder.state_dict())
    causal.lm_head.weight = causal.model.embed_tokens.weight
    causal.config.eos_token_id = causal.generation_config.eos_token_id = tokenizer.eos_token_id
    causal.save_pretrained(folder)
    return tokenizer


def _picture_model(vlm: Any, folder: str) -> Any:
    """The whole LLaVA, with transformers' own processor."""
    tokenizer, model = copy.deepcopy(vlm.tokenizer), vlm.backbone.model
    tokenizer.padding_side, vision = "left", model.config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    pixels = CLIPImageProcessorPil(size=size, crop_size=size)
    given = {"patch_size": vision.patch_size, "vision_feature_select_strategy": "default"}
    processor = LlavaProcessor(pixels, tokenizer, chat_template=TEMPLATE, num_additional_image_tokens=1, **given)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.text_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def _prompt(vlm: Any, pictures: int) -> dict[str, Any]:
    """`PROMPT` tokens, pictures included; at least a few words."""
    words = WORD * max(PROMPT - vlm.backbone.encoder.image_tokens * pictures, 20)
    if not pictures:
        return {"prompt": words}
    side = vlm.backbone.encoder.image_size
    shown = [Image.new("RGB", (side, side), (40 * i, 90, 160)) for i in range(pictures)]
    content = [*({"type": "image"} for _ in shown), {"type": "text", "text": words}]
    return {"prompt": [{"role": "user", "content": content}], "images": shown}


def trl_steps(
    rounds: int, ours: Callable[[], Any], trained: int, pictures: int = 0, mean_length: int | None = None
) -> dict[str, list[float]]:
    """CPU seconds of TRL's whole steps, each followed by ours, and the mean length of TRL's completions.

    The first round is warm-up. {} without trl; ValueError, before anything is timed, where not `trained` numbers train.
    """
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        return {}
    vlm = make_vlm(mean_length)
    seconds: dict[str, list[float]] = {"trl": [], "ours": []}
    tokens: list[float] = []
    ends: dict[str, Any] = (
        {"sequence_bias": {(vlm.tokenizer.eos_token_id,): end_bias(vlm, mean_length)}} if mean_length else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        processing = (_picture_model if pictures else _text_model)(vlm, folder)
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
            generation_kwargs=ends or {"min_new_tokens": COMPLETION},
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer: Any = GRPOTrainer(
            folder,
            reward_funcs=_rising,
            args=given,
            train_dataset=Dataset.from_list([_prompt(vlm, pictures)] * 8),
            processing_class=processing,
        )
        for name, parameter in trainer.model.named_parameters():
            layer = name.split("layers.")[-1]
            parameter.requires_grad_("vision" not in name and layer.startswith(("0.mlp.", "2.mlp.")))
        found = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        if found != trained:
            raise ValueError(f"trl: seen {found} trained numbers, expected {trained}")

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.start = time.process_time()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                spent = time.process_time() - self.start
                start = time.process_time()
                ours()
                if state.global_step > 1:
                    seconds["trl"].append(spent)
                    seconds["ours"].append(time.process_time() - start)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                tokens.append((logs or {}).get("completions/mean_length", 0.0))

        trainer.add_callback(Clock())
        trainer.train()
        seconds["mean_length"] = tokens[1:]
    return seconds
