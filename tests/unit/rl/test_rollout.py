"""Rollouts: scores and advantages, diagnostics, the reference policy, ranks that stop together.

Bitwise: the same weights in the same place on the same rows.
"""

import copy
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from tests import ranks
from tests.unit.models.test_shared_prefix import VLMS, prompt, tiny, twin
from ts_lightning.data.collate import collate
from ts_lightning.models import LoRAVLM, TwinExpertVLM
from ts_lightning.models.packing import PAD_BRANCH, pack_groups
from ts_lightning.models.sharding import all_ranks_done, local, shard
from ts_lightning.models.vlm import VLM
from ts_lightning.rl import ReferencePolicy, RolloutCallback
from ts_lightning.rl.diagnostics import Watch, rollout_figures, sum_over_ranks
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.sampling import Sampled, sample_groups
from ts_lightning.training import GRPO, BaseModule


def batch_of(vlm: VLM, images: list[int], task: str = "grounding") -> dict:
    samples = [prompt(i, count) for i, count in enumerate(images)]
    for sample in samples:
        sample.task = task
    return collate([vlm.encode(sample, for_generation=True) for sample in samples], vlm.pad_id)


def test_rewards_are_summed_and_advantages_are_of_the_group() -> None:
    vlm = twin()
    callback = RolloutCallback(num_generations=2, rewards={"format": "ts_lightning.rl.format_reward"})
    batch = batch_of(vlm, [0, 0])
    texts = [["<think>a</think><answer>b</answer>", "no"], ["no", ""]]
    tokens = [[[*vlm.tokenizer(text)["input_ids"], vlm.tokenizer.eos_token_id] for text in group] for group in texts]
    longest = max(len(t) for group in tokens for t in group)
    rollout = callback.scored(vlm, batch["samples"], Sampled(tokens, torch.zeros(4, longest), [[True, True]] * 2))
    assert [[c.text for c in group] for group in rollout.completions] == texts
    assert rollout.total.tolist() == [1, 0, 0, 0]
    root = 0.5**0.5
    advantages = GRPO(vlm).algorithm.advantages(rollout.total.view(2, 2)).flatten()
    assert advantages.tolist() == pytest.approx([root, -root, 0, 0])  # every completion alike: nothing to learn
    assert rollout.mask_NS.sum(1).tolist() == [len(t) for group in tokens for t in group]
    figures = sum_over_ranks(rollout_figures([batch], [rollout]))
    assert figures["zero_variance"] == 0.5
    assert figures["reward/format"] == figures["reward/total"] == figures["reward_by_task/grounding"] == 0.25
    assert figures["cut_off"] == 0
    batch["row_valid"][1] = False  # a stand-in: the loss leaves it out, and so do the figures
    figures = sum_over_ranks(rollout_figures([batch], [rollout]))
    assert figures["zero_variance"] == 0
    assert figures["reward/format"] == figures["reward/total"] == figures["reward_by_task/grounding"] == 0.5


def test_a_group_of_empty_completions_teaches_nothing() -> None:
    vlm = twin()
    eos = vlm.tokenizer.eos_token_id
    callback = RolloutCallback(num_generations=3)
    sampled = Sampled([[[eos]] * 3], torch.zeros(3, 1), [[True] * 3])
    rollout = callback.scored(vlm, batch_of(vlm, [1])["samples"], sampled)
    assert [c.text for c in rollout.completions[0]] == [""] * 3
    assert not GRPO(vlm).algorithm.advantages(rollout.total.view(1, 3)).any()


def test_difficulty_weighs_hard_groups_more() -> None:
    vlm = twin()
    tokens = [[[5], [6]], [[5], [6]]]
    sampled = Sampled(tokens, torch.zeros(4, 1), [[True] * 2] * 2)
    callback = RolloutCallback(num_generations=2, difficulty=1.0)
    easy, hard = [0.9, 0.7], [0.1, 0.3]
    values = iter([*easy, *hard])
    callback.rewards = {"object": lambda completion, sample: next(values)}
    rollout = callback.scored(vlm, batch_of(vlm, [0, 0])["samples"], sampled)
    assert rollout.emphasis.tolist() == pytest.approx(torch.tensor([-0.3, -0.3, 0.3, 0.3]).exp().tolist())


