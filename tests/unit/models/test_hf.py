"""Any backbone: small random models of many families, each in its public folder layout.

Bitwise: whole numbers.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from tests.unit.models import hf_table
from tests.unit.models.hf_checks import CHECKS, Case, batch_of, sample
from tests.unit.models.hf_families import FAILING, FAMILIES, ONEVISION, make_folder
from ts_lightning.data.sample import Turn
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.hf_processor import HFEncoder, load_processor
from ts_lightning.models.backbones.hf_template import derive, renderer
from ts_lightning.models.backbones.hub_layout import SHIPPED, read_tokenizer
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    case = Case(name, make_folder(name, tmp_path))
    for check in CHECKS.values():
        check(case)
    assert hf_table.row(name, case) in hf_table.stored(), "python -m tests.unit.models.hf_table"


def test_families_that_are_refused_say_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=FAILING["idefics2"]):
        HFBackbone(str(make_folder("idefics2", tmp_path)))
    for name, reason in FAILING.items():
        assert hf_table.failing(name) in hf_table.stored()
        if "torchvision" in reason:
            kind = IMAGE_PROCESSOR_MAPPING_NAMES[name]["torchvision"]
            (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
            with pytest.raises(ValueError, match="needs torchvision"):
                load_processor(tmp_path, AutoConfig.for_model(name), None)
    assert len(hf_table.stored()) == 2 + len(hf_table.NAMES)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_the_hand_written_backbones_give_the_same_rows(name: str, tmp_path: Path) -> None:
    folder = str(make_folder(name, tmp_path))
    ours = TwinExpertVLM(HFBackbone(folder))
    if name == "llava":
        hand = TwinExpertVLM(LlavaBackbone(folder, pixel_mode="stretch"))
        hand.encoder.template.system = "<s>"  # the folder's own template has no system turn
        ours.encoder.template.system = "<s>"
    else:
        hand = TwinExpertVLM(QwenVLBackbone(folder, min_pixels=56 * 56, max_pixels=28 * 28 * 16))
    for one in (sample("grounding"), sample("understanding", 2)):
        one.turns[0].text = one.turns[0].text.replace("<image>", "<image>\n")  # as records are written
        a, b = ours.encode(one), hand.encode(one)
        assert a["input_ids"].tolist() == b["input_ids"].tolist()
        assert a["step_ids"].tolist() == b["step_ids"].tolist()
        if "position_ids" in b:
            assert torch.equal(a["position_ids"], b["position_ids"])


LLAMA3 = (  # llava-hf/llama3-llava-next-8b-hf
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] + '<|eot_id|>' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL_16 = (  # llava-hf/llava-v1.6-mistral-7b-hf, older: <\\s> is no token
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{' [/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + '<\\\\s> '}}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "marks", "end", "asked", "told"),
    [
        (
            ONEVISION, ("<|im_start|>", "<|im_end|>"), "<|im_end|>",
            "<|im_start|>user <image><image>\nQ<|im_end|><|im_start|>assistant\n",
            "<|im_start|>user <image>\nQ<|im_end|><|im_start|>assistant \nA<|im_end|>"
            "<|im_start|>user \nR<|im_end|><|im_start|>assistant\nB<|im_end|>",
        ),
        (
            LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\n<image><image>\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n\nA<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n\nR<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n\nB<|eot_id|>",
        ),
        (
            MISTRAL_16, (), "</s>",
            "[INST] <image>\n<image>\nQ [/INST]",
            "[INST] <image>\nQ [/INST] A</s>[INST] R [/INST] B</s>",
        ),
    ],
)  # fmt: skip
def test_published_templates_that_write_a_line_break_before_the_text(
    source: str, marks: tuple[str, ...], end: str, asked: str, told: str
) -> None:
    tokenizer = read_tokenizer(SHIPPED)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    chat = derive(renderer(tokenizer, source), "<image>", special, {end}, "</s>")
    encoder = HFEncoder(tokenizer, "<image>", 0, 0, 2048, template=chat.template, mark=chat.mark,
                        behind_pictures=chat.behind, processor=SimpleNamespace(image_token="<image>"))  # fmt: skip
    for pictures, breaks in ((1, ""), (1, "\n"), (2, ""), (2, "\n")):
        one = sample("understanding", pictures)
        vars(encoder)["_recent"] = (one.image_bytes, (["<image>"] * pictures, {}))  # a picture of one token
        one.turns = [Turn("user", f"<image>{breaks}" * pictures + "Q"), Turn("assistant", "A")]
        if pictures == 2:
            assert encoder.render(one, True)[0] == asked
        else:
            one.turns += [Turn("user", "R"), Turn("assistant", "B")]
            assert encoder.render(one)[0] == told


def test_a_plain_string_is_a_folder(tmp_path: Path) -> None:
    folder = make_folder("internvl", tmp_path)
    vlm = TwinExpertVLM(str(folder))
    assert isinstance(vlm.backbone, HFBackbone)
    text = vlm.generate(batch_of(vlm, [sample("grounding")], True, "left"), 3)
    assert len(text) == 1


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (lambda f: (f / "chat_template.jinja").write_text("{{ 1 / 0 }}"), "chat template: can't be rendered: division"),
        (
            lambda f: (f / "chat_template.jinja").write_text("hello"),
            "chat template: seen one that does not write every",
        ),
        (lambda f: (f / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}"), "chat template: "),
        (lambda f: (f / "preprocessor_config.json").unlink(), "the processor of 'qwen2_vl' can't be made"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "pretrained: "),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "bert"})), "seen model_type 'bert'"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "none"})), "seen model_type 'none'"),
    ],
)
def test_a_bad_folder_is_refused_in_one_line(spoil: Any, seen: str, tmp_path: Path) -> None:
    folder = make_folder("qwen2_vl", tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=seen) as caught:
        PlainVLM(str(folder))
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder)
