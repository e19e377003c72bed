"""What the backbones over transformers' own folders share: their parts, where weights come from, one-line errors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AddedToken, AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from ts_lightning.grounding.codecs import backbone_codec
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.encode import ChatTemplate, Encoder
from ts_lightning.models.package import readable

SHIPPED = Path(__file__).parent / "tiny_base"
# Files of a folder that say how pictures and turns are made.
SIDE_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


class HubBackbone(Backbone):
    """A vlm of transformers: vision and `language_model` under `model.model`, saved as transformers saves.

    A subclass says which `model_types` it reads, its `image_token`, its chat `template` and other `marks` of it; its
    constructor calls `load`, then makes the `encoder`.
    """

    model_types: ClassVar[tuple[str, ...]]
    image_token: ClassVar[str] = "<image>"
    template: ClassVar[ChatTemplate]
    marks: ClassVar[tuple[str, ...]] = ()
    side_files: Mapping[str, bytes] = {}

    def source(self, pretrained: str | None, config: Mapping[str, Any] | None) -> Any:
        """The config object of the folder `pretrained`, or of `config`, one of which must be given."""
        where = type(self).__name__
        if (pretrained is None) == (config is None):
            raise ValueError(f"{where}: seen pretrained and config both or neither, expected one of them")
        values = dict(config) if config is not None else read_config(Path(str(pretrained)))
        if (kind := values.pop("model_type", None)) not in self.model_types:
            expected = " or ".join(map(repr, self.model_types))
            raise ValueError(f"{pretrained or where}: seen model_type {kind!r}, expected {expected}")
        return AutoConfig.for_model(kind, **values)

    def load(
        self,
        settings: Any,
        pretrained: str | None,
        seed: int,
        dtype: str,
        kind: Any = AutoModelForImageTextToText,
        fresh: Sequence[str] = (),
    ) -> Any:
        """Fill in `model` and `name`; returns the tokenizer that fits.

        Into a model of `kind` with the config `settings`: weights of the folder `pretrained`, whose modules `fresh` may
        be missing there, or random ones from `seed`, and then the tiny base's tokenizer. ValueError in one line.
        """
        end = self.template.end.strip()
        with with_seed(seed):
            if pretrained is None:
                tokenizer = small_tokenizer(self.marks, end)
                settings.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
                self.model = random_model(settings, dtype, kind)
            else:
                tokenizer = load_tokenizer(pretrained, self.image_token, end)
                self.side_files = side_files(Path(pretrained))
                self.model = load_weights_of(kind, Path(pretrained), settings, dtype, fresh)
        check_tokens(self, tokenizer, self.image_token)
        self.model.eval()
        self.name = f"{settings.model_type}:{pretrained or f'random-{seed}'}"
        return tokenizer

    def square_encoder(
        self,
        tokenizer: Any,
        side: int,
        tokens: int,
        codec: str,
        codec_grid: str | None,
        max_length: int,
        pixel_mode: str,
        kind: type[Encoder] = Encoder,
    ) -> Encoder:
        """The encoder of a model that takes every picture as a square of `side` pixels, `tokens` of it."""
        return kind(
            tokenizer=tokenizer,
            image_token=self.image_token,
            image_tokens=tokens,
            image_size=side,
            max_length=max_length,
            pixel_mode=pixel_mode,
            codec=backbone_codec(codec, codec_grid, (side, side), pixel_mode),
            template=self.template,
        )

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
        save_folder(folder, self.model, self.encoder.tokenizer, self.side_files, dtype)


def side_files(folder: Path) -> dict[str, bytes]:
    """The files beside weights and tokenizer that a processor is made of, by name."""
    return {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).is_file()}


def with_pixels(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Side files whose image processor has these settings, so that whoever reads them makes our pixels of a picture."""
    found = dict(files)
    for name in {"processor_config.json", "preprocessor_config.json"} & found.keys():
        try:
            stored = json.loads(found[name])
        except ValueError as error:
            raise ValueError(f"pretrained: {name}: seen no JSON ({error})") from None
        own = stored if name == "preprocessor_config.json" else stored.get("image_processor")
        if own is None:
            continue
        own.update(settings)
        for old in ("min_pixels", "max_pixels"):  # would go before `size`
            own.pop(old, None)
        found[name] = (json.dumps(stored, indent=2) + "\n").encode()
    return found