def test_hard_groups_weigh_more_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are one: a completion's loss is minus its advantage, which is root 1/2 up or down before it is weighed."""
    vlm = twin()
    callback = RolloutCallback(num_generations=2, max_new_tokens=3, difficulty=1.0)
    values = iter([0.9, 0.7, 0.1, 0.3])
    callback.rewards = {"object": lambda completion, sample: next(values)}
    module = GRPO(vlm, kl_coeff=0.0).train()
    module.trainer = SimpleNamespace(callbacks=[callback], global_step=0, is_global_zero=True, precision="32-true")
    monkeypatch.setattr(GRPO, "log", lambda *given, **more: None)
    step = lambda self, batch, index: [self.row_losses(micro)["loss"] for micro in batch["micro_batches"]]  # noqa: E731
    monkeypatch.setattr(BaseModule, "training_step", step)
    (loss_N,) = module.training_step({"micro_batches": [batch_of(vlm, [0, 0])]}, 0)
    easy, hard = (0.5**0.5 * math.exp(0.5 - mean) for mean in (0.8, 0.2))
    assert loss_N.tolist() == pytest.approx([-easy, easy, hard, -hard], abs=1e-5)


def test_prompts_decoded_together_and_refilled_groups() -> None:
    """Completions do not depend on how many prompts are decoded at once; a sample that comes twice is drawn anew.

    Groups of equal reward are drawn again under other names, the others stay.
    """
    vlm = twin().eval()
    batches = [batch_of(vlm, [0, 1]), batch_of(vlm, [2, 0])]
    batches[1]["samples"][1].id = "p0"  # once more
    arguments = {"num_generations": 3, "max_new_tokens": 6, "stop_after": None}
    made = [
        [r.token_ids for r in RolloutCallback(**arguments, rollout_batch_size=size).roll_out(vlm, batches, 4)]
        for size in (2, None)
    ]
    assert made[0] == made[1]
    assert made[0][0][0] != made[0][1][1]
    frozen = [batch | vlm.frozen_features(batch) for batch in batches]
    assert [r.token_ids for r in RolloutCallback(**arguments).roll_out(vlm, frozen, 4)] == made[0]
    callback = RolloutCallback(**arguments, refills=2)
    first = made[0][0][1]
    callback.rewards = {"own": lambda completion, sample: float(completion.token_ids == first[0])}
    refilled = [r.token_ids for r in callback.roll_out(vlm, batches, 4)]
    assert refilled[0][1] == first
    assert all(a != b for a, b in ((refilled[0][0], made[0][0][0]), (refilled[1][0], made[0][1][0])))


def test_a_refill_asks_no_reward_again() -> None:
    """A judge may be paid: three completions of two prompts, then those of the group that was drawn again alone."""
    vlm, asked = twin().eval(), list[str]()
    callback = RolloutCallback(num_generations=3, max_new_tokens=4, stop_after=None, refills=1)

    def judge(completion: object, sample: object) -> float:
        asked.append(sample.id)
        return len(asked) if sample.id == "p0" else 0.0

    callback.rewards = {"judge": judge}
    (rollout,) = callback.roll_out(vlm, [batch_of(vlm, [0, 1])])
    assert asked == ["p0"] * 3 + ["p1"] * 6
    assert rollout.total.tolist() == [1, 2, 3, 0, 0, 0]


def test_text_beside_pictures_whose_features_are_there() -> None:
    vlm = twin().eval()
    callback = RolloutCallback(num_generations=2, max_new_tokens=4, stop_after=None)
    batches = [batch_of(vlm, [0]), batch_of(vlm, [2])]
    frozen = [batch | vlm.frozen_features(batch) for batch in batches]
    assert ["features" in batch for batch in frozen] == [False, True]
    for order in (1, -1):
        made = [[r.token_ids for r in callback.roll_out(vlm, given[::order])] for given in (frozen, batches)]
        assert made[0] == made[1]


