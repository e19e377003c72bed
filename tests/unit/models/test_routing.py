"""The routing context: what counts, nesting, and the recomputation of checkpointed layers."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PhiConfig, PhiModel
from transformers.models.phi.modeling_phi import PhiMLP

from ts_lightning.models.moe import MoE
from ts_lightning.models.routing import current_routing, keep_routing, routing
from ts_lightning.models.twin import Alpha, Package, TwinExpert

TASK = torch.tensor([0, 1])
VALID = torch.tensor([[1, 1, 1], [0, 1, 1]])
CONFIG = PhiConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=11)


def make_decoder() -> PhiModel:
    torch.manual_seed(0)
    decoder = PhiModel(CONFIG).requires_grad_(False).eval()
    alpha = Alpha(0.5)
    for layer in decoder.layers:
        package = Package(MoE.copies([PhiMLP(CONFIG), PhiMLP(CONFIG)], 2, 1), alpha)
        layer.mlp = TwinExpert(MoE.copies(layer.mlp, 2, 2), nn.ModuleDict({"grounding": package}))
    return decoder


def trainable_gradients(decoder: PhiModel) -> dict[str, Tensor]:
    gradients = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.requires_grad}
    decoder.zero_grad()
    return gradients


def test_counts_valid_tokens_and_those_of_the_skill() -> None:
    with routing(TASK, VALID) as active:
        assert active.valid_N.tolist() == [0, 1, 2, 4, 5]
        assert active.tokens["grounding"].tolist() == [4, 5]


def test_contexts_nest_and_end() -> None:
    assert current_routing() is None
    with routing(TASK, VALID) as outer:
        with routing(TASK, VALID, package="other") as inner:
            assert current_routing() is inner
        assert current_routing() is outer
    assert current_routing() is None


def test_shapes_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"routing: seen task_B \(2,\), valid_BT \(3, 2\), expected \[B\] and \[B, T\]"
    ):
        routing(TASK, torch.ones(3, 2))
    with (
        routing(TASK, VALID),
        pytest.raises(ValueError, match=r"valid_BT: seen \(2, 3\) for hidden states \(2, 4, 8\)"),
    ):
        make_decoder().layers[0].mlp(torch.zeros(2, 4, 8))


def test_recomputation_sees_the_routing_of_its_own_forward() -> None:
    twin = make_decoder().layers[0].mlp
    h = torch.randn(2, 3, 8)
    with routing(TASK, VALID):
        twin(h).sum().backward()
    expected = [p.grad.clone() for p in twin.packages.parameters()]
    twin.zero_grad()
    with routing(TASK, VALID):
        out = checkpoint(twin, h, use_reentrant=False, context_fn=keep_routing)
    with routing(torch.ones(2), torch.ones(2, 3), alpha_override=0.9):  # another forward is running in between
        out.sum().backward()
    for parameter, gradient in zip(twin.packages.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)  # bitwise: a recomputed product is the same product


def test_checkpointed_decoder_equals_plain_with_collected_routers() -> None:
    """The balance loss hangs on probabilities collected inside of checkpointed layers."""
    decoder = make_decoder()
    embeddings = torch.randn(2, 3, 8)

    def step() -> Tensor:
        with routing(TASK, VALID, collect=True) as active:
            hidden = decoder(inputs_embeds=embeddings, attention_mask=VALID, use_cache=False).last_hidden_state
        routers = [layer.mlp.packages["grounding"].experts for layer in decoder.layers]
        probs = [active.routed[router].probs_NE for router in routers]
        loss = hidden[VALID.bool()].square().sum() + sum(p.square().sum() for p in probs)
        loss.backward()
        assert [active.routed[router].probs_NE for router in routers] == probs  # the recomputation wrote nothing
        return loss

    plain_loss = step()
    plain = trainable_gradients(decoder)
    for layer in decoder.layers:
        layer.training = layer.gradient_checkpointing = True  # transformers checkpoints layers in train mode only
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=keep_routing)
    runs = []
    decoder.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    loss = step()
    assert len(runs) == 2
    assert torch.equal(loss, plain_loss)  # bitwise: the same modules on the same rows
    for name, gradient in trainable_gradients(decoder).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
        assert "grounding" in name
