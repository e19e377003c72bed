"""What the backbones over transformers' own folders share: their parts, where weights come from, one-line errors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AddedToken, AutoTokenizer

from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.backbones.tiny import SHIPPED


class HubBackbone(Backbone):
    """A vlm of transformers: vision and `language_model` under `model.model`, saved as transformers saves."""

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.model.language_model.layers

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    @property
    def head(self) -> nn.Linear:
        return self.model.lm_head

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write what transformers (and `pretrained`) reads: config, safetensors, tokenizer."""
        (self.model if dtype is None else self.model.to(dtype)).save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)


def check_source(
    backbone: str, pretrained: str | None, config: Mapping[str, Any] | None, kinds: Mapping[str, Any], loader: Any
) -> Any:
    """The config object of `pretrained` or of `config`, one of which must be given; its model_type is one of `kinds`.

    `loader` is a config class, or AutoConfig. ValueError in one line.
    """
    if (pretrained is None) == (config is None):
        raise ValueError(f"{backbone}: seen pretrained and config both or neither, expected one of them")
    values = dict(config) if config is not None else read_config(Path(str(pretrained)))
    kind = values.get("model_type")
    if kind not in kinds:
        where = backbone if pretrained is None else pretrained
        raise ValueError(f"{where}: seen model_type {kind!r}, expected {' or '.join(map(repr, kinds))}")
    if hasattr(loader, "for_model"):
        values.pop("model_type")
        return loader.for_model(kind, **values)
    return loader.from_dict(values)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved model."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"pretrained: seen no config.json of a model in {folder} ({error})") from None


def load_weights_of(kind: Any, folder: Path, config: Any, dtype: str, fresh: Sequence[str] = ()) -> Any:
    """`kind` with the safetensors of a folder; ValueError for missing weights outside of the modules `fresh`."""
    try:
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"pretrained: {folder}: {str(error).splitlines()[0][:200]}") from None
    missing = sorted(key for key in info["missing_keys"] if not any(name in key for name in fresh))
    if missing:
        raise ValueError(
            f"pretrained: seen no {missing[0]} in {folder}, expected a whole model ({len(missing)} missing)"
        )
    return model


def small_tokenizer(marks: Sequence[str] = (), end: str | None = None) -> Any:
    """The tiny base's tokenizer with further marks, for models of random weights; `end` ends an answer."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks if mark not in known])
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


@contextmanager
def with_seed(seed: int) -> Iterator[None]:
    """Random weights from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
