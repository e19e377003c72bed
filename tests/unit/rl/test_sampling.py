"""Sampling: the noise of a completion, nucleus, stops, and what can never be said.

Bitwise: token ids.
"""

from pathlib import Path

import pytest
import torch

from tests.unit.models.hf_checks import sample
from tests.unit.models.hf_families import make_folder
from tests.unit.models.test_constrain import Words
from tests.unit.models.test_shared_prefix import prompt, twin
from ts_lightning.data.collate import collate
from ts_lightning.models import PlainVLM, generate
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.constrain import token_texts
from ts_lightning.models.generate import DecodeState, banned_tokens
from ts_lightning.models.stop import StopText, stop_text
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.sampling import pick, sample_groups


def test_pick_inverts_the_cumulative_distribution() -> None:
    logp = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(5, 3)
    noise = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.999])
    assert pick(logp, noise).tolist() == [0, 0, 1, 1, 2]
    # the likeliest up to 0.75: tokens 1 and 2 with 5/8 and 3/8
    assert pick(logp, torch.tensor([0.0, 0.62, 0.63, 0.9, 0.999]), top_p=0.75).tolist() == [1, 1, 2, 2, 2]
    assert pick(logp, noise, top_p=0.4).tolist() == [1] * 5  # one token is always left
    impossible = torch.tensor([[0.0, -torch.inf]])
    assert pick(impossible, torch.tensor([0.9999999])).tolist() == [0]


def test_frequencies() -> None:
    logp = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(20_000, 3)
    drawn = pick(logp, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.015, rtol=0)


def test_a_completion_depends_on_its_sample_and_number_alone() -> None:
    vlm = twin().eval()
    rows = [vlm.encode(prompt(i, i), for_generation=True) for i in range(3)]
    together = sample_groups(vlm, collate(rows, vlm.pad_id), 4, 6, seed=5, step=2)
    for i, row in enumerate(rows):
        alone = sample_groups(vlm, collate([row], vlm.pad_id), 3, 6, seed=5, step=2)
        assert alone.tokens[0] == together.tokens[i][:3]
    other = sample_groups(vlm, collate(rows, vlm.pad_id), 4, 6, seed=5, step=3)
    assert other.tokens != together.tokens
    assert len({tuple(tokens) for group in together.tokens for tokens in group}) == 12