def squares(side: int, padded: bool = True) -> dict[str, Any]:
    """Settings of an image processor that makes squares of whole pictures, in the middle of one where `padded`."""
    size = {"height": side, "width": side}
    makes = {"image_processor_type": "LlavaImageProcessor", "do_resize": True, "size": size}
    return makes | {"do_center_crop": False, "do_pad": padded}


def save_folder(
    folder: Path, model: Any, tokenizer: Any, beside: Mapping[str, bytes], dtype: torch.dtype | None = None
) -> None:
    """Write what transformers (and `pretrained`) reads: config, safetensors, tokenizer, and the processor's files."""
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in beside.items():
        (folder / name).write_bytes(content)
    readable(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved model."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"pretrained: seen no config.json of a model in {folder} ({error})") from None


def saved_dtype(folder: Path) -> str | None:
    """The 16 bits that the weights of a folder were saved in, as its config.json names them for model or text."""
    config = read_config(folder)
    parts = [config, config.get("text_config")]
    named = [part.get(key) for part in parts if isinstance(part, dict) for key in ("dtype", "torch_dtype")]
    return next((name for name in named if name in ("bfloat16", "float16")), None)


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
            trust_remote_code=False,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"pretrained: {folder}: {str(error).splitlines()[0][:200]}") from None
    missing = sorted(key for key in info["missing_keys"] if not any(name in key for name in fresh))
    if missing:
        raise ValueError(
            f"pretrained: seen no {missing[0]} in {folder}, expected a whole model ({len(missing)} missing)"
        )
    return model


def load_tokenizer(folder: Path | str, image_token: str, end: str) -> Any:
    """The fast tokenizer of a folder, made `fit_for_answers`."""
    return fit_for_answers(read_tokenizer(folder), folder, image_token, end)


def read_tokenizer(folder: Path | str) -> Any:
    """The fast tokenizer of a folder as it is."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers' own parser raises plain Exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"pretrained: seen no tokenizer in {folder} ({reason}), expected tokenizer.json") from None
    if not tokenizer.is_fast:
        raise ValueError(f"pretrained: seen a slow tokenizer in {folder}, expected tokenizer.json (offsets are needed)")
    return tokenizer


def fit_for_answers(tokenizer: Any, folder: Path | str, image_token: str, end: str) -> Any:
    """The tokenizer with `end`, the mark behind an answer, as its end-of-sequence token, in place.

    `image_token` is added where it is missing, and so is a padding token where there is none but `end`: padding is
    never generated, an end must be.
    """
    if end not in tokenizer.get_vocab():
        raise ValueError(f"pretrained: seen no token {end!r} in the tokenizer of {folder}, expected the template's end")
    tokenizer.eos_token = end
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(image_token, normalized=False, special=True)])
    if tokenizer.pad_token in (None, end):
        other = tokenizer.unk_token not in (None, end)
        tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token if other else "<pad>"})
    return tokenizer


def check_tokens(backbone: Backbone, tokenizer: Any, image_token: str) -> None:
    """ValueError where a token has no row in the embedding, or model and tokenizer differ in the image token."""
    token, index = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    rows = len(backbone.embedding.weight)
    if index >= rows:
        raise ValueError(f"tokenizer: seen {token!r} with id {index}, expected ids below {rows}, the embedding's rows")
    if (image_id := tokenizer.convert_tokens_to_ids(image_token)) != backbone.image_token_id:
        raise ValueError(f"tokenizer: seen {image_token!r} with id {image_id}, expected {backbone.image_token_id}")


def small_tokenizer(marks: Sequence[str] = (), end: str | None = None) -> Any:
    """The tiny base's tokenizer with further marks, for models of random weights; `end` ends an answer."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True, trust_remote_code=False)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks if mark not in known])
    if end is not None:
        tokenizer.eos_token = end
    return tokenizer


def random_model(settings: Any, dtype: str, kind: Any = AutoModelForImageTextToText) -> Any:
    """A model of a config with fresh weights; `kind` is a class, or an Auto class that knows the config's."""
    if hasattr(kind, "from_config"):
        return kind.from_config(settings, dtype=getattr(torch, dtype))
    return kind(settings).to(getattr(torch, dtype))


@contextmanager
def with_seed(seed: int) -> Iterator[None]:
    """Random weights from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