def test_wrong_options_are_refused() -> None:
    for arguments, message in (
        ({"num_generations": 1}, "num_generations: seen 1, expected at least 2"),
        ({"temperature": 0.0}, "temperature, top_p: seen 0.0 and 1.0"),
        ({"rollout_batch_size": -1}, "rollout_batch_size: seen -1, expected at least 1"),
        ({"difficulty": 1.0, "rewards": {"format": "ts_lightning.rl.format_reward"}}, "difficulty: seen no reward"),
    ):
        with pytest.raises(ValueError, match=message):
            RolloutCallback(**arguments)


def test_autocast_keeps_no_copies_of_weights_from_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are without gradients, which torch 2.8 would leave the update without."""
    vlm, events = twin().eval(), list[str]()
    logits, clear = vlm.logits, torch.clear_autocast_cache
    vlm.__dict__["logits"] = lambda *given: (events.append("forward"), logits(*given))[1]
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (events.append("cleared"), clear()))
    with torch.autocast("cpu", torch.bfloat16):
        RolloutCallback(num_generations=2, max_new_tokens=2, refills=1).roll_out(vlm, [batch_of(vlm, [0])])
        assert "forward" in events
        assert events[-1] == "cleared"


def figures(form: float, thing: float, flat: float = 0.0) -> dict[str, float]:
    return {"reward/format": form, "reward/object": thing, "reward/total": form + thing, "zero_variance": flat}


def lines(history: list[dict[str, float]], watch: Watch) -> list[str]:
    return [line for step, one in enumerate(history) for line in watch.add(step, one)]


def test_warnings_come_once_and_only_when_due() -> None:
    cases: list[tuple[list[dict[str, float]], list[str]]] = [
        ([figures(0.2 + i / 50, 0.1 + i / 50) for i in range(40)], []),
        ([figures(0.2 + 0.03 * i, 0.1) for i in range(20)], ["step 8: only the format is learned: format reward 0.38"]),
        ([figures(0.95, 0.05)] * 20, ["step 4: only the format is learned: format reward 0.95 (+0.00"]),
        ([figures(0.8, 0.5)] * 10 + [figures(0, 0.4)] * 20, ["step 13: the run has collapsed: rewards of 0.58"]),
        ([figures(0.8, 0.5, flat=1.0)] * 20, ["step 4: nothing to learn: 100% of the groups have equal rewards, 1.30"]),
        ([{"reward/total": -i / 10, "zero_variance": 0.5} for i in range(20)], []),
    ]
    for history, expected in cases:
        said = lines(history, Watch(window=5))
        assert [line[: len(start)] for line, start in zip(said, expected, strict=True)] == expected
    assert lines([figures(0.8, 0.5, flat=1.0)] * 10, Watch())[0].startswith("step 9: ")
    for tagged, cause in (
        (0.0, "no completion has <think> or <answer> tags"),
        (0.5, "every reward is 0; a completion: 'a"),
    ):
        (line,) = Watch(window=1).add(0, figures(0, 0, flat=1.0) | {"tagged": tagged}, "a box")
        assert line.startswith(f"step 0: nothing to learn: {cause}")


def test_a_resumed_run_remembers_figures_and_what_was_said() -> None:
    first, second, third = (RolloutCallback() for _ in range(3))
    first.figures = {"reward_by_task/refer": 0.5}
    assert lines([figures(0.8, 0.5, flat=1.0)] * 9, first.watch) == []
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.figures == first.figures
    assert len(second.watch.add(9, figures(0.8, 0.5, flat=1.0))) == 1
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    assert third.watch.add(10, figures(0.8, 0.5, flat=1.0)) == []


@pytest.mark.parametrize("kind", VLMS)
@pytest.mark.parametrize("offload", [False, True])
def test_reference_is_the_policy_as_it_was(kind: str, offload: bool) -> None:
    vlm = VLMS[kind]().eval()
    batch, completions = batch_of(vlm, [0, 1]), [[[30, 31], [32]], [[33], [34, 35]]]
    reference = ReferencePolicy(vlm, offload)

    def scores(package: str | None = None) -> torch.Tensor:
        with torch.no_grad():
            return group_log_probs(vlm, batch, completions, package=package).logp_NT

    before = scores()
    with reference.active() as package:
        torch.testing.assert_close(scores(package), before, rtol=1e-6, atol=1e-6)
    trained = dict(vlm.trainable_state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    after = scores()
    assert not torch.allclose(after, before, atol=1e-4)
    with reference.active() as package:
        torch.testing.assert_close(scores(package), before, rtol=1e-6, atol=1e-6)
    assert torch.equal(scores(), after)
    assert vlm.trainable_state_dict().keys() == trained.keys()


@pytest.mark.parametrize(("offload", "device"), [(False, "meta"), (True, "cpu")])
def test_the_reference_goes_where_the_policy_has_gone(offload: bool, device: str) -> None:
    """A trainer moves the vlm after the copy was made; with `offload` the copy stays."""
    used, sharded = (ReferencePolicy(VLMS["plain"](), offload) for _ in range(2))
    for reference in (used, sharded):
        reference.vlm.to("meta")
    with used.active():
        assert {parameter.device.type for parameter in used.vlm.parameters()} == {"meta"}
    sharded.shard()
    for reference in (used, sharded):
        assert {value.device.type for value in reference.held.values()} == {device}


@pytest.mark.parametrize("kind", VLMS)
def test_reference_under_autocast(kind: str) -> None:
    vlm = VLMS[kind]().eval()
    batch, completions = batch_of(vlm, [0, 1]), [[[30, 31], [32]], [[33], [34, 35]]]
    reference = ReferencePolicy(vlm)
    with torch.autocast("cpu", torch.bfloat16):
        with reference.active() as package:
            before = group_log_probs(vlm, batch, completions, package=package).logp_NT
        policy = group_log_probs(vlm, batch, completions).logp_NT
        torch.testing.assert_close(policy, before, rtol=1e-6, atol=1e-6)
        policy.sum().backward()
    grads = [p.grad for name, p in vlm.named_parameters() if p.requires_grad and "lora_A" not in name]
    assert any(grad is not None and grad.abs().max() > 0 for grad in grads)
    if kind != "lora":  # a fresh adapter's reference is the adapter switched off: nothing to mix up
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            group_log_probs(vlm, batch, completions)
            for parameter in vlm.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
            with reference.active() as package:
                again = group_log_probs(vlm, batch, completions, package=package).logp_NT
                assert torch.equal(again, before)
            torch.clear_autocast_cache()
            assert not torch.equal(group_log_probs(vlm, batch, completions).logp_NT, before)


def test_reference_costs_the_trainable_part_at_most() -> None:
    vlm = twin()
    assert isinstance(vlm, TwinExpertVLM)
    before = sum(p.numel() for p in vlm.parameters())
    trained = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    ReferencePolicy(vlm)
    layers = len(vlm.twins)  # alpha is shared by the layers: one copy
    assert sum(p.numel() for p in vlm.parameters()) - before == trained
    assert sum(p.requires_grad for p in vlm.parameters()) > layers
    assert vlm.skills == ("grounding",)
    lora = LoRAVLM(tiny(), rank=4)
    assert ReferencePolicy(lora).held == {}


def test_understanding_is_untouched_by_policy_and_reference() -> None:
    vlm = twin().eval()
    base = tiny()
    batch = batch_of(vlm, [1], "understanding")
    batch["step_ids"][:, -4:] = 0
    ReferencePolicy(vlm)
    with torch.no_grad():
        ours = vlm(batch)["logits"]
        hidden = base.decoder(
            inputs_embeds=_embed(base, batch),
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        theirs = base.head(hidden[:, -5:-1][0])
    torch.testing.assert_close(ours[:, : theirs.shape[1]], theirs, rtol=1e-6, atol=1e-6)


def _embed(base: object, batch: dict) -> torch.Tensor:
    embeds = base.embedding(batch["input_ids"])
    image = batch["input_ids"] == base.image_token_id
    return embeds.masked_scatter(image[..., None], base.features(batch))


def test_an_earlier_reference_package_is_refused() -> None:
    vlm = twin()
    ReferencePolicy(vlm)
    with pytest.raises(ValueError, match="package: seen one named 'reference'"):
        ReferencePolicy(vlm)


def test_plain_reference_of_other_weights_is_refused() -> None:
    reference, other = ReferencePolicy(VLMS["plain"]()), ReferencePolicy(VLMS["plain"]())
    other.load_state_dict(reference.state_dict())
    next(iter(other.held.values())).add_(1)
    with pytest.raises(ValueError, match=r"reference policy: seen weights .*init_from has changed"):
        other.load_state_dict(reference.state_dict())


def meet(store: Path, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


def scripted_rollout(folder: Path, rank: int) -> None:
    """Rank 0's answers end at their third token, those of rank 1 at their eighth."""
    meet(folder / "store", rank)
    vlm = twin().eval()
    logits, steps = vlm.logits, []

    def scripted(hidden: torch.Tensor, task: torch.Tensor, context: object) -> torch.Tensor:
        steps.append(1)
        out = torch.zeros_like(logits(hidden, task, context))
        out[:, vlm.tokenizer.eos_token_id if len(steps) > (2, 7)[rank] else 40] = 1000
        return out

    vlm.__dict__["logits"] = scripted
    batch = collate([vlm.encode(prompt(0, 0), for_generation=True)], vlm.pad_id)
    sampled = sample_groups(vlm, batch, 2, 30, all_done=all_ranks_done)
    said = [len(steps), len(sampled.tokens[0][0]), sampled.logp_NS.shape[1]]
    (folder / f"{rank}.json").write_text(json.dumps(said))


