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
    pixels_of: str | None = None


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

GLM = (
    "[gMASK]<sop>{% for message in messages %}{% if message.role == 'user' %}<|user|>\n"
    "{% for item in message.content %}"
    "{% if item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}{% else %}<|assistant|>\n{{ message.content[0].text }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM_MARKS = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>",
             "<|begin_of_video|>", "<|video|>", "<|end_of_video|>", "<|begin_of_box|>", "<|end_of_box|>")  # fmt: skip
GLM_IDS = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>",
           "image_end_token_id": "<|end_of_image|>", "video_start_token_id": "<|begin_of_video|>",
           "video_end_token_id": "<|end_of_video|>"}  # fmt: skip
GLM_VISION = {"depth": 2, "hidden_size": 32, "num_heads": 2, "image_size": 56, "patch_size": 14, "out_hidden_size": 32,
              "intermediate_size": 48}  # fmt: skip
GLM_PIXELS = {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 32}}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
GEMMA4 = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n"
    "{% for item in message.content %}{% if item.type == 'image' %}<|image|>{% else %}{{ item.text | trim }}"
    "{% endif %}{% endfor %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
LLAVA_NEXT = (
    "{% for message in messages %}{% if message.role == 'user' %}[INST] {% for item in message.content %}"
    "{% if item.type == 'image' %}<image>\n{% else %}{{ item.text }}{% endif %}{% endfor %} [/INST]"
    "{% else %} {{ message.content[0].text }}</s> {% endif %}{% endfor %}"
)
ONEVISION = (  # llava-hf/llava-onevision-qwen2-7b-ov-hf
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST]{% for item in message.content %}"
    "{% if item.type == 'image' %}[IMG]{% else %}{{ item.text }}{% endif %}{% endfor %}[/INST]"
    "{% else %}{{ message.content[0].text }}{{ eos_token }}{% endif %}{% endfor %}"
)
KIMI = (
    "{% for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>"
    "{% for item in message.content %}"
    "{% if item.type == 'image' %}<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
    "{% else %}{{ item.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)
QWEN35 = QWEN3.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)

