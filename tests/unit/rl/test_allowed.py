"""Constrained rollouts: what a token was drawn among is read again from the completions, and scored so.

Bitwise: masks. Within 1e-5: log-probabilities of sampling and of the update.
"""

from functools import partial

import pytest
import torch

from tests.unit.models.test_shared_prefix import prompt, twin
from ts_lightning.data.collate import collate
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.models.constrain import Notation
from ts_lightning.models.generate import constraint_of
from ts_lightning.models.vlm import VLM
from ts_lightning.rl import RolloutCallback, VLLMEngine, log_probs
from ts_lightning.rl.allowed import allowed_of
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.sampling import sample_groups

LIMIT = 40


def opens_boxes() -> VLM:
    """A policy of random weights that likes to begin a box."""
    vlm = twin().eval()
    opening = Notation(vlm.codec, (1, 1)).opening
    first = vlm.tokenizer(opening, add_special_tokens=False)["input_ids"][:1]
    liked = torch.zeros(len(vlm.tokenizer)).index_fill(0, torch.tensor(first), 7.0)
    vlm.__dict__["logits"] = lambda *given: type(vlm).logits(vlm, *given) + liked
    return vlm


@pytest.mark.parametrize("chunk", [1024, 7])
def test_log_probs_under_the_masks_are_those_of_the_update(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "CHUNK", chunk)
    vlm = opens_boxes()
    batch = collate([vlm.encode(prompt(i, i), for_generation=True) for i in range(2)], vlm.pad_id)
    drawn = sample_groups(vlm, batch, 4, LIMIT, temperature=1.3, stop_after=None, constrain=True)
    allowed = allowed_of(vlm, batch["samples"], drawn.tokens, LIMIT)
    vlm.zero_grad()
    scores = group_log_probs(vlm, batch, drawn.tokens, 1.3, allowed=allowed)
    torch.testing.assert_close(scores.logp_NT, drawn.logp_NS, rtol=0, atol=1e-5)
    (scores.logp_NT.sum() + scores.entropy_NT.sum()).backward()
    grads = [p.grad for p in vlm.parameters() if p.grad is not None]
    assert grads
    assert all(bool(grad.isfinite().all()) for grad in grads)
    with torch.no_grad():
        free = group_log_probs(vlm, batch, drawn.tokens, 1.3).logp_NT
    assert float((scores.logp_NT.detach() - free).max()) > 1, "a token in a box is likelier among those that may follow"
    assert bool((scores.logp_NT >= free - 1e-5).all())


def test_the_masks_are_those_of_the_drawing_and_boxes_are_whole() -> None:
    vlm = opens_boxes()
    batch = collate([vlm.encode(prompt(i, i), for_generation=True) for i in range(2)], vlm.pad_id)
    drawn = sample_groups(vlm, batch, 4, LIMIT, stop_after=None, constrain=True)
    allowed = allowed_of(vlm, batch["samples"], drawn.tokens, LIMIT)
    vocabulary, rows = len(vlm.tokenizer), [ids for group in drawn.tokens for ids in group]
    constraint = constraint_of(vlm, batch["samples"], vocabulary, 4)
    for n, ids in enumerate(rows):
        masks_SV = allowed.rows(allowed.number_NS[n], vocabulary)
        for step, token in enumerate(ids):
            assert torch.equal(masks_SV[step], constraint.allowed([n], LIMIT - step - 1)[0])
            assert masks_SV[step, token]
            constraint.read([token], [n])
    texts = [vlm.tokenizer.decode(ids, skip_special_tokens=False) for ids in rows]
    opening, size = Notation(vlm.codec, (1, 1)).opening, (1, 1)
    begun = sum(text.count(opening) for text in texts)
    whole = sum(len(mention.boxes) for text in texts for mention in vlm.codec.parse_strict(text, size))
    assert begun == whole >= 8
    assert len(allowed.begun_M) < 60, "alike masks are one"


def test_masks_by_hand() -> None:
    """[0.12,0.34,0.56,0.78]: a comma alone may follow three decimals."""
    vlm = twin()
    codec = get_codec("shikra")
    vlm.encoder.codec = codec  # what `codec` of a vlm reads
    ids = vlm.tokenizer(codec.format([(0.12, 0.34, 0.56, 0.78)], (1, 1)), add_special_tokens=False)["input_ids"]
    sample = prompt(0, 0)
    allowed = allowed_of(vlm, [sample], [[ids]], LIMIT)
    texts = [vlm.tokenizer.decode([token]) for token in ids]
    masks = allowed.rows(allowed.number_NS[0], len(vlm.tokenizer))
    after = [[vlm.tokenizer.decode([int(token)]) for token in mask.nonzero()] for mask in masks]
    assert bool(masks[0].sum() > 500), "outside of a box nearly all may be said"
    place = texts.index(",")  # behind the first number
    assert {text[0] for text in after[place]} == {","}
    assert all(set(text) <= set("0123456789.,[]") for words in after[1:] for text in words)


def test_a_tokenizer_with_more_tokens_than_the_model() -> None:
    vlm = opens_boxes()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    width = len(vlm.tokenizer)
    vlm.tokenizer.add_tokens([Notation(vlm.codec, (1, 1)).opening + "x"])  # never allowed, as no box begins so
    vlm.__dict__["logits"] = lambda *given: type(vlm).logits(vlm, *given)[:, :width]
    drawn = sample_groups(vlm, batch, 2, LIMIT, stop_after=None, constrain=True)
    allowed = allowed_of(vlm, batch["samples"], drawn.tokens, LIMIT)
    with torch.no_grad():
        logp_NT = group_log_probs(vlm, batch, drawn.tokens, allowed=allowed).logp_NT
    torch.testing.assert_close(logp_NT, drawn.logp_NS, rtol=0, atol=1e-5)


def test_completions_that_were_drawn_otherwise_are_refused() -> None:
    """A run with free rollouts that goes on with constrained ones in the middle of a batch would have -inf."""
    vlm = twin()
    ids = vlm.tokenizer(Notation(vlm.codec, (1, 1)).opening + " red", add_special_tokens=False)["input_ids"]
    with pytest.raises(
        ValueError, match="constrain: seen a completion with token 2 not among the allowed, expected one"
    ):
        allowed_of(vlm, [prompt(0, 0)], [[ids]], LIMIT)


def test_an_engine_can_not_be_constrained() -> None:
    made = partial(RolloutCallback, engine=VLLMEngine(url="http://localhost:1"))
    made()
    with pytest.raises(ValueError, match="constrain: seen with an engine"):
        made(constrain=True)
