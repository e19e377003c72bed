"""Small random models of many families in their public folder layout: weights, tokenizer, processor, chat template."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from ts_lightning.models.backbones.hub_layout import SHIPPED

WORDS = 2560
TEXT = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "pad_token_id": 1, "bos_token_id": 2,
    "eos_token_id": 3,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message.role }}\n"
    "{% for item in message.content %}{% if item.type == 'image' %}MARK{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = CHATML.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
NO_SYSTEM = (
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
QWEN3 = QWEN.replace(NO_SYSTEM, "")
INTERNVL = CHATML.replace(NO_SYSTEM, "").replace("MARK", "<IMG_CONTEXT>\n")
LLAVA = (
    "{% for message in messages %}{{ message.role.upper() + ': ' }}{% for item in message.content %}"
    "{% if item.type == 'image' %}<image>\n{% else %}{{ item.text + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else 'user' }}\n"
    "{% for item in message.content %}{% if item.type == 'image' %}<start_of_image>{% else %}{{ item.text | trim }}"
    "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for item in message.content %}{% if item.type == 'text' %}{{ item.text }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass
class Family:
    """How a folder of one family is made."""

    config: dict[str, Any]
    template: str | None
    marks: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    end: str | None = None
    ids: dict[str, str] = field(default_factory=dict)
    adapt: Callable[[Any], None] | None = None
    several: bool = True


def square(side: int, name: str = "height") -> dict[str, Any]:
    return {"size": {"height": side, "width": side}, "crop_size": {"height": side, "width": side}}


CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
QWEN_MARKS = (*CHATML_MARKS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
SMALL = {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}}
CLIP = {"model_type": "clip_vision_model", **VISION, "image_size": 56, "patch_size": 14}
SIGLIP = {"model_type": "siglip_vision_model", **VISION, "image_size": 56, "patch_size": 14}
LLAMA = {"model_type": "llama", **TEXT}
QWEN2 = {"model_type": "qwen2", **TEXT}

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        },
        QWEN, QWEN_MARKS, pixels=SMALL, end="<|im_end|>", ids=QWEN_IDS,
    ),
    "qwen2_5_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2,
                              "intermediate_size": 48, "fullatt_block_indexes": [1]},
        },
        QWEN, QWEN_MARKS, pixels=SMALL, end="<|im_end|>", ids=QWEN_IDS,
    ),
    "qwen3_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2,
                              "intermediate_size": 48, "deepstack_visual_indexes": [0], "patch_size": 14,
                              "num_position_embeddings": 16},
        },
        QWEN3, QWEN_MARKS, pixels={**SMALL, "patch_size": 14}, end="<|im_end|>", ids=QWEN_IDS,
    ),
    "gemma3": Family(
        {"text_config": {**TEXT, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
         "vision_config": SIGLIP, "mm_tokens_per_image": 4},
        GEMMA, ("<start_of_turn>", "<end_of_turn>"),
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        pixels={"size": {"height": 56, "width": 56}}, processor={"image_seq_length": 4}, end="<end_of_turn>",
        ids={"image_token_id": "<image_soft_token>", "boi_token_index": "<start_of_image>",
             "eoi_token_index": "<end_of_image>"},
    ),
    "internvl": Family(
        {"text_config": QWEN2,
         "vision_config": {**VISION, "image_size": [56, 56], "patch_size": [14, 14]}, "image_seq_length": 4},
        INTERNVL, CHATML_MARKS,
        {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
         "video_token": "<video>"},
        pixels={"size": {"height": 56, "width": 56}, "crop_to_patches": True, "max_patches": 4},
        processor={"image_seq_length": 4}, end="<|im_end|>", ids={"image_token_id": "<IMG_CONTEXT>"},
    ),
    "llava": Family(
        {"text_config": LLAMA, "vision_config": CLIP, "vision_feature_layer": -2},
        LLAVA, (), pixels={"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        ids={"image_token_id": "<image>"},
    ),
    "smolvlm": Family(
        {"text_config": LLAMA, "vision_config": {**VISION, "image_size": 56, "patch_size": 14}, "scale_factor": 2},
        SMOL, ("<|im_start|>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>",
               *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))),
        pixels={"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": True},
        processor={"image_seq_len": 4}, end="<end_of_utterance>", ids={"image_token_id": "<image>"},
    ),
}  # fmt: skip


def make_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the folder of a family."""
    family = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED, extra_special_tokens=family.named or None)
    known = tokenizer.get_vocab()
    marks = [mark for mark in (*family.marks, *family.named.values()) if mark not in known]
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    if family.end is not None:
        tokenizer.eos_token = family.end
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    values = json.loads(json.dumps(family.config))
    values |= {key: tokenizer.convert_tokens_to_ids(token) for key, token in family.ids.items()}
    config = AutoConfig.for_model(name, **values)
    if family.adapt:
        family.adapt(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processors: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
    processors["pil"](**family.pixels).save_pretrained(folder)
    if family.processor:
        (folder / "processor_config.json").write_text(json.dumps(family.processor))
    return folder
