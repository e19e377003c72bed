"""Rollouts by a server: whose weights a step trains on, what a dead or slow one costs, a mismatch above its bound."""

import json
import math
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.integration import tiny
from tests.unit.models.test_shared_prefix import prompt
from tests.unit.rl.vllm_stub import FIRST, Stub, running
from ts_lightning.cli import main
from ts_lightning.data.collate import collate
from ts_lightning.models import LoRAVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.rl import RolloutCallback, VLLMEngine, vllm_engine
from ts_lightning.rl.completion import Completion
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.vllm_server import ServerError

GENERATE = "/inference/v1/generate"
PADS = 4  # tokens of a picture of tiny.BACKBONE


def policy() -> LoRAVLM:
    return LoRAVLM(TinyBackbone(**tiny.BACKBONE["init_args"]), rank=2).eval()


def hand_overs(completion: Completion, sample: Any) -> float:
    """A reward that says how often the server had got weights when it drew this."""
    return float(completion.token_ids[0] - FIRST)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    with running(Stub(TinyBackbone(**tiny.BACKBONE["init_args"]).image_token_id, PADS)) as made:
        monkeypatch.setenv(vllm_engine.URL, made.url)
        monkeypatch.setenv(vllm_engine.FOLDER, str(tmp_path))
        monkeypatch.setenv("TS_LIGHTNING_CLASS_PREFIXES", "tests.unit.rl.test_vllm_rollouts")
        monkeypatch.setattr(vllm_engine, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
        yield made


def fit(root: Path, **engine: Any) -> int:
    """Four steps of GRPO with a LoRA, one prompt of two completions each."""
    vlm = {"class_path": "ts_lightning.models.LoRAVLM", "init_args": {"backbone": tiny.BACKBONE, "rank": 2}}
    given = tiny.config(tiny.write(root / "shards", ["rec"] * 8), root / "run", vlm, kl_coeff=0.0)
    given["model"]["class_path"] = "ts_lightning.training.GRPO"
    given["data"]["init_args"] |= {"global_batch_size": 1, "micro_batch_size": 1}
    rollout = {"num_generations": 2, "max_new_tokens": 4, "stop_after": None}
    rollout["rewards"] = {"handed": "tests.unit.rl.test_vllm_rollouts.hand_overs"}
    rollout["engine"] = {"class_path": "ts_lightning.rl.VLLMEngine", "init_args": {"max_mismatch_kl": 1e9, **engine}}
    given["trainer"]["callbacks"] = [{"class_path": "ts_lightning.rl.RolloutCallback", "init_args": rollout}]
    return main(["fit", "-c", tiny.save(given, root / "given.yaml")])


def logged(root: Path, name: str) -> list[float]:
    rows = map(json.loads, (root / "run/metrics.jsonl").read_text().splitlines())
    return [row[f"train/{name}"] for row in rows if f"train/{name}" in row]


def test_every_step_trains_on_the_newest_weights_draws(stub: Stub, tmp_path: Path) -> None:
    assert fit(tmp_path) == 0
    assert logged(tmp_path, "reward/handed") == [1, 2, 3, 4]
    assert logged(tmp_path, "staleness") == [0, 0, 0, 0]


def test_ahead_trains_on_draws_of_weights_that_are_one_step_old(stub: Stub, tmp_path: Path) -> None:
    """Step 0's weights answer its own prompts and step 1's; step k's those of step k + 1; the last step begins none."""
    assert fit(tmp_path, ahead=1) == 0
    assert logged(tmp_path, "reward/handed") == [1, 1, 2, 3]
    assert logged(tmp_path, "staleness") == [0, 1, 1, 1]
    assert [handed for path, handed in stub.asked if path == GENERATE] == [1, 1, 2, 3]


def test_what_was_lost_ahead_is_asked_of_the_weights_of_now(stub: Stub, tmp_path: Path) -> None:
    stub.trouble[GENERATE] = iter([200, 500])  # the prompt of step 0, then that of step 1, ahead
    assert fit(tmp_path, ahead=1) == 0
    assert logged(tmp_path, "reward/handed") == [1, 2, 2, 3]
    assert logged(tmp_path, "staleness") == [0, 0, 1, 1]


@pytest.mark.parametrize("trouble", [503, "drop"])
def test_two_failures_cost_nothing_but_time(trouble: int | str, stub: Stub, tmp_path: Path) -> None:
    stub.trouble[GENERATE] = iter([trouble] * 2)
    assert fit(tmp_path, retries=2) == 0
    assert logged(tmp_path, "reward/handed") == [1, 2, 3, 4]
    assert len([path for path, _ in stub.asked if path == GENERATE]) == 4 + 2


@pytest.mark.parametrize(
    ("trouble", "line"),
    [(503, 'status 503: {"error": "planted"}'), ("drop", "RemoteDisconnected("), ("wait", "TimeoutError('timed out')")],
)
def test_a_server_that_never_answers_ends_the_run_with_one_line(
    trouble: int | str, line: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stub.trouble[GENERATE] = repeat(trouble)
    assert fit(tmp_path, retries=1, patience=0.5) != 0
    told = [row for row in capsys.readouterr().err.splitlines() if "error: " in row]
    assert len(told) == 1
    assert f"vLLM at {stub.url}: {GENERATE}: {line}" in told[0]
    assert len([path for path, _ in stub.asked if path == GENERATE]) == 2


def test_no_server_at_all_is_one_line(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(vllm_engine.URL, "http://127.0.0.1:9")
    assert fit(tmp_path, retries=0, patience=1) != 0
    told = [row for row in capsys.readouterr().err.splitlines() if "error: " in row]
    assert [row.split("error: ")[1] for row in told] == ["vLLM at http://127.0.0.1:9: no answer for 1 s"]


def test_a_server_that_forgot_its_weights_gets_them_again(stub: Stub) -> None:
    vlm = policy()
    engine = VLLMEngine()
    engine.hand_over(vlm, 3)
    engine.hand_over(vlm, 3)
    assert stub.handed == 1
    stub.version, stub.names = "none", ["base"]  # as after a start
    engine.hand_over(vlm, 3)
    assert (stub.handed, stub.names) == (2, ["base", "policy"])


def test_a_refused_prompt_is_not_asked_again(stub: Stub) -> None:
    """Another size of pictures: to ask again would not help."""
    vlm = policy()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    stub.pads += 1
    callback = RolloutCallback(num_generations=2, max_new_tokens=4, engine=VLLMEngine())
    length = len(batch["input_ids"][0])
    with pytest.raises(ServerError, match=f"seen a prompt of {length + 1} tokens, expected {length} as in training"):
        callback.roll_out(vlm, [batch])
    assert len([path for path, _ in stub.asked if path == GENERATE]) == 1


def test_refilled_groups_alone_are_asked_again_and_figures_stay_those_of_all_prompts(stub: Stub) -> None:
    vlm = policy()
    batch = collate([vlm.encode(prompt(i, 1), for_generation=True) for i in range(2)], vlm.pad_id)
    arguments: dict[str, Any] = {"num_generations": 2, "max_new_tokens": 4}
    made, engine = [], VLLMEngine(max_mismatch_kl=1e9)
    for refills in (0, 1):
        stub.asked.clear()
        callback = RolloutCallback(**arguments, refills=refills, engine=engine)
        turns = iter([0.0, 0.0, 0.0, 1.0] * 2)  # the first prompt's completions are alike
        callback.rewards = {"own": lambda completion, sample, turns=turns: next(turns)}
        rollouts = callback.roll_out(vlm, [batch])
        asked = len([path for path, _ in stub.asked if path == GENERATE])
        made.append((asked, callback.figures, rollouts[0].weight_NS is not None))
    assert [asked for asked, _, _ in made] == [2, 3]
    assert made[0][1:] == made[1][1:]


def test_a_mismatch_above_its_bound_stops_with_the_figure(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One token of log-probability p for the trainer and q for the sampler: exp(p - q) - (p - q) - 1."""
    vlm = policy()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    with torch.no_grad():
        own = group_log_probs(vlm, batch, [[[FIRST + 1], [FIRST + 1]]], 1.0).logp_NT[0, 0].item()
    expected = math.exp(0.5) - 0.5 - 1  # 0.149
    stub.logp = own - 0.5
    engine = VLLMEngine(max_mismatch_kl=0.15)
    callback = RolloutCallback(num_generations=2, max_new_tokens=4, engine=engine)
    callback.roll_out(vlm, [batch], step=7)
    assert callback.figures["mismatch_kl"] == pytest.approx(expected, rel=1e-4)
    engine.max_mismatch_kl = 0.14
    with pytest.raises(ValueError, match=r"step 7: mismatch_kl: seen 0\.1487, expected at most 0\.14 "):
        callback.roll_out(vlm, [batch], step=7)
    stub.logp = -100.0  # exp(95) or so: the first step of a run
    assert fit(tmp_path, max_mismatch_kl=0.1) != 0
    assert "step 0: mismatch_kl: seen " in capsys.readouterr().err
