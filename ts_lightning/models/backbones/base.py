"""What the package asks of a backbone: where its parts are. Nothing else knows which model it is."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ts_lightning.grounding.codecs import Codec, backbone_codec
from ts_lightning.models.cache import GrowingLayer
from ts_lightning.models.encode import Encoder
from ts_lightning.models.moe import MoE
from ts_lightning.models.packing import branch_mask
from ts_lightning.models.recorded import Recorded


class Backbone(Recorded, nn.Module):
    """A pre-trained VLM behind our interface; subclasses load one and fill in `model` and `encoder`.

    Shapes: B rows, T positions, H hidden size, N pictures, S picture side, P tokens of one picture.
    """

    model: Any  # a transformers model: its attributes are not typed
    encoder: Encoder
    name: str
    mlp_name = "mlp"
    made_by: tuple[str, ...] = ("config", "seed")  # arguments that a saved folder makes needless
    branches = True  # several answers may stand behind one prompt (`models.packing`)
    native_codec = "scout"  # where no codec is named
    unused: tuple[str, ...] = ()  # patterns of parameters that no gradient reaches; they never train
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        raise NotImplementedError

    @property
    def decoder(self) -> nn.Module:
        """Embeddings to last hidden states; takes `inputs_embeds, attention_mask, position_ids, past_key_values`."""
        raise NotImplementedError

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Linear:
        """The language-model head."""
        raise NotImplementedError

    @property
    def image_token_id(self) -> int:
        """The placeholder token that one image feature replaces."""
        raise NotImplementedError

    def image_features(self, pixels_N3SS: Tensor) -> Tensor:
        """[N, P, H] features of normalised pictures."""
        raise NotImplementedError

    def encode_images(self, pixels_N3SS: Tensor) -> Tensor:
        """[N, P, H] features of uint8 pictures; normalisation happens here, on the device."""
        return self.image_features(self.normalise(pixels_N3SS))

    def normalise(self, pixels_NC: Tensor) -> Tensor:
        """uint8 pixels [N, 3, ...] as the vision tower takes them."""
        shape = (1, 3, *[1] * (pixels_NC.ndim - 2))
        mean, std = (torch.tensor(v, device=pixels_NC.device).view(shape) for v in (self.pixel_mean, self.pixel_std))
        return ((pixels_NC / 255 - mean) / std).to(self.embedding.weight.dtype)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """[M, H] features of all pictures of a batch, in the order of their placeholders."""
        return self.encode_images(batch["pixel_values"])

    def decoder_inputs(self, batch: Mapping[str, Any], embeds_BTH: Tensor) -> dict[str, Any]:
        """What the decoder takes beside mask, positions and cache: `inputs_embeds`, pictures in their places.

        `embeds_BTH` are the embeddings of `input_ids`. A batch of tokens alone has no pictures; one that brings its
        `features` has them computed before.
        """
        if not number_of_pictures(batch):
            return {"inputs_embeds": embeds_BTH}
        image_BT = batch["input_ids"] == self.image_token_id
        features_MH = batch["features"] if "features" in batch else self.features(batch)
        features_MH = features_MH.to(embeds_BTH.dtype)
        return {"inputs_embeds": embeds_BTH.masked_scatter(image_BT[..., None], features_MH)}

    def mask(
        self,
        query_BQ: Tensor,
        key_BK: Tensor | None = None,
        batch: Mapping[str, Any] | None = None,
        plain: bool = False,
    ) -> Any:
        """The decoder's mask for branches (`models.packing`); None where `plain` says that all of it is causal.

        `batch` is what the queries are read from, where they are more than the tokens of an answer.
        """
        return None if plain else branch_mask(query_BQ, key_BK)

    def cache(self) -> Cache:
        """An empty cache of keys and values."""
        return Cache(layer_class_to_replicate=GrowingLayer)

    def expert_seeds(self, slot: nn.Module) -> list[nn.Module]:
        """The MLPs of a decoder layer that grounding experts are copies of, in turn."""
        return list(slot.experts) if isinstance(slot, MoE) else [slot]

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the model so that `pretrained=folder` reads it back; weights as they are, or cast to `dtype`."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Plain values that name this backbone: class, name, and the sha256 of its weights."""
        return {"class": type(self).__name__, "name": self.name, "sha256": weights_sha256(self.model)}

    def codec_of(self, stored: Any) -> Codec:
        """The notation of this base as a checkpoint describes it: {class_path, init_args}, or a folder's name."""
        given = stored.get("init_args", {}) if isinstance(stored, Mapping) else {}
        names = ("codec", "codec_grid", "pixel_mode")
        told, own = ([self.argument(name, of) for name in names] for of in (given, self.init_args))
        if told == own:
            return self.encoder.codec
        codec, grid, mode = told
        return backbone_codec(codec or self.native_codec, grid, (1, 1), mode or self.encoder.pixel_mode)


def notation(codec: Codec) -> dict[str, Any]:
    """How boxes are written, as `twin_config.json` holds it."""
    return {"frame": codec.space.frame, "grid": codec.space.grid, "name": codec.name}


def number_of_pictures(batch: Mapping[str, Any]) -> int:
    """Pictures, or patches of them, in a batch."""
    return len(batch.get("pixel_values", ())) or len(batch.get("pictures", ()))


def weights_sha256(model: nn.Module) -> str:
    """One sha256 over names, shapes, dtypes and bytes of all weights, in the order of their names.

    "meta" for a model without weights.
    """
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        return "meta"
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor, on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
