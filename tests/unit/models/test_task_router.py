"""The task router: int8 by hand, its prompts, the shipped one against its bars, and who uses it."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integration import tiny
from tools.experiments import router_wordings, train_task_router
from tools.experiments.task_router import prompts as router_prompts
from tools.experiments.task_router import training
from tools.experiments.task_router.prompts import FREE, held_out, prompts
from tools.experiments.task_router.training import accuracy, confusion, milliseconds, train_router
from ts_lightning.data.collate import collate
from ts_lightning.grounding.prompts import GROUNDING_TEMPLATES, carries_grounding_instruction, templates
from ts_lightning.models import PlainVLM, TaskRouter, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.task_router import FILES, LENGTH, SHIPPED, Int8Embedding, Int8Linear, clean, to_int8
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vision_layers": 1, "num_heads": 2}
REAL = Path(__file__).parents[4] / "shared/real"
PAIRS = [*((f"where is thing {i}? give a box", "grounding") for i in range(8))]
PAIRS += [(f"what color is thing {i}?", "understanding") for i in range(8)]


@pytest.fixture(scope="module")
def shipped() -> TaskRouter:
    return TaskRouter.load()


def test_int8_by_hand() -> None:
    # a row from -1 to 1.55: scale 2.55 / 255 = 0.01, zero point -128 + 100 = -28
    values, scale, zero_point = to_int8(torch.tensor([[-1.0, 0.0, 1.55], [0.51, 1.02, 2.55]]))
    assert (values.dtype, zero_point.dtype) == (torch.int8, torch.int8)
    torch.testing.assert_close(scale, torch.tensor([0.01, 0.01]))
    assert zero_point.tolist() == [-28, -128]
    assert values.tolist() == [[-128, -28, 127], [-77, -26, 127]]


def test_int8_layers_are_their_dequantized_matrix() -> None:
    torch.manual_seed(0)
    linear, table, x = nn.Linear(7, 5), nn.Embedding(11, 6), torch.randn(4, 7)
    layer = Int8Linear(linear)
    weight = (layer.weight.float() - layer.zero_point[:, None]) * layer.scale[:, None]
    torch.testing.assert_close(layer(x), x @ weight.T + linear.bias, atol=1e-5, rtol=1e-5)
    assert ((weight - linear.weight).abs() <= layer.scale[:, None] * 0.51 + 1e-7).all()
    rows = Int8Embedding(table)(torch.arange(11))
    assert (rows - table.weight).abs().max() <= (table.weight.amax() - table.weight.amin()) / 255


def test_held_out_templates_are_in_no_training_prompt() -> None:
    trained, held = (
        {t for lines in router_prompts._lines().values() for t in lines if held_out(t) == h} for h in (0, 1)
    )
    assert trained.isdisjoint(held)
    assert min(len(trained), len(held)) > 500
    pairs = list(prompts(400, 3, held=True))
    assert [task for _, task in pairs] == ["understanding", "grounding"] * 200
    assert pairs == list(prompts(400, 3, held=True))
    bare = {
        a.lower().rstrip("?.") for (a, _), (b, _) in zip(pairs[::2], pairs[1::2], strict=True) if a.rstrip("?.") in b
    }
    assert len(bare) > 10  # the same question, with its instruction and without it


def test_bars_of_the_shipped_router(shipped: TaskRouter) -> None:
    counts, wrong = confusion(shipped, list(prompts(2000, 1, held=True)))  # the tool asks 10,000
    assert accuracy(counts) >= 0.94, wrong  # lines of one or two words can not be told from others
    counts, wrong = confusion(shipped, FREE)
    assert accuracy(counts) >= 0.9, wrong
    median, slow = milliseconds(shipped, [prompt for prompt, _ in prompts(5, 2, held=True)])
    assert 0 < median <= slow  # the tool prints them; a busy machine must not fail this
    assert sum((SHIPPED / name).stat().st_size for name in FILES) < 2 * 2**20
    assert {p.dtype for n, p in shipped.bert.named_buffers() if n.endswith(".weight")} == {torch.int8}


def test_wordings_that_people_wrote(shipped: TaskRouter) -> None:
    """Written before the templates of the training were read."""
    asked = router_wordings.written()
    assert [task for _, task in asked].count("grounding") == len(asked) / 2 == 50
    counts, wrong = confusion(shipped, asked)
    assert accuracy(counts) >= 0.95, wrong


def test_a_prompt_that_says_nothing_is_understanding(shipped: TaskRouter) -> None:
    said = shipped.probabilities(["", " \n", "<image>", "?!", "Where is the dog?"])
    assert said[:, 0].tolist()[:4] == [1, 1, 1, 1]
    assert said.sum(1).tolist() == pytest.approx([1] * 5)
    assert said[4, 0] < 0.5


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the question files of ../shared/real")
def test_wordings_that_came_after_the_router(shipped: TaskRouter) -> None:
    sets = router_wordings.real(REAL)
    asked = router_wordings.blind(sets)
    assert len(set(asked)) == 60 + 124
    assert not {prompt for prompt, _ in asked} & {prompt for prompt, _ in router_wordings.unmade(sets)}
    counts, wrong = confusion(shipped, asked)
    assert accuracy(counts) >= 0.9, wrong


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the question files of ../shared/real")
def test_bar_of_the_wordings_that_no_template_made(shipped: TaskRouter) -> None:
    asked = router_wordings.unmade(router_wordings.real(REAL))
    assert len(asked) == 300
    made = {clean(prompt).lower() for prompt, _ in prompts(20_000, 0, held=False)}
    assert not made & {clean(prompt).lower() for prompt, _ in asked}  # the tool asks all that it was trained on
    counts, wrong = confusion(shipped, asked)
    assert accuracy(counts) >= 0.97, wrong
    for task in ("understanding", "grounding"):
        right = counts[task, task] / sum(n for (true, _), n in counts.items() if true == task)
        assert right >= 0.95, (task, wrong)


def test_a_region_in_any_notation_is_one_word() -> None:
    for region in (
        "[1, 22, 333, 4]",
        "(0.5, 0.25)",
        "[[10,20,30,40]]",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        "{region:1}",
    ):
        assert clean(f"What is {region}?").replace(" ", "") == "Whatis[REGION]?", region
    assert (
        clean("Answer with [x1, y1, x2, y2] (2 words), item [3]") == "Answer with [x1, y1, x2, y2] (2 words), item [3]"
    )
    assert clean("a <b> or x < 3 and <|image_pad|>c") == "a   or x < 3 and  c"


def test_expressions_stand_alone_and_in_place_of_things() -> None:
    pairs = list(prompts(2000, 3, False, ["zorp left of blue"]))
    alone = [task for prompt, task in pairs if prompt.strip("!?.") == "zorp left of blue"]
    assert len(alone) > 20
    assert set(alone) == {"grounding"}
    assert {task for prompt, task in pairs if "zorp left of blue" in prompt} == {"understanding", "grounding"}


def test_the_shipped_router_knows_the_own_templates(shipped: TaskRouter) -> None:
    for name in ("localization", "rec", "scout", "caption_grounded", "caption", "toy_region"):
        for template in templates(name):
            prompt = template.format(phrase="the red cup", question="What is it?", what="color", region="{region:0}")
            expected = "grounding" if name in GROUNDING_TEMPLATES else "understanding"
            assert shipped(prompt) == expected, prompt
            assert carries_grounding_instruction(prompt) == (expected == "grounding")


def test_odd_prompts(shipped: TaskRouter) -> None:
    assert clean("<image>\nWhat is {region:12} near #3?") == " \nWhat is [REGION] near [REGION]?"
    for prompt in ("", " ", "\0", "word " * 5000, "\u4f60\u597d", "?" * 1000):
        assert shipped(prompt) in shipped.tasks
    assert shipped.read(["word " * 5000])[0].shape == (1, LENGTH)
    assert shipped("Describe the scene. " * 100 + "Answer with a box.") == "grounding"
    together = shipped.probabilities(["What color is it?", "Where is the red cup? Answer with a box."])
    alone = shipped.probabilities(["What color is it?"])
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)


def test_trains_saves_and_loads(tmp_path: Path) -> None:
    pairs = [*PAIRS, *((f"read line {i}", "reading") for i in range(8))]
    router = train_router(pairs, steps=60, batch_size=12)
    assert router.tasks == ("understanding", "grounding", "reading")
    assert accuracy(confusion(router, pairs)[0]) == 1.0
    router.save(tmp_path)
    again = TaskRouter.load(tmp_path)
    torch.testing.assert_close(
        again.probabilities(["read line 3"]), router.probabilities(["read line 3"]), rtol=1e-6, atol=1e-6
    )
    assert pickle.loads(pickle.dumps(again))("read line 3") == "reading"  # data workers get it
    (tmp_path / FILES[0]).write_bytes(b"\x80\x04 nothing of ours")
    with pytest.raises(ValueError, match=r"task router .*expected router.safetensors"):
        TaskRouter.load(tmp_path)
    with pytest.raises(ValueError, match=r"task router .*No such file"):
        TaskRouter.load(tmp_path / "absent")


def test_training_goes_on_from_a_saved_router(shipped: TaskRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [prompt for prompt, _ in PAIRS]
    again = shipped.floating()
    assert next(again.bert.parameters()).dtype == torch.float32
    torch.testing.assert_close(again.quantized().probabilities(asked), shipped.probabilities(asked))
    monkeypatch.setattr(training, "KEPT_EVERY", 8)
    kept: list[TaskRouter] = []
    train_router(PAIRS, 16, 8, lr=1e-4, keep=kept.append, start=shipped)
    assert len(kept) == 2
    alone = train_router(PAIRS, 8, 8, lr=1e-4, start=shipped)  # what was kept at step 8
    assert torch.equal(kept[0].probabilities(asked), alone.probabilities(asked))  # the same steps in the same order
    assert accuracy(confusion(kept[1], PAIRS)[0]) == 1.0


def test_rows_take_the_task_that_is_asked_for(shipped: TaskRouter, tmp_path: Path) -> None:
    vlm = TwinExpertVLM(TinyBackbone(pretrained=None, **SIZES)).eval()
    samples = [*grounding_samples("val", 4), *understanding_samples("val", 4)]

    def tasks(policy: str, for_generation: bool = True) -> list[int]:
        encode = pickle.loads(pickle.dumps(vlm.encoder_for(policy)))  # data workers get it
        return [encode(sample, for_generation)["task"] for sample in samples]

    given = [1] * 4 + [0] * 4
    assert tasks("given") == tasks("auto") == given
    samples[0].task, samples[4].task = "understanding", "grounding"  # the records lie; the prompts do not
    assert tasks("auto") == given
    lies = [0, 1, 1, 1, 1, 0, 0, 0]
    assert tasks("auto", for_generation=False) == lies
    for task, expected in (("understanding", 0), ("grounding", 1)):
        assert tasks(task) == [expected] * 8
        assert tasks(task, for_generation=False) == lies
    assert tasks("given") == lies
    assert vlm.encode(samples[0], True, task="grounding")["task"] == 1
    with pytest.raises(ValueError, match="seen task 'reading', expected understanding, grounding"):
        vlm.encoder_for("reading")
    prompts_of = collate([vlm.encoder_for("auto")(s, True) for s in samples], vlm.pad_id, "left")
    base = PlainVLM(TinyBackbone(pretrained=None, **SIZES), train=()).eval()
    assert vlm.generate(prompts_of, 4)[4:] == base.generate(prompts_of, 4)[4:]
    vlm.save_pretrained(tmp_path)
    again = TwinExpertVLM.from_pretrained(tmp_path, TinyBackbone(pretrained=None, **SIZES))
    assert again.task_router is not None
    assert again.task_router.tasks == shipped.tasks


def test_of_two_routers_the_one_that_knows_more_stays(shipped: TaskRouter, tmp_path: Path) -> None:
    wide = train_router([*PAIRS, *((f"read line {i}", "reading") for i in range(8))], steps=20)
    for skill, router in (("grounding", shipped), ("reading", wide)):
        vlm = TwinExpertVLM(TinyBackbone(pretrained=None, **SIZES), package=skill)
        vlm.task_router = router
        vlm.save_pretrained(tmp_path / skill)
    for first, second in (("grounding", "reading"), ("reading", "grounding")):
        both = TwinExpertVLM.from_pretrained(tmp_path / first, TinyBackbone(pretrained=None, **SIZES))
        both.install(tmp_path / second)
        both.encoder_for("auto")
        assert both.router.tasks == wide.tasks
    both.task_router = shipped
    with pytest.raises(ValueError, match="router: seen understanding, grounding, expected reading among its tasks"):
        both.encoder_for("auto")
    both.save_pretrained(tmp_path / "alone", name="reading")
    assert not (tmp_path / "alone/task_router").exists()  # it could not choose this package


def test_the_tool_measures_texts_that_were_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = tiny.write(tmp_path / "train", ["rec", "scout"])
    asked = tiny.write(tmp_path / "val", ["rec", "colour", "colour"], name="val")
    few = ["--paraphrases", "10", "--held-out", "10", "--out", str(tmp_path / "out")]
    shards = ["--shards", trained, "--held-out-shards", asked]
    monkeypatch.setattr(sys, "argv", ["train_task_router", "--router", str(SHIPPED), *few, *shards])
    assert train_task_router.main() == 0
    assert "held-out shards: 2 of 3 prompts have a text that was not trained on" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/measured.json").read_text())
    assert found["held-out shards"]["confusion"] == {"understanding -> understanding": 2}
    assert found["shards"]["prompts"] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["measured.json"]  # nothing was trained
