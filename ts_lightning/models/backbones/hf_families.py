"""What a folder does not say of its family: its own notation of boxes, and turns where it has no chat template."""

from typing import Any

from ts_lightning.models.backbones.hf_template import Chat
from ts_lightning.models.encode import ChatTemplate

# The notation of a family by its makers' documentation; others write scout's. Molmo's has no boxes, so it is none.
CODECS = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "qwen3_vl"),
    **dict.fromkeys(("gemma3", "gemma3n", "gemma4"), "gemma"),
    "paligemma": "paligemma",
    "internvl": "internvl",
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), "glm"),
}

BLOCKS = {"gemma3": "runs", "molmo2": "all", "paligemma": "prefix"}  # what the decoder sees both ways
BEGUN = {"molmo2"}  # families whose processor puts the first token before every prompt
COUNTED = {"molmo2"}  # families that count the marks between a picture's tokens as the picture's
SIDES = {"minicpmv4_6": {"pixel_values": -1}}  # the side along which pictures stand one behind the other
FLAT = {"got_ocr2"}  # several pictures of one conversation in a plain list


def template_of(family: str, tokenizer: Any) -> Chat | None:
    """Turns of a family that has no chat template; None for another."""
    if family == "paligemma":  # the pictures, <bos>, the question, a new line
        end = tokenizer.eos_token
        template = ChatTemplate(user="", assistant="\n", end=end, blank="", after_picture="")
        return Chat(template, "<image>", tokenizer.bos_token)
    return None


def image_token_of(processor: Any, tokenizer: Any, config: Any) -> str:
    """The token that one picture feature replaces in a row."""
    for name in ("image_token_id", "image_token_index"):
        index = getattr(config, name, None)
        if isinstance(index, int):
            return tokenizer.convert_ids_to_tokens(index)
    return processor.image_token
