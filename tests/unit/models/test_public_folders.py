"""Folders as their authors publish them: key names, config fields, sharded files, tokenizers without padding.

Bitwise: weights that are copied.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerFast

from tests.unit.models.test_backbones import MAKERS, batch_of, llava_config, moe_public, sample
from ts_lightning.data.sample import Answer, Sample, Turn
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.internvl import InternVLBackbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.generate import banned_tokens
from ts_lightning.training import SFT

CORPUS = ["Where is the star? Answer with a box.", "USER: ASSISTANT: left right 0123456789,.()[]<>|"] * 4
BLANKS = tuple(" " * n for n in range(31, 1, -1))  # Phi has them as tokens of their own


def byte_level(folder: Path, marks: list[str], blanks: tuple[str, ...] = (), **special: str) -> Any:
    """A byte-level BPE as GPT-2, Phi and Qwen have it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    bpe.add_tokens([AddedToken(blank, normalized=True) for blank in blanks])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def slow_files(folder: Path) -> None:
    """The same tokenizer as a slow one saves itself: vocabulary, merges and added tokens, no tokenizer.json."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token for token in whole["added_tokens"]}
    blanks = {text: token["id"] for text, token in added.items() if not text.strip()}
    words = whole["model"]["vocab"] | {text: token["id"] for text, token in added.items() if text not in blanks}
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = "\n".join(" ".join(pair) for pair in whole["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "added_tokens.json").write_text(json.dumps(blanks))
    end = "<|endoftext|>"
    decoder = {str(token.pop("id")): token for token in added.values()}
    settings = {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False, "added_tokens_decoder": decoder,
                "bos_token": end, "eos_token": end, "unk_token": end, "model_max_length": 2048}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").unlink()


def sentence_piece(folder: Path, marks: tuple[str, ...] = ("<image>", "<pad>")) -> Any:
    """A BPE with blanks as marks and bytes for the rest, as LLaMA has it."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bpe.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=first, show_progress=False))
    bpe.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    padding = {"pad_token": "<pad>"} if "<pad>" in marks else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **padding
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def publish(folder: Path, state: Mapping[str, Tensor], rules: dict[str, str], config: Mapping[str, Any]) -> None:
    """Half-precision weights under the published names, in two files with an index."""
    named = {}
    for name, tensor in state.items():
        pattern = next(p for p in rules if re.match(p, name))
        named[re.sub(pattern, rules[pattern], name)] = tensor.half().contiguous()
    keys = sorted(named)
    places = {key: f"model-0000{1 + (i > len(keys) // 2)}-of-00002.safetensors" for i, key in enumerate(keys)}
    for file in set(places.values()):
        part = {key: named[key] for key in keys if places[key] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def halved(backbone: Any) -> dict[str, Tensor]:
    return {name: tensor.half().float() for name, tensor in backbone.model.state_dict().items()}


def llava(folder: Path) -> tuple[Any, Any]:
    tokenizer = sentence_piece(folder)
    made = LlavaBackbone(config=llava_config())
    text = {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 2048,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "image_size": 56, "intermediate_size": 48, "model_type": "clip_vision_model",
        "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    }  # fmt: skip
    config = {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "model_type": "llava",
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "pad_token_id": 401,
        "projector_hidden_act": "gelu", "text_config": text, "tie_word_embeddings": False, "torch_dtype": "float16",
        "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    rules = {
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head\.": "language_model.lm_head.",
        r"^model\.vision_tower\.": "vision_tower.vision_model.",
        r"^model\.multi_modal_projector\.": "multi_modal_projector.",
    }
    publish(folder, made.model.state_dict(), rules, config)
    return made, LlavaBackbone(str(folder))


def qwen2_vl(folder: Path) -> tuple[Any, Any]:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = byte_level(folder, marks, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made = MAKERS["qwen2_vl"]()
    ids = tokenizer.convert_tokens_to_ids
    vision = {
        "depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3, "hidden_size": 32,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    }  # fmt: skip
    config = {  # flat: the language model's sizes stand beside the vision tower's
        "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "hidden_act": "silu",
        "bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>"), "model_type": "qwen2_vl",
        "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
        "image_token_id": ids("<|image_pad|>"), "video_token_id": 2000, "initializer_range": 0.02,
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "max_window_layers": 3, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 1024, "use_sliding_window": False, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "vision_config": vision, "vocab_size": 2048,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    rules = {r"^model\.visual\.": "visual.", r"^model\.language_model\.": "model.", r"^lm_head\.": "lm_head."}
    publish(folder, made.model.state_dict(), rules, config)
    return made, QwenVLBackbone(str(folder))


def internvl(folder: Path) -> tuple[Any, Any]:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    tokenizer = byte_level(folder, marks, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made = MAKERS["internvl"]()
    config = made.model.config.to_dict() | {"image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")}
    rules = {
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head\.": "language_model.lm_head.",
        r"^model\.(?=vision_tower|multi_modal_projector)": "",
    }
    state = {k: v for k, v in made.model.state_dict().items() if k != "lm_head.weight"}  # tied
    publish(folder, state, rules, json.loads(json.dumps(config, default=str)))
    return made, InternVLBackbone(str(folder))


def moe_llava(folder: Path) -> tuple[Any, Any]:
    fast = byte_level(folder, ["<|endoftext|>"], BLANKS, eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    slow_files(folder)
    made = MAKERS["moe_llava"]()
    made.save(folder / "named")  # test_moe_llava checks its names
    state = {k: v.half() for k, v in load_file(folder / "named/model.safetensors").items()}
    tower = {k.removeprefix("model.image_tower.image_tower."): v for k, v in state.items() if "image_tower" in k}
    rest = {k: v for k, v in state.items() if "image_tower" not in k}
    for number, part in enumerate((dict(list(rest.items())[::2]), dict(list(rest.items())[1::2])), 1):
        torch.save(part, folder / f"pytorch_model-0000{number}-of-00002.bin")
    public = moe_public()
    vision = public.pop("vision_config") | {"model_type": "clip_vision_model"}
    more = {"mm_image_tower": "openai/clip-vit-large-patch14-336", "image_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
            "mm_video_tower": None, "torch_dtype": "float16", "tokenizer_model_max_length": 2048}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(public | more))
    clip = folder / "clip"
    clip.mkdir()
    whole = tower | {"text_model.embeddings.position_ids": torch.arange(5), "logit_scale": torch.ones(())}
    save_file(whole, clip / "model.safetensors", metadata={"format": "pt"})
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": {}, "vision_config": vision}))
    read = MoELlavaBackbone(str(folder), image_tower=str(clip))
    text = "where is\n    the star <|endoftext|>"
    assert read.encoder.tokenizer(text)["input_ids"] == fast(text)["input_ids"]
    return made, read


PUBLISHED = {"llava": llava, "qwen2_vl": qwen2_vl, "internvl": internvl, "moe_llava": moe_llava}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_loads_trains_and_answers(name: str, tmp_path: Path) -> None:
    made, read = PUBLISHED[name](tmp_path)
    state = read.model.state_dict()
    expected = halved(made)
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, state[key]), key
    vlm, one = TwinExpertVLM(read), sample("grounding")
    tokenizer = vlm.tokenizer
    assert vlm.pad_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in banned_tokens(vlm)
    row = vlm.encode(one)
    said = tokenizer.decode(row["input_ids"][row["step_ids"] >= 0])
    box = vlm.codec.format([one.regions[0].box], (80, 60))
    assert said.strip() == f"{box}{read.encoder.template.end}".strip()
    assert tokenizer.eos_token_id in row["input_ids"][row["step_ids"] >= 0]
    pictures = int((row["input_ids"] == read.image_token_id).sum())
    grid = row["image_grid"].prod() // 4 if "image_grid" in row else read.encoder.image_tokens
    assert pictures == int(grid)
    began = read.encoder.template.system + read.encoder.template.user
    vlm.train()
    out = vlm(batch_of(vlm, [one]))
    torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
    begin, prompt = (re.sub(r"\s", "", text) for text in (began, tokenizer.decode(row["input_ids"])))
    assert prompt.startswith(begin)
    assert len(vlm.eval().generate(batch_of(vlm, [one], True, "left"), 3)) == 1


def test_blanks_in_the_data_are_no_marks(tmp_path: Path) -> None:
    _, read = moe_llava(tmp_path)
    one = sample("understanding")
    one.turns[0].text = "<image>\ndef f():\n    return 1 <|endoftext|>"
    text = read.encoder.tokenizer.decode(read.encoder(one)["input_ids"])
    assert "def f():\n    return 1 <\u200b|endoftext|>" in text


def test_what_a_folder_may_lack_is_said_in_one_line(tmp_path: Path) -> None:
    llava(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    cases = {
        "seen vision tower 'siglip_vision_model'": {"vision_config": {"model_type": "siglip_vision_model"}},
        "expected one layer and 'default'": {"vision_feature_select_strategy": "full"},
        f"seen '<image>' with id {config['image_token_index']}, expected 7": {"image_token_index": 7},
        "seen model_type 'llama'": {"model_type": "llama"},
    }
    for message, wrong in cases.items():
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            LlavaBackbone(str(tmp_path))
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer") as caught:
        LlavaBackbone(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image_projector_type": "qformer"}, "image_projector_type: seen 'qformer', expected 'mlp2x_gelu'"),
        ({"moe": moe_public()["moe"] | {"use_residual": True}}, "moe.use_residual: seen True, expected False"),
    ],
)
def test_what_moe_llava_does_not_do_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MoELlavaBackbone(config=moe_public() | more)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "moe_llava"])
def test_a_batch_without_pictures_gives_every_parameter_a_gradient(name: str) -> None:
    vlm = PlainVLM(MAKERS[name](), train=["*"])
    turns = [Turn("user", "What is two plus two?"), Turn("assistant", "four")]
    batch = batch_of(vlm, [Sample(id="t", key="t", turns=turns, answer=Answer("four"))])
    with torch.no_grad():
        expected = vlm.eval()(batch)["logits"]
    vlm.train()
    out = vlm(batch)
    torch.testing.assert_close(out["logits"], expected, rtol=1e-6, atol=1e-6)  # attention has other kernels with grad
    torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
    for key, parameter in vlm.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    seen = {key for key, p in vlm.named_parameters() if p.requires_grad and ("vision" in key or "visual" in key)}
    assert seen
    assert all(not vlm.get_parameter(key).grad.any() for key in seen)


def test_what_trains_is_fp32_over_a_base_in_bf16() -> None:
    vlm = TwinExpertVLM(LlavaBackbone(config=llava_config(), dtype="bfloat16"))
    module = SFT(vlm)
    module.trainer = L.Trainer(precision="bf16-mixed", accelerator="cpu", logger=False, enable_checkpointing=False)
    module.setup("fit")
    for name, parameter in vlm.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    with torch.autocast("cpu", torch.bfloat16):
        assert vlm(batch_of(vlm, [sample("grounding")]))["logits"].isfinite().all()
