"""A LLaVA folder out of a LLaMA folder and a CLIP folder, with a projector that has to be trained."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaConfig

from ts_lightning.models.backbones.hub_layout import load_tokenizer, random_model, read_config, with_seed
from ts_lightning.models.backbones.llava import VICUNA, LinearLlava, LlavaBackbone, LlavaForConditionalGeneration


def assemble(
    language: Path, vision: Path, out: Path, projector: str = "linear", dtype: str = "bfloat16", seed: int = 0
) -> None:
    """Write a folder that `LlavaBackbone` reads; the projector is random from `seed`.

    Rows of the embedding for tokens that were added (the picture's) start as the mean of the others. ValueError where
    a folder is not of the kind.
    """
    if projector not in ("linear", "mlp"):
        raise ValueError(f"projector: seen {projector!r}, expected 'linear' or 'mlp'")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out: seen {out} with files in it, expected a new folder")
    tokenizer = load_tokenizer(language, "<image>", VICUNA.end)
    decoder = _load(LlamaForCausalLM, language, ("llama",), dtype)
    tower = _load(CLIPVisionModel, vision, ("clip", "clip_vision_model"), dtype)
    rows = max(len(decoder.lm_head.weight), max(tokenizer.get_vocab().values()) + 1)
    settings = LlavaConfig(
        vision_config=tower.config,
        text_config=decoder.config.to_dict() | {"vocab_size": rows},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    settings.projector = projector
    kind: Any = LinearLlava if projector == "linear" else LlavaForConditionalGeneration
    with with_seed(seed):
        model = random_model(settings, dtype, kind)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    state = {f"model.language_model.{name}": tensor for name, tensor in decoder.model.state_dict().items()}
    state["lm_head.weight"] = decoder.lm_head.weight.detach()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        mean = state[name].float().mean(0).to(state[name].dtype)
        state[name] = torch.cat([state[name], mean.expand(rows - len(state[name]), -1)])
    model.load_state_dict(state, strict=False)  # the tower is there, the projector is new
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    LlavaBackbone(str(out), dtype=dtype)  # it reads back


def _load(kind: Any, folder: Path, types: tuple[str, ...], dtype: str) -> Any:
    if (seen := read_config(folder).get("model_type")) not in types:
        raise ValueError(f"{folder}: seen model_type {seen!r}, expected {' or '.join(map(repr, types))}")
    try:
        model, info = kind.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            weights_only=True,  # Vicuna and OpenAI's CLIP are published as .bin alone
            local_files_only=True,
            trust_remote_code=False,
        )
    except UnpicklingError:
        raise ValueError(f"{folder}: seen pickled weights that hold more than tensors, expected safetensors") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0][:200]}") from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder}: seen no {missing[0]} ({len(missing)} missing), expected a whole model")
    return model
