"""The certificate against another engine: what is compared, and what is said where it differs."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.models.test_backbones import qwen_config, sample
from ts_lightning.data.sample import Turn
from ts_lightning.grounding.regions import Region
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.reports import parity
from ts_lightning.reports.parity import (
    Told,
    certify_against,
    compared,
    differing,
    first_difference,
    first_differing_layer,
    messages_of,
    own_answers,
)


@pytest.fixture(scope="module")
def vlm() -> PlainVLM:
    return PlainVLM(QwenVLBackbone(config=qwen_config(), codec="scout"), train=[]).eval()


def test_boxes_in_order_and_log_probabilities_up_to_the_first_difference(vlm: PlainVLM) -> None:
    parts = [Region.from_box(box) for box in ((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.25, 0.5))]
    first, second = (vlm.codec.format([part], (80, 60)) for part in parts)
    own = [Told(f"{first} {first}", ["a", "b"], [-1.0, -2.0], [1, 2]), Told("no", ["n", "o"], [-1.0, -3.0], [3])]
    theirs = [Told(f"{second}", ["c", "b"], [-1.5, -9.0], [1, 2]), Told("no", ["n", "o"], [-1.0, -3.5], [4])]
    found = compared(vlm, [sample("grounding"), sample("grounding")], own, theirs)
    assert (found["equal_answers"], found["equal_prompts"], found["boxes"]) == (0.5, 0.5, 2)
    assert found["mean_iou"] == pytest.approx((0.5 + 0.0) / 2)  # the second box is missing
    assert (found["tokens"], found["max_logp_difference"]) == (3, 0.5)
    assert found["mean_logp_difference"] == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    assert differing(own[0], theirs[0]) == [0.5]
    assert found["differing"] == [{"question": "grounding0", "token": 0, "own": "a", "theirs": "c"}]


def test_log_probabilities_count_up_to_the_first_token_that_is_not_shared() -> None:
    """Behind it the two have read other texts, and nothing is to be compared."""
    mine = Told("one two six", ["one", " two", " six", " x"], [-1.0, -2.0, -3.0, -4.0])
    other = Told("one two ten", ["one", " two", " ten", " x"], [-1.5, -2.0, -3.25, -9.0])
    assert differing(mine, other) == [0.5, 0.0, 0.25]
    assert first_difference(mine, other) == {"token": 2, "own": " six", "theirs": " ten"}
    shorter = Told("one two", ["one", " two"], [-1.5, -2.5])
    assert differing(mine, shorter) == [0.5, 0.5]
    assert first_difference(mine, shorter) == {"token": None}
    assert differing(mine, Told("one two six", [], [])) == []  # a server that tells no log-probabilities


def test_turns_in_the_form_of_openai(vlm: PlainVLM) -> None:
    (message,) = messages_of(vlm, sample("grounding"))
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert message["content"][1]["text"] == "Where is the star? Answer with a box."


def test_earlier_answers_are_written_as_the_trainer_writes_them() -> None:
    vlm = PlainVLM(QwenVLBackbone(config=qwen_config(), codec="qwen3_vl"), train=[])
    one = sample("grounding")
    one.regions[0].phrase = "star"
    question, answer = one.turns
    one.turns = [question, replace(answer, text="{region:0}"), Turn("user", "And its tip {region:0}?"), answer]
    _, second, third = (message["content"] for message in messages_of(vlm, one))
    assert '"label": "star"' in second
    assert '"label"' not in third[0]["text"]  # what is given is no mention
    text, _ = vlm.encoder.render(one, for_generation=True)
    assert second in text
    assert third[0]["text"] in text


def test_tokens_of_a_skill_are_text_in_the_turns_of_another_task() -> None:
    vlm = TwinExpertVLM(QwenVLBackbone(config=qwen_config()), new_tokens=["<part>"])
    one = sample("understanding")
    one.turns[0].text = "What does <part> mean?"
    (message,) = messages_of(vlm, one)
    assert message["content"] == [{"type": "text", "text": "What does <part> mean?"}]


def test_another_folder_is_opened_where_the_model_lies(
    vlm: PlainVLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plain folder is in 16 bits on a GPU, and in 32 where it is moved there."""

    def opened(*given: object) -> None:
        raise ValueError(*given)

    monkeypatch.setattr(parity, "load", opened)
    with pytest.raises(ValueError, match="other") as caught:
        certify_against(vlm, "other", [sample("grounding")], 4, 1e-5, 0.999, tmp_path)
    assert caught.value.args == ("other", "cpu")


def test_the_first_layer_that_differs(vlm: PlainVLM) -> None:
    other = copy.deepcopy(vlm)
    assert first_differing_layer(vlm, other, sample("grounding"), 0.0) is None
    with torch.no_grad():
        other.backbone.layers[1].mlp.down_proj.weight += 0.1
    assert first_differing_layer(vlm, other, sample("grounding"), 1e-6) == "layer 1"


def test_a_folder_is_certified_and_one_of_other_weights_is_not(vlm: PlainVLM, tmp_path: Path) -> None:
    import json

    from ts_lightning.runs.class_paths import plain

    for name in ("same", "other"):
        folder = tmp_path / name
        folder.mkdir()
        model = copy.deepcopy(vlm)
        if name == "other":
            with torch.no_grad():
                model.backbone.layers[0].mlp.down_proj.weight += 0.5
        model.backbone.save(folder)
        spec = plain(vlm.backbone, "backbone")
        spec["init_args"] = {"pretrained": None, "codec": "scout"}
        (folder / "ts_lightning.json").write_text(json.dumps({"backbone": spec, "max_new_tokens": 4}))
    samples = [sample("grounding", seed=i) for i in range(3)]
    good = certify_against(vlm, str(tmp_path / "same"), samples, 4, 1e-5, 0.999, tmp_path)
    assert good["passed"]
    assert (good["equal_answers"], good["first_differing_layer"], good["why"]) == (1.0, None, None)
    bad = certify_against(vlm, str(tmp_path / "other"), samples, 4, 1e-5, 0.999, tmp_path)
    assert not bad["passed"]
    assert bad["first_differing_layer"] == "layer 0"
    assert bad["why"].startswith("weights, dtype or code of the language model")


def test_own_answers_do_not_depend_on_the_batch(vlm: PlainVLM) -> None:
    samples = [sample("grounding", (80, 60)), sample("understanding", (40, 90), 1)]
    together, alone = own_answers(vlm, samples, 6, 2), own_answers(vlm, samples, 6, 1)
    assert [told.text for told in together] == [told.text for told in alone]
    for a, b in zip(together, alone, strict=True):
        assert len(a.tokens) == len(a.logp)
        assert a.logp == pytest.approx(b.logp, abs=1e-5)
