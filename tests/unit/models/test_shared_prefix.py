"""The prompt read once a group: the same log-probabilities and gradients as the prompt repeated for each completion."""

import pytest
import torch
from torch import Tensor

from tests.unit.models.test_backbones import qwen_config
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Answer, Sample, SampleImage, Turn
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.generate import banned_tokens, prefill
from ts_lightning.models.packing import pad_left
from ts_lightning.models.vlm import VLM
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.rl import log_probs
from ts_lightning.rl.log_probs import group_log_probs, tempered

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vision_layers": 1, "num_heads": 2}


def tiny() -> TinyBackbone:
    return TinyBackbone(pretrained=None, codec="mirg", codec_grid="100", **SIZES)


def twin() -> VLM:
    torch.manual_seed(0)
    return TwinExpertVLM(tiny(), every=1, train_token_rows=["codec"])


def qwen() -> VLM:
    return PlainVLM(QwenVLBackbone(config=qwen_config()))


VLMS = {"twin": twin, "plain": lambda: PlainVLM(tiny()), "lora": lambda: LoRAVLM(tiny(), rank=4), "qwen": qwen}


def prompt(number: int, images: int) -> Sample:
    data = [jpeg(render(sample_scene(10 * number + i))) for i in range(images)]
    sizes = [sample_scene(10 * number + i) for i in range(images)]
    return Sample(
        id=f"p{number}",
        key=f"p{number}",
        task="grounding",
        images=[SampleImage("x.jpg", scene.width, scene.height) for scene in sizes],
        turns=[Turn("user", "<image>\n" * images + "Where is it? " * (number + 1)), Turn("assistant", "")],
        answer=Answer(),
        image_bytes=data,
    )


def repeated(vlm: VLM, batch: dict, completions: list, temperature: float) -> Tensor:
    """The log-probabilities with every prompt repeated, one row and one forward a completion."""
    rows = []
    for b, group in enumerate(completions):
        kept = batch["valid"][b]
        if "image_grid" in batch:
            starts = [0, *batch["images_per_row"].cumsum(0).tolist()]
            areas = batch["image_grid"].prod(1)
            grid = batch["image_grid"][starts[b] : starts[b + 1]]
            first = int(areas[: starts[b]].sum())
            pictures = {"pixel_values": batch["pixel_values"][first : first + int(grid.prod(1).sum())]}
            pictures["image_grid"] = grid
        else:
            starts = [0, *batch["images_per_row"].cumsum(0).tolist()]
            pictures = {"pixel_values": batch["pixel_values"][starts[b] : starts[b + 1]]}
        for tokens in group:
            ids = torch.cat([batch["input_ids"][b][kept], torch.tensor(tokens)])[None]
            positions = batch["position_ids"][..., b, :][..., kept]
            more = positions.max() + 1 + torch.arange(len(tokens))
            positions = torch.cat([positions, more.expand(*positions.shape[:-1], -1)], -1).unsqueeze(-2)
            row = {"input_ids": ids, "valid": torch.ones_like(ids, dtype=torch.bool), "position_ids": positions}
            row |= {"task": batch["task"][b : b + 1], **pictures}
            with vlm.routing(row) as context:
                hidden = vlm.backbone.decoder(
                    **vlm.decoder_inputs(row, context), position_ids=positions, use_cache=False
                ).last_hidden_state[0]
            before = hidden[int(kept.sum()) - 1 : -1]
            logits = vlm.logits(before, row["task"].expand(len(tokens)), context)
            logp = tempered(logits, temperature, banned_tokens(vlm))
            rows.append(logp.gather(1, torch.tensor(tokens)[:, None]).squeeze(1))
    longest = max(map(len, rows))
    return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])


def test_no_temperature_is_too_low() -> None:
    """1e-38, and 1e-50, which is 0 in fp32: the likeliest token, not NaN."""
    for temperature in (1e-38, 1e-50):
        assert tempered(torch.tensor([[1.0, 90.0, 2.0]]), temperature, (2,)).exp().tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("images", [[0, 0], [1, 1], [3, 2]], ids=["text", "one", "several"])