def sharded_rollout(folder: Path, rank: int) -> None:
    """Gathers of weights for one token, two and nine; then log-probabilities and gradients in bf16."""
    meet(folder / "store", rank)
    mesh = init_device_mesh("cpu", (2,))
    vlm, half = twin().eval(), twin().eval()
    batch = collate([vlm.encode(prompt(i, i), for_generation=True) for i in range(2)], vlm.pad_id)

    def tokens(limit: int) -> list:
        callback = RolloutCallback(num_generations=2, max_new_tokens=limit, stop_after=None)
        return callback.roll_out(vlm, [batch])[0].token_ids

    whole = tokens(9)
    shard(vlm, vlm.backbone.layers, mesh)
    gathers = []
    for limit in (1, 2, 9):
        with torch.profiler.profile() as seen:
            sharded = tokens(limit)
        gathers.append(sum(e.count for e in seen.key_averages() if e.key == "c10d::_allgather_base_"))

    with torch.autocast("cpu", torch.bfloat16):
        before = half.run(group_log_probs, batch, sharded).logp_NT
        shard(half, half.backbone.layers, mesh, torch.bfloat16)
        after = half.run(group_log_probs, batch, sharded).logp_NT
    after.sum().backward()
    gradients = [local(p.grad) for p in half.parameters() if p.grad is not None]
    near = (after - before).abs().max().item() < 0.1
    kinds = sorted({str(g.dtype) for g in gradients})
    said = [len(vlm.backbone.layers), gathers, whole == sharded, near, kinds]
    (folder / f"{rank}.json").write_text(json.dumps([*said, all(bool(g.isfinite().all()) for g in gradients)]))


