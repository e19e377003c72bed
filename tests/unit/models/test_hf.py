"""Any backbone: small random models of many families, each in its public folder layout.

Bitwise: whole numbers.
"""

import copy
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AddedToken, AutoConfig, AutoImageProcessor
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
from ts_lightning.models.backbones.internvl import InternVLBackbone
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
        hand = TwinExpertVLM(LlavaBackbone(folder))
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
        if name == "llava":
            theirs = hand.backbone.normalise(b["pixel_values"])  # resized by torch: within two of 255 levels of PIL
            torch.testing.assert_close(a["pictures"]["pixel_values"], theirs, atol=2 / 255 / 0.26, rtol=0)


@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_a_processor_that_crops_is_given_squares(name: str, tmp_path: Path) -> None:
    """Bars at the left and right of a picture of 4 : 3 are in the pixels, and boxes count in the same square."""
    backbone = HFBackbone(str(make_folder(name, tmp_path)), codec="chatspot")
    picture = Image.new("RGB", (640, 480), "white")
    picture.paste("red", (0, 0, 78, 480))
    picture.paste("lime", (562, 0, 640, 480))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    one = sample("grounding", 1, (640, 480))
    one.image_bytes = [stream.getvalue()]
    pixels_3SS = backbone.encoder(one)["pictures"]["pixel_values"][0]
    mean, std = (torch.tensor(v).view(3, 1) for v in (backbone.pixel_mean, backbone.pixel_std))
    left, right = (pixels_3SS[:, 28, [column]] * std + mean for column in (2, 53))
    torch.testing.assert_close(torch.cat([left, right], 1), torch.tensor([[1.0, 0], [0, 1], [0, 0]]), atol=0.02, rtol=0)
    assert backbone.encoder.resized((640, 480)) == (56, 56)
    assert backbone.encoder.seen_picture(stream.getvalue()).getpixel((2, 28)) == (255, 0, 0)
    space = HFBackbone(str(tmp_path), codec="qwen2_5_vl").encoder.codec.space
    assert (space.frame, space.resized) == ("padded_square", (56, 56))


@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_a_saved_folder_pads_by_itself(name: str, tmp_path: Path) -> None:
    """Plain transformers makes our pixels of it, and here it is read as the folder that it came from."""
    backbone = HFBackbone(str(make_folder(name, tmp_path / "base")))
    backbone.save(tmp_path / "saved")
    one = sample("grounding", 1, (64, 48))
    expected = backbone.encoder(one)["pictures"]["pixel_values"]
    picture = Image.open(io.BytesIO(one.image_bytes[0]))
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "saved")(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, expected, atol=0, rtol=0)
    again = HFBackbone(str(tmp_path / "saved"))
    assert (again.encoder.pixel_mode, again.encoder.image_size) == ("pad", 56)
    assert torch.equal(again.encoder(one)["pictures"]["pixel_values"], expected)
    assert again.side_files == backbone.side_files
    if name == "llava":
        LlavaBackbone(str(tmp_path / "base")).save(tmp_path / "hand")
        stored = [json.loads((tmp_path / part / "preprocessor_config.json").read_text()) for part in ("saved", "hand")]
        assert stored[0] == stored[1]