@pytest.mark.parametrize("kind", VLMS)
def test_equal_to_the_repeated_prompt(kind: str, images: list[int]) -> None:
    vlm = VLMS[kind]().eval()
    rows = [vlm.encode(prompt(i, count), for_generation=True) for i, count in enumerate(images)]
    completions = [[[30, 31, 32, 33, 34], [40], [50, 51]], [[60, 61, 62], [70, 71, 72, 73], [40]]]
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for side in ("right", "left"):
        batch = collate(rows, vlm.pad_id, side)
        for score in (
            lambda b: group_log_probs(vlm, b, completions, 0.7).logp_NT,
            lambda b: repeated(vlm, b, completions, 0.7),
        ):
            vlm.zero_grad()
            logp_NT = score(batch)
            (logp_NT * weights).sum().backward()
            grads = {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}
            results.append((logp_NT.detach(), grads))
    expected, expected_grads = results[1]
    assert expected.abs().max() > 1
    for logp, grads in results:
        torch.testing.assert_close(logp, expected, rtol=0, atol=1e-5)
        largest = max(g.abs().max() for g in expected_grads.values())
        for name, grad in expected_grads.items():
            other = grads.get(name, torch.zeros_like(grad))
            torch.testing.assert_close(other, grad, rtol=1e-4, atol=float(1e-5 * largest), msg=name)


@pytest.mark.parametrize("kind", VLMS)
def test_logits_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = VLMS[kind]().eval()
    batch = collate([vlm.encode(prompt(i, i), for_generation=True) for i in range(2)], vlm.pad_id)
    completions = [[[30, 31, 32, 33, 34], [40]], [[60, 61, 62], [70, 71]]]
    found = []
    for size in (1024, 3):
        monkeypatch.setattr(log_probs, "CHUNK", size)
        vlm.zero_grad()
        scores = group_log_probs(vlm, batch, completions)
        scores.logp_NT.square().sum().backward()
        grads = [p.grad for p in vlm.parameters() if p.grad is not None]
        found.append([scores.logp_NT.detach(), scores.entropy_NT, *(grad.clone() for grad in grads)])
    largest = max(float(whole.abs().max()) for whole in found[0])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-6 * largest)


def test_a_token_outside_of_its_completion_changes_nothing() -> None:
    vlm = twin().eval()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    one, other = ([[[30, 31], [40, 41, 42]]], [[[30, 31], [44, 45, 46]]])
    with torch.no_grad():
        first, second = (group_log_probs(vlm, batch, c).logp_NT for c in (one, other))
    # not bitwise: a changed token may go to another expert, whose products then have other rows
    torch.testing.assert_close(first[0], second[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(first[1], second[1], rtol=1e-3)


def test_log_probs_are_those_of_decoding() -> None:
    vlm = twin().eval()
    rows = [vlm.encode(prompt(i, 2), for_generation=True) for i in range(2)]
    batch = collate(rows, vlm.pad_id)
    completions = [[[30, 31, 32], [40, 41, 42]], [[50, 51, 52], [60, 61, 62]]]
    with torch.no_grad():
        packed = group_log_probs(vlm, batch, completions, 1.3)
        state = prefill(vlm, pad_left(batch)).expand(2)
        steps = []
        for t in range(3):
            logp = tempered(state.logits_BV, 1.3, banned_tokens(vlm))
            tokens = torch.tensor([c[t] for group in completions for c in group])
            steps.append(logp.gather(1, tokens[:, None]).squeeze(1))
            state.step(tokens)
    torch.testing.assert_close(packed.logp_NT, torch.stack(steps, 1), rtol=0, atol=1e-5)
    assert (packed.entropy_NT > 0).all()


def test_pad_left_moves_rows_and_nothing_else() -> None:
    vlm = twin()
    rows = [vlm.encode(prompt(i, 1), for_generation=True) for i in (0, 2)]
    moved, expected = pad_left(collate(rows, vlm.pad_id)), collate(rows, vlm.pad_id, "left")
    for name in ("input_ids", "valid", "position_ids", "step_ids"):
        assert torch.equal(moved[name], expected[name]), name  # whole numbers