def test_answers_that_ended_leave_the_batch_and_change_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random ends (a token that every third sampled one is): the same completions whenever the ended ones leave."""
    vlm = twin().eval()
    batch = collate([vlm.encode(prompt(i, i % 3), for_generation=True) for i in range(4)], vlm.pad_id)
    ends = vlm.tokenizer("e", add_special_tokens=False)["input_ids"]
    vlm.__dict__["logits"] = lambda *given: type(vlm).logits(vlm, *given).index_fill(1, torch.tensor(ends), 4.0)
    widths, made = [], {}
    step = DecodeState.step

    def counted(self: DecodeState, token: torch.Tensor) -> None:
        widths.append(len(token))
        step(self, token)

    monkeypatch.setattr(DecodeState, "step", counted)
    for every in (1000, 2):
        widths.clear()
        monkeypatch.setattr(generate, "COMPACT", every)
        sampled = sample_groups(vlm, batch, 5, 24, stop_after="e")
        made[every] = sampled.tokens, sampled.logp_NS, list(widths)
    assert made[1000][0] == made[2][0]
    torch.testing.assert_close(made[1000][1], made[2][1], rtol=0, atol=1e-5)
    assert set(made[1000][2]) == {20}
    assert sum(made[2][2]) < 0.8 * sum(made[1000][2])
    some = sample_groups(vlm, batch, 5, 24, stop_after="e", wanted=[False, True, False, True])
    assert [some.tokens[i] for i in (1, 3)] == [made[2][0][i] for i in (1, 3)]


def test_pick_of_a_large_vocabulary_is_that_of_one_scan() -> None:
    generator = torch.Generator().manual_seed(0)
    logp = (3 * torch.randn(200, 1000, generator=generator)).log_softmax(1)
    noise = torch.rand(200, generator=generator, dtype=torch.float64)
    total = logp.double().exp().cumsum(1)
    assert torch.equal(pick(logp, noise), (total <= noise[:, None] * total[:, -1:]).sum(1))
    assert pick(logp, torch.ones(200) - 1e-9).max() < 1000


def test_log_probs_are_those_of_the_update() -> None:
    vlm = twin().eval()
    rows = [vlm.encode(prompt(i, i), for_generation=True) for i in range(2)]
    batch = collate(rows, vlm.pad_id)
    free = sample_groups(vlm, batch, 3, 8, temperature=1.7, top_p=0.8, stop_after=None)
    said = [token for group in free.tokens for tokens in group for token in tokens[2:5]]
    texts = [text for token in said if vlm.tokenizer(text := vlm.tokenizer.decode([token]))["input_ids"] == [token]]
    sampled = sample_groups(vlm, batch, 3, 8, temperature=1.7, top_p=0.8, stop_after=texts[0])
    assert len({len(tokens) for group in sampled.tokens for tokens in group}) > 1, "no completion ended early"
    with torch.no_grad():
        logp = group_log_probs(vlm, batch, sampled.tokens, 1.7).logp_NT
    torch.testing.assert_close(logp, sampled.logp_NS, rtol=0, atol=1e-5)


class Scripted:
    """Logits that make `sequence` certain; -1 is any token."""

    def __init__(self, vlm, sequence: list[int]) -> None:
        self.logits, self.sequence, self.step = vlm.logits, sequence, 0
        vlm.logits = self

    def __call__(self, hidden, task, context):
        logits = torch.zeros_like(self.logits(hidden, task, context))
        if self.sequence[self.step] >= 0:
            logits[:, self.sequence[self.step]] = 1000
        self.step += 1
        return logits


@pytest.mark.parametrize(
    ("said", "kept", "stopped"),
    [
        ("<think>a</think><answer>b</answer> and more", "<think>a</think><answer>b</answer>", True),
        ("a</s>b c", "a</s>", True),
        ("a b c d e f g", "a b c d e f g", False),
    ],
)
def test_stops(said: str, kept: str, stopped: bool) -> None:
    vlm = twin().eval()
    ids = vlm.tokenizer(said, add_special_tokens=False)["input_ids"]
    batch = collate([vlm.encode(prompt(0, 0), for_generation=True)], vlm.pad_id)
    vlm.__dict__["logits"] = vlm.logits
    Scripted(vlm, ids)
    sampled = sample_groups(vlm, batch, 2, len(ids))
    assert [vlm.tokenizer.decode(tokens) for tokens in sampled.tokens[0]] == [kept] * 2
    assert sampled.stopped == [[stopped] * 2]
    assert sampled.logp_NS.shape == (2, len(sampled.tokens[0][0]))


def test_a_stop_of_several_tokens() -> None:
    vlm = twin().eval()
    ids = vlm.tokenizer("a b zq b zq c", add_special_tokens=False)["input_ids"]
    end = vlm.tokenizer("zq", add_special_tokens=False)["input_ids"]
    assert len(end) > 1
    batch = collate([vlm.encode(prompt(0, 0), for_generation=True)], vlm.pad_id)
    vlm.__dict__["logits"] = vlm.logits
    Scripted(vlm, [*ids[:1], *end, *end, *ids])
    sampled = sample_groups(vlm, batch, 2, 9, stop_after="zq")
    assert sampled.tokens[0][0] == [ids[0], *end]


def test_a_stop_is_found_in_the_text_whatever_tokens_spell_it() -> None:
    words = Words("a", "></", "s", ">", ">.", "x</s>!", "<", "</s", "/")
    stop = StopText(words, "</s>", 10, torch.device("cpu"))
    for said, expected in (
        ([1, 2, 4, 0], [2, 3, 4, 4]),  # a></ s >. a
        ([6, 1, 2, 3], [1, 2, 3, 4]),
        ([6, 8, 8, 7, 3], [1, 2, 0, 3, 4]),
        ([7, 2, 3, 5], [3, 0, 0, 4]),
        ([0, 9, 6, 9, 8], [0, 0, 1, 1, 2]),  # 9 has no text
    ):
        state, found = torch.zeros(1, dtype=torch.long), []
        for token in said:
            state = stop.after(state, torch.tensor([token]))
            found.append(int(state))
            assert bool(stop.whole(state)) == (found[-1] == 4)
        assert found == expected, said


def test_the_table_of_a_stop_is_made_once_for_a_tokenizer_of_a_size() -> None:
    words, cpu = Words("a", "</", "s>"), torch.device("cpu")
    stop = stop_text(words, "</s>", 4, cpu)
    assert stop_text(words, "</s>", 4, cpu) is stop
    assert stop_text(words, "s>", 4, cpu) is not stop
    assert stop_text(Words("a", "</", "s>"), "</s>", 4, cpu) is not stop


def test_a_stop_begins_inside_of_a_token_and_ends_inside_of_another() -> None:
    vlm = twin().eval()
    batch = collate([vlm.encode(prompt(0, 0), for_generation=True)], vlm.pad_id)
    texts = token_texts(vlm.tokenizer, len(vlm.tokenizer))
    first, last = [token for token, text in enumerate(texts) if len(text) > 2 and text.isalpha()][:2]
    stop = texts[first][-1] + texts[last][:2]
    assert stop not in texts[last] + texts[first]
    vlm.__dict__["logits"] = vlm.logits
    Scripted(vlm, [last, first, last, last, last])
    sampled = sample_groups(vlm, batch, 2, 5, stop_after=stop)
    assert sampled.tokens[0] == [[last, first, last]] * 2
    assert sampled.stopped == [[True] * 2]


def test_pictures_and_padding_can_not_be_said() -> None:
    vlm = twin().eval()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    sampled = sample_groups(vlm, batch, 8, 40, temperature=100.0, stop_after=None)
    said = {token for group in sampled.tokens for tokens in group for token in tokens}
    assert len(said) > 150
    assert not said & set(banned_tokens(vlm))


def test_a_prompt_without_room_is_named() -> None:
    vlm = twin().eval()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    with pytest.raises(
        ValueError, match=r"p0: seen a prompt of \d+ tokens and max_new_tokens 2040, expected at most 2048"
    ):
        sample_groups(vlm, batch, 2, 2040)


def test_a_recurrent_model_reads_the_prompt_again_for_each_answer(tmp_path: Path) -> None:
    vlm = PlainVLM(HFBackbone(str(make_folder("qwen3_5", tmp_path)))).eval()
    batch = collate([vlm.encode(sample("grounding", seed=i, pictures=1 + i), True) for i in range(2)], vlm.pad_id)
    with pytest.warns(UserWarning, match="a prompt is read again for each of its 3 answers"):
        drawn = sample_groups(vlm, batch, 3, 5)
    with torch.no_grad():
        logp = group_log_probs(vlm, batch, drawn.tokens).logp_NT
    torch.testing.assert_close(logp[:, : drawn.logp_NS.shape[1]], drawn.logp_NS, atol=1e-4, rtol=1e-4)
    alone = sample_groups(vlm, collate([vlm.encode(sample("grounding", seed=1, pictures=2), True)], vlm.pad_id), 1, 5)
    assert alone.tokens[0][0] == drawn.tokens[1][0]


def test_answers_of_a_recurrent_model_leave_the_batch_and_change_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = PlainVLM(HFBackbone(str(make_folder("qwen3_5", tmp_path)))).eval()
    batch = collate([vlm.encode(sample("grounding", seed=i), True) for i in range(2)], vlm.pad_id)
    end = vlm.tokenizer.eos_token_id
    vlm.__dict__["logits"] = lambda *given: type(vlm).logits(vlm, *given).index_fill(1, torch.tensor([end]), 5.0)
    made = []
    for every in (1000, 2):
        monkeypatch.setattr(generate, "COMPACT", every)
        with pytest.warns(UserWarning, match="a prompt is read again"):
            made.append(sample_groups(vlm, batch, 4, 20, stop_after=None))
    lengths = [len(tokens) for group in made[0].tokens for tokens in group]
    assert min(lengths) < 10
    assert max(lengths) == 20
    assert made[0].tokens == made[1].tokens
    torch.testing.assert_close(made[0].logp_NS, made[1].logp_NS, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="a prompt is read again"):
        some = sample_groups(vlm, batch, 4, 20, stop_after=None, wanted=[False, True])
    assert some.tokens[1] == made[0].tokens[1]
