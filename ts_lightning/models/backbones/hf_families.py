"""What a folder does not say of its family: its own notation of boxes, and turns where it has no chat template."""

from typing import Any

from ts_lightning.models.backbones.hf_template import Chat
from ts_lightning.models.encode import ChatTemplate

# The notation of a family by its makers' documentation; others write scout's.
CODECS = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
}

TEMPLATES = {
    "paligemma": Chat(ChatTemplate(user="", assistant="\n", end="<eos>", blank="", after_picture=""), "<image>"),
}


def image_token_of(processor: Any, tokenizer: Any, config: Any) -> str:
    """The token that one picture feature replaces in a row."""
    for name in ("image_token_id", "image_token_index"):
        index = getattr(config, name, None)
        if isinstance(index, int):
            return tokenizer.convert_ids_to_tokens(index)
    return processor.image_token