def test_tiles_that_are_cut_are_refused(tmp_path: Path) -> None:
    folder = make_folder("llava_next", tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crop_size": {"height": 42, "width": 42}}))
    with pytest.raises(ValueError, match=r"seen crop_size 42 x 42 of tiles of 56, expected 56") as caught:
        HFBackbone(str(folder))
    assert "\n" not in str(caught.value)


# A photograph of 4032 x 3024 in blocks of 28, of at most 40 / 2 tokens: 84 x 84 * 20 = 15680 pixels, 5 x 3 blocks (GLM:
# the same, though its bound counts two frames).
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_photograph_fits_into_a_row(name: str, tmp_path: Path) -> None:
    folder = make_folder(name, tmp_path)
    path = folder / "preprocessor_config.json"
    bounds = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384}}
    path.write_text(json.dumps(json.loads(path.read_text()) | bounds))
    one = sample("grounding", 1, (4032, 3024))
    for given, size in (({"max_length": 40}, (140, 84)), ({"max_pixels": 28 * 28 * 12}, (112, 84))):
        backbone = HFBackbone(str(folder), **given)  # type: ignore[arg-type]
        texts, tensors = backbone.encoder.processed(one)
        assert texts[0].count(backbone.encoder.image_token) == size[0] // 28 * size[1] // 28
        assert tensors["image_grid_thw"].tolist() == [[1, size[1] // 14, size[0] // 14]]
        assert backbone.encoder.resized((4032, 3024)) == size
        stored = json.loads(backbone.side_files["preprocessor_config.json"])["size"]  # of what is saved
        blocks = (20 if "max_length" in given else 12) * (2 if name == "glm4v" else 1)
        assert stored == {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * blocks}
        if name == "qwen2_5_vl":  # boxes in pixels of the resized picture
            space: Any = backbone.encoder.codec.space
            assert space.resized((4032, 3024)) == size
    with pytest.raises(ValueError, match=r"max_pixels: seen 100, expected at least 784"):
        HFBackbone(str(folder), max_pixels=100)


def test_max_pixels_of_a_family_of_one_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_pixels: seen 1000, expected null"):
        HFBackbone(str(make_folder("llava", tmp_path)), max_pixels=1000)


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
        encoder.recent["last"] = (one.image_bytes, (["<image>"] * pictures, {}))  # a picture of one token
        one.turns = [Turn("user", f"<image>{breaks}" * pictures + "Q"), Turn("assistant", "A")]
        if pictures == 2:
            assert encoder.render(one, True)[0] == asked
        else:
            one.turns += [Turn("user", "R"), Turn("assistant", "B")]
            assert encoder.render(one)[0] == told


@pytest.mark.parametrize(("name", "kind"), [("qwen3_vl", HFBackbone), ("internvl", HFBackbone),
                                            ("internvl", InternVLBackbone)])  # fmt: skip
def test_the_loss_ends_with_the_mark_that_ends_an_answer(name: str, kind: Any, tmp_path: Path) -> None:
    """The line break behind it is the template's: written between turns, as the template does, and not learnt."""
    encoder = kind(str(make_folder(name, tmp_path))).encoder
    one = sample("understanding")
    one.turns = [Turn("user", "<image>Q"), Turn("assistant", "A"), Turn("user", "R"), Turn("assistant", "B")]
    row = encoder(one)
    trained = [encoder.tokenizer.decode(row["input_ids"][row["step_ids"] == step]) for step in range(2)]
    assert trained == ["A<|im_end|>", "B<|im_end|>"]
    behind = encoder.tokenizer.decode(row["input_ids"]).partition("Q<|im_end|>")[2]
    turn = "\n<|im_start|>assistant\n{}<|im_end|>"
    assert behind == f"{turn.format('A')}\n<|im_start|>user\nR<|im_end|>{turn.format('B')}"


def test_the_processor_runs_once_for_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text and its tensors, and every task's questions about the same pictures."""
    vlm = TwinExpertVLM(HFBackbone(str(make_folder("llava", tmp_path))))
    made = []
    of_pictures = HFEncoder.of_pictures
    monkeypatch.setattr(HFEncoder, "of_pictures", lambda self, *given: made.append(1) or of_pictures(self, *given))
    one, other = sample("grounding"), sample("understanding")
    vlm.encode(one)
    assert len(made) == 1
    other.image_bytes = one.image_bytes
    vlm.encode(other)
    assert len(made) == 1
    assert copy.deepcopy(vlm.encoder).recent == {}  # no pictures travel


def test_a_plain_string_is_a_folder(tmp_path: Path) -> None:
    folder = make_folder("internvl", tmp_path)
    vlm = TwinExpertVLM(str(folder))
    assert isinstance(vlm.backbone, HFBackbone)
    text = vlm.generate(batch_of(vlm, [sample("grounding")], True, "left"), 3)
    assert len(text) == 1


def test_a_plain_string_in_16_bits_is_loaded_in_fp32_and_says_so(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = make_folder("llava", tmp_path)
    TwinExpertVLM(str(folder))
    assert not [one for one in recwarn if "backbone:" in str(one.message)]
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    config["text_config"]["dtype"] = "bfloat16"  # where some families have it
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="loaded in float32, twice .* its bfloat16, .* dtype: bfloat16 keeps"):
        vlm = TwinExpertVLM(str(folder))
    assert vlm.backbone.embedding.weight.dtype == torch.float32


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