FAMILIES |= {
    "qwen3_vl_moe": Family(
        {"text_config": {**TEXT, **MOE, "rope_parameters": ROPE},
         "vision_config": FAMILIES["qwen3_vl"].config["vision_config"]},
        QWEN3, QWEN_MARKS, pixels={**SMALL, "patch_size": 14}, end="<|im_end|>", ids=QWEN_IDS, pixels_of="qwen3_vl",
    ),
    "qwen3_5": Family(
        {"text_config": {**TEXT, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                         "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
                         "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
         "vision_config": {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2,
                           "intermediate_size": 48, "patch_size": 14, "num_position_embeddings": 16}},
        QWEN35, QWEN_MARKS, pixels={**SMALL, "patch_size": 14}, end="<|im_end|>", ids=QWEN_IDS,
    ),
    "gemma4": Family(
        {"text_config": {**TEXT, "num_hidden_layers": 4, "sliding_window": 12, "global_head_dim": 8,
                         "layer_types": ["sliding_attention", "full_attention"] * 2,
                         "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": WORDS,
                         "num_kv_shared_layers": 0, "use_bidirectional_attention": "vision"},
         "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 14,
                           "pooling_kernel_size": 2, "position_embedding_size": 64}},
        GEMMA4, ("<|turn>", "<turn|>", "<|video|>"),
        {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
         "boa_token": "<|audio>", "eoa_token": "<audio|>"},
        pixels={"patch_size": 14, "pooling_kernel_size": 2, "max_soft_tokens": 70}, end="<turn|>",
        ids={"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
             "audio_token_id": "<|audio|>", "video_token_id": "<|video|>"},
    ),
    "glm4v": Family(
        {"text_config": {**TEXT, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
         "vision_config": GLM_VISION},
        GLM, GLM_MARKS, pixels=GLM_PIXELS, end="<|user|>", ids=GLM_IDS,
    ),
    "glm46v": Family(
        {"text_config": {"model_type": "glm4v_text", **TEXT, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
         "vision_config": {"model_type": "glm4v_vision", **GLM_VISION}},
        GLM, GLM_MARKS, pixels=GLM_PIXELS, end="<|user|>", ids=GLM_IDS,
    ),
    "llava_next": Family(
        {"text_config": LLAMA, "vision_config": CLIP, "vision_feature_layer": -2,
         "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]], "image_seq_length": 16},
        LLAVA_NEXT, (), pixels={"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56},
                                "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        ids={"image_token_index": "<image>"},
    ),
    "llava_onevision": Family(
        {"text_config": QWEN2, "vision_config": {**SIGLIP, "vision_use_head": False}, "vision_feature_layer": -1,
         "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
        ONEVISION, (*CHATML_MARKS, "<video>"),
        pixels={"size": {"height": 56, "width": 56}, "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"}, end="<|im_end|>",
        ids={"image_token_index": "<image>", "video_token_index": "<video>"},
    ),
    "idefics3": Family(
        {"text_config": LLAMA, "vision_config": {**VISION, "image_size": 56, "patch_size": 14}, "scale_factor": 2},
        SMOL.replace("<|im_start|>", "<s>", 1), FAMILIES["smolvlm"].marks[1:],
        pixels=FAMILIES["smolvlm"].pixels, processor={"image_seq_len": 4}, end="<end_of_utterance>",
        ids={"image_token_id": "<image>"},
    ),
    "paligemma": Family(
        {"text_config": {"model_type": "gemma", **TEXT}, "vision_config": SIGLIP, "projection_dim": 32,
         "hidden_size": 32, "vocab_size": WORDS},
        None, tuple(f"<loc{i:04d}>" for i in range(1024)) + tuple(f"<seg{i:03d}>" for i in range(128)),
        {"image_token": "<image>"}, pixels={"size": {"height": 56, "width": 56}, "image_seq_length": 16},
        ids={"image_token_id": "<image>"},
    ),
    "minicpmv4_6": Family(
        {"text_config": {"model_type": "qwen3_5_text", **FAMILIES["qwen2_vl"].config["text_config"],
                         "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                         "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
                         "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
         "vision_config": {**VISION, "image_size": 112, "patch_size": 14, "insert_layer_id": 0}, "insert_layer_id": 0,
         "image_size": 56},
        QWEN3.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>\n"), CHATML_MARKS,
        {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
         "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
         "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"},
        pixels={"scale_resolution": 56, "patch_size": 14, "max_slice_nums": 2}, end="<|im_end|>",
        ids={"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
    ),
    "mistral3": Family(
        {"text_config": {"model_type": "mistral", **TEXT},
         "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 16, "image_size": 112, "patch_size": 14}},
        MISTRAL, ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        pixels={"size": {"longest_edge": 112}, "patch_size": {"height": 28, "width": 28}},
        processor={"patch_size": 14, "spatial_merge_size": 2}, ids={"image_token_index": "[IMG]"},
    ),
    "aya_vision": Family(
        {"text_config": {"model_type": "cohere2", **TEXT, "sliding_window": 12,
                         "layer_types": ["sliding_attention", "full_attention"]},
         "vision_config": {**SIGLIP}, "downsample_factor": 2, "adapter_layer_norm_eps": 1e-6,
         "alignment_intermediate_size": 64},
        INTERNVL.replace("<IMG_CONTEXT>\n", "<image>"),
        (*CHATML_MARKS, "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"),
        pixels={"size": {"height": 56, "width": 56}, "crop_to_patches": True, "max_patches": 4},
        processor={"patch_size": 28, "img_size": 56, "downsample_factor": 1}, end="<|im_end|>",
        ids={"image_token_id": "<|IMG_PATCH|>"},
    ),
    "ovis2": Family(
        {"text_config": QWEN2,
         "vision_config": {**VISION, "image_size": 56, "patch_size": 14, "vocab_size": 64,
                           "num_visual_indicator_tokens": 5},
         "hidden_size": 32, "vocab_size": WORDS},
        QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"), (*CHATML_MARKS, "<IMG_START>",
         "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<IMG_ATOM>"),
        pixels={"size": {"height": 56, "width": 56}}, processor={"image_seq_length": 16}, end="<|im_end|>",
        ids={"image_token_id": "<IMG_ATOM>"},
    ),
    "vipllava": Family(
        {"text_config": LLAMA, "vision_config": {**CLIP, "num_hidden_layers": 3}, "vision_feature_layers": [-2, -1]},
        LLAVA, (), pixels={"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        ids={"image_token_id": "<image>"},
    ),
    "deepseek_vl": Family(
        {"text_config": LLAMA, "vision_config": SIGLIP},
        LLAVA.replace("<image>\n", "<image_placeholder>"), (), {"image_token": "<image_placeholder>"},
        pixels={"size": {"height": 56, "width": 56}, "min_size": 14}, processor={"num_image_tokens": 16},
        ids={"image_token_id": "<image_placeholder>"},
    ),
    "qwen3_5_moe": Family(
        {"text_config": {**FAMILIES["qwen2_vl"].config["text_config"], **MOE, "shared_expert_intermediate_size": 24,
                         "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                         "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
                         "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
         "vision_config": {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2,
                           "intermediate_size": 48, "patch_size": 14, "num_position_embeddings": 16}},
        QWEN35, QWEN_MARKS, pixels={**SMALL, "patch_size": 14}, end="<|im_end|>", ids=QWEN_IDS,
    ),
    "glm4v_moe": Family(
        {"text_config": {**TEXT, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}, "moe_intermediate_size": 24,
                         "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
                         "topk_group": 1, "first_k_dense_replace": 0},
         "vision_config": GLM_VISION},
        GLM, GLM_MARKS, pixels=GLM_PIXELS, end="<|user|>", ids=GLM_IDS, pixels_of="glm4v",
    ),
    "kimi_k25": Family(
        {"text_config": {"model_type": "deepseek_v3", **{k: v for k, v in TEXT.items() if k != "head_dim"},
                         "num_key_value_heads": 4, "q_lora_rank": 16,
                         "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
                         "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
                         "topk_group": 1, "first_k_dense_replace": 0, "moe_intermediate_size": 24},
         "vision_config": {**VISION, "patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8},
         "projection_hidden_size": 32},
        KIMI, ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "<|media_begin|>",
               "<|media_content|>", "<|media_end|>"),
        {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"},
        pixels={"patch_size": 14, "merge_size": 2, "max_patches": 64}, end="<|im_end|>", pixels_of="",
        ids={"image_token_id": "<|media_pad|>", "video_token_id": "<|kimi_k25_video_placeholder|>",
             "vision_start_token_id": "<|media_begin|>", "vision_end_token_id": "<|media_end|>"},
    ),
    "molmo2": Family(
        {"text_config": {**{k: v for k, v in TEXT.items() if not k.endswith("_id")}, "vocab_size": WORDS - 128,
                         "additional_vocab_size": 128},
         "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 16, "image_size": [56, 56],
                           "patch_size": 14},
         "adapter_config": {"vision_feature_layer": [-1, -2], "hidden_size": 32, "num_attention_heads": 2,
                            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "text_hidden_size": 32}},
        QWEN3.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>"),
        (*CHATML_MARKS, "<|image|>", "<|video|>", "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>",
         "<frame_start>", "<im_end>", "<frame_end>", "<im_low>"),
        pixels={"size": {"height": 56, "width": 56}, "max_crops": 2, "overlap_margins": [1, 1]}, end="<|im_end|>",
        ids={"image_patch_id": "<im_patch>", "image_start_token_id": "<im_start>", "image_end_token_id": "<im_end>",
             "low_res_image_start_token_id": "<low_res_im_start>", "frame_start_token_id": "<frame_start>",
             "frame_end_token_id": "<frame_end>"}, pixels_of="",
    ),
    "exaone4_5": Family(
        {"text_config": {"model_type": "exaone4", **TEXT, "sliding_window": 12,
                         "layer_types": ["sliding_attention", "full_attention"]},
         "vision_config": {**FAMILIES["qwen2_5_vl"].config["vision_config"], "num_key_value_heads": 2}},
        QWEN3, QWEN_MARKS, {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}, pixels=SMALL,
        end="<|im_end|>", ids={"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
    ),
    "paddleocr_vl": Family(
        {"text_config": {**TEXT, "rope_parameters": ROPE},
         "vision_config": {**VISION, "image_size": 56, "patch_size": 14}},
        QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>",
                     "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
        (*CHATML_MARKS, "<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>"), {"image_token": "<|IMAGE_PLACEHOLDER|>"},
        pixels=SMALL, end="<|im_end|>",
        ids={"image_token_id": "<|IMAGE_PLACEHOLDER|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|IMAGE_START|>", "vision_end_token_id": "<|IMAGE_END|>"},
    ),
    "janus": Family(
        {"text_config": LLAMA,
         "vision_config": {**VISION, "image_size": 56, "patch_size": 14, "projection_dim": 32, "num_image_tokens": 16},
         "vq_config": {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32,
                       "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 32, "num_hidden_layers": 1,
                       "image_token_embed_dim": 32, "num_patches": 4}},
        LLAVA.replace("<image>\n", "<image_placeholder>\n"), (),
        {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        pixels={"size": {"height": 56, "width": 56}, "min_size": 14}, processor={"num_image_tokens": 16},
        ids={"image_token_id": "<image_placeholder>"},
    ),
    "lighton_ocr": Family(
        {"text_config": {"model_type": "qwen3", **TEXT},
         "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 16, "image_size": 112, "patch_size": 14}},
        QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"), QWEN_MARKS,
        {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"},
        pixels={"size": {"longest_edge": 112}, "patch_size": {"height": 28, "width": 28}},
        processor={"patch_size": 14, "spatial_merge_size": 2}, end="<|im_end|>",
        ids={"image_token_id": "<|image_pad|>"},
    ),
    "video_llama_3": Family(
        {"text_config": QWEN2, "vision_config": {**VISION, "patch_size": 14}},
        QWEN3.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"), (*CHATML_MARKS, "<video>"),
        {"image_token": "<image>", "video_token": "<video>"},
        pixels={"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}, end="<|im_end|>",
        ids={"image_token_id": "<image>", "video_token_id": "<video>"},
    ),
}  # fmt: skip

# Families of transformers that are refused, and the line that says why.
REFUSED: dict[str, Family] = {
    "idefics2": Family(
        {"text_config": {"model_type": "mistral", **TEXT},
         "vision_config": {**VISION, "image_size": 56, "patch_size": 14},
         "perceiver_config": {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
                              "resampler_head_dim": 8, "num_key_value_heads": 2, "model_type": "idefics2_perceiver"}},
        SMOL.replace("<|im_start|>", "<s>", 1), ("<fake_token_around_image>", "<end_of_utterance>"),
        pixels={"size": {"longest_edge": 56, "shortest_edge": 28}, "do_image_splitting": False},
        processor={"image_seq_len": 4}, end="<end_of_utterance>", ids={"image_token_id": "<image>"},
    ),
}  # fmt: skip
FAILING = {
    "idefics2": "the processor of the model does not say what stands for a picture",
    "cohere2_vision": "its processor needs torchvision",
    "lfm2_vl": "its processor needs torchvision",
    "llama4": "its processor needs torchvision",
    "step3p7": "its processor needs torchvision",
    "muse_glimmer": "its processor needs torchvision",
}


def make_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the folder of a family."""
    family = FAMILIES.get(name) or REFUSED[name]
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
    if family.pixels_of == "":
        (folder / "preprocessor_config.json").write_text(json.dumps(family.pixels))
    else:
        processors: Any = IMAGE_PROCESSOR_MAPPING[type(AutoConfig.for_model(family.pixels_of or name))]
        processors["pil"](**family.pixels).save_pretrained(folder)
    if family.processor:
        (folder / "processor_config.json").write_text(json.dumps(family.processor))
    return folder