def two_ranks(call: Callable[[Path, int], None], folder: Path) -> list[list]:
    """What each of two processes writes."""
    ranks.finish(partial(call, folder), folder / "log", 2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_weights_are_gathered_once_a_rollout(tmp_path: Path) -> None:
    """Two layers and the rest, for one token, two and nine; completions are those of whole weights. Then in bf16."""
    assert two_ranks(sharded_rollout, tmp_path) == [[2, [3, 3, 3], True, True, ["torch.float32"], True]] * 2


def test_ranks_stop_together(tmp_path: Path) -> None:
    # forwards, tokens of the own completion: eight forwards each, three and eight tokens
    assert two_ranks(scripted_rollout, tmp_path) == [[8, 3, 3], [8, 8, 8]]


def test_padding_of_the_packed_form_is_not_valid() -> None:
    vlm = twin()
    packed = pack_groups(batch_of(vlm, [0, 1]), [[[30], [31, 32]], [[33], [34]]], vlm.pad_id)
    assert torch.equal(packed["valid"], packed["branch"] != PAD_BRANCH)
    assert packed["targets"].tolist() == [30, 31, 32, 33, 34]
    assert packed["places"][0].tolist() == [0, 1, 1, 2, 3]
    assert packed["places"][1].tolist() == [0, 0, 1, 0, 0]
