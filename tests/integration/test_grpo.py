"""GRPO through the command line: what is logged, the reference, resume, two processes, wrong configurations.

Bitwise: the same steps, their shapes, rows and order alike.
"""

import copy
import csv
import json
import os
import signal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from tests import ranks
from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.data.write import write_shards
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples
from ts_lightning.rl import RolloutCallback
from ts_lightning.rl.completion import Completion
from ts_lightning.runs.load import load
from ts_lightning.training import GRPO

DDP = Path(__file__).parents[2] / "configs/trainer/ddp.yaml"
BACKBONE = copy.deepcopy(tiny.BACKBONE)
BACKBONE["init_args"] |= {"codec": "mirg", "codec_grid": "100"}
VLMS = {
    "twin": ("TwinExpertVLM", {"every": 1, "train_token_rows": ["codec"]}),
    "lora": ("LoRAVLM", {"rank": 4, "dropout": 0.1}),
    "plain": ("PlainVLM", {"train": ["*language_model*"]}),
}

OFTEN = "e"  # in most texts of a policy that knows nothing: its completions are of all lengths
CALLS = count(1)
COUNTED: list[str] = []


def length(completion: Completion, sample: Any) -> float:
    """A reward with variance for a policy that knows nothing: shorter texts."""
    return -len(completion.text) / 50


def deadly(completion: Completion, sample: Any) -> float:
    """`length`; the process is killed at the call that the environment names, if it names one."""
    if next(CALLS) == int(os.environ.get("DIE_AT_CALL", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    return length(completion, sample)


def counted(completion: Completion, sample: Any) -> float:
    """`length`, counted."""
    COUNTED.append(completion.text)
    return length(completion, sample)


def nan(completion: Completion, sample: Any) -> float:
    return float("nan")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mirg")
    write_shards(multi_image_samples("rl", 12), folder, "rl")
    return str(folder / "rl-*.tar")


@pytest.fixture(autouse=True)
def own_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_LIGHTNING_CLASS_PREFIXES", "tests.integration.test_grpo")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def config(shards: str, root: Path, kind: str = "twin", reward: str = "length", **model: Any) -> dict[str, Any]:
    name, args = VLMS[kind]
    vlm = {"class_path": f"ts_lightning.models.{name}", "init_args": {"backbone": BACKBONE, **args}}
    made = tiny.config(shards, root, vlm, **model)
    made["model"]["class_path"] = "ts_lightning.training.GRPO"
    rewards = {"own": f"tests.integration.test_grpo.{reward}", "object": "ts_lightning.rl.object_reward"}
    rollout = {"num_generations": 3, "max_new_tokens": 6, "stop_after": OFTEN, "rewards": rewards}
    callbacks: list[dict[str, Any]] = [{"class_path": "ts_lightning.rl.RolloutCallback", "init_args": rollout}]
    saver = {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
    callbacks.append({"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver})
    made["trainer"]["callbacks"] = callbacks
    return made


def run(given: dict[str, Any], root: Path, *args: str) -> int:
    root.mkdir(parents=True, exist_ok=True)
    return main(["fit", "-c", tiny.save(given, root / "given.yaml"), *args])


def run_on_two_ranks(given: dict[str, Any], root: Path, *args: str) -> None:
    root.mkdir()
    words = ["fit", "-c", tiny.save(given, root / "given.yaml"), "-c", str(DDP), "--trainer.accelerator", "cpu", *args]
    ranks.finish(partial(ranks.command, words), root / "ranks.log", 2)


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metrics.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row.get("train/loss")]
    return [{name: value for name, value in row.items() if tiny.steady(name)} for row in found]


def assert_equal_ends(root: Path, whole: Path) -> None:
    ends = [load(folder / "checkpoints/step=4.ckpt").vlm.trainable_state_dict() for folder in (whole, root)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.fixture(scope="module")
def fitted(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four steps of each kind of policy, checkpoints after two and four."""
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in VLMS}
    os.environ["TS_LIGHTNING_CLASS_PREFIXES"] = "tests.integration.test_grpo"
    for kind, root in roots.items():
        given = config(shards, root, kind)
        given["trainer"]["callbacks"][0]["init_args"]["table_every"] = 2
        assert run(given, root) == 0
    return roots


@pytest.mark.parametrize("kind", VLMS)
def test_kl_is_exactly_zero_at_the_first_step_and_not_later(kind: str, fitted: dict[str, Path]) -> None:
    kl = [float(row["train/kl"]) for row in rows(fitted[kind])]
    assert kl[0] == 0.0
    assert all(value > 0 for value in kl[1:])


def test_kl_is_exactly_zero_in_bf16(shards: str, tmp_path: Path) -> None:
    given = config(shards, tmp_path)
    given["trainer"] |= {"precision": "bf16-mixed", "max_steps": 2}
    assert run(given, tmp_path) == 0
    kl = [float(row["train/kl"]) for row in rows(tmp_path)]
    assert kl[0] == 0.0
    assert kl[1] > 0


def test_the_reference_is_as_exact_after_a_second_setup() -> None:
    module = GRPO(TwinExpertVLM(TinyBackbone()))
    module.trainer = Trainer(precision="bf16-mixed", accelerator="cpu", logger=False, enable_checkpointing=False)
    for stage in ("fit", "validate", "fit"):
        module.setup(stage)
    own, kept = (module.vlm.package_tensors(name) for name in module.vlm.options)
    assert own
    assert all(torch.equal(value, kept[name]) for name, value in own.items())
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("updates", [1, 2])
def test_no_bound_acts_on_the_first_update_in_bf16(updates: int, shards: str, tmp_path: Path) -> None:
    """Through the cache and in one forward 16 bits round differently, by more than a bound of 1e-9 takes."""
    tight = {"class_path": "ts_lightning.losses.GSPO", "init_args": {"clip_low": 1e-9, "clip_high": 1e-9}}
    given = config(shards, tmp_path, kl_coeff=0.0, algorithm=tight, num_iterations=updates)
    given["trainer"] |= {"precision": "bf16-mixed", "max_steps": 2}
    given["trainer"]["callbacks"][0]["init_args"]["num_generations"] = 8
    assert run(given, tmp_path) == 0
    clipped = [float(row["train/clipped"]) for row in rows(tmp_path)]
    assert clipped[0] == 0
    assert (clipped[1] > 0) == (updates == 2)


def test_what_is_logged(fitted: dict[str, Path]) -> None:
    first = rows(fitted["twin"])[0]
    names = {"loss", "kl", "entropy", "clipped", "reward/own", "reward/object", "reward/total", "zero_variance"}
    names |= {"completion_length", "cut_off", "reward_by_task/reasoning", "alpha", "expert_load"}
    assert {f"train/{name}" for name in names} <= first.keys()
    assert 1.5 < float(first["train/completion_length"]) < 5  # of 1 to 6: they are of many lengths
    assert float(first["train/loss"]) == pytest.approx(0, abs=1e-5)  # ratios of one, advantages of mean zero
    lines = (fitted["twin"] / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    assert steps == [0, 1, 2, 3, None]  # the last says that the run is finished; saves write no row again


def test_the_policy_learns_its_reward(shards: str, tmp_path: Path) -> None:
    given = config(shards, tmp_path, "plain", kl_coeff=0.0)
    given["trainer"]["callbacks"][0]["init_args"]["num_generations"] = 8
    given["trainer"] |= {"max_steps": 30, "callbacks": given["trainer"]["callbacks"][:1]}
    assert run(given, tmp_path) == 0
    rewards = [float(row["train/reward/own"]) for row in rows(tmp_path)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05


def test_tables_of_prompts(fitted: dict[str, Path]) -> None:
    record = json.loads((fitted["twin"] / "rollouts/step-000002-0.json").read_text())
    assert len(record["completions"]) == 3
    assert {"text", "advantage", "own", "object"} <= record["completions"][0].keys()
    assert (fitted["twin"] / "rollouts/step-000000-1.png").is_file()


def test_checkpoint_holds_the_reference_and_loads_without_it(fitted: dict[str, Path]) -> None:
    path = fitted["twin"] / "checkpoints/step=4.ckpt"
    stored = torch.load(path, weights_only=True)
    assert not any("reference" in name for name in stored["state_dict"])
    assert any(name.startswith("layers.0.experts") for name in stored["reference"]["tensors"])
    module = load(path)
    assert isinstance(module, GRPO)
    assert module.reference is None
    plain = torch.load(fitted["plain"] / "checkpoints/step=4.ckpt", weights_only=True)
    assert len(plain["reference"]["sha256"]) == 64


@pytest.mark.parametrize("kind", VLMS)
def test_resume_gives_the_same_rewards_losses_and_weights(
    kind: str, fitted: dict[str, Path], shards: str, tmp_path: Path
) -> None:
    middle = fitted[kind] / "checkpoints/step=2.ckpt"
    assert run(config(shards, tmp_path, kind), tmp_path, "--ckpt_path", str(middle)) == 0
    rest = rows(tmp_path)
    assert len(rest) == 2
    assert rest == rows(fitted[kind])[2:]
    assert_equal_ends(tmp_path, fitted[kind])


def test_a_killed_run_goes_on_with_the_same_command(
    fitted: dict[str, Path],
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """SIGKILL at call 40 of the reward: in step 4, twelve completions a step, with a checkpoint after step 2."""
    given = config(shards, tmp_path, reward="deadly")
    words, log = ["fit", "-c", tiny.save(given, tmp_path / "given.yaml")], tmp_path / "died.log"
    with monkeypatch.context() as patched:
        patched.setenv("DIE_AT_CALL", "40")
        (died,) = ranks.start(partial(ranks.command, words), log)
    died.join(900)
    assert died.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")] == ["step=2.ckpt"]
    assert run(given, tmp_path) == 0
    assert "step=2.ckpt after step 2" in capsys.readouterr().out
    assert rows(tmp_path) == rows(fitted["twin"])
    assert_equal_ends(tmp_path, fitted["twin"])


def test_recomputed_layers_draw_no_dropout(fitted: dict[str, Path], shards: str, tmp_path: Path) -> None:
    given = config(shards, tmp_path, "lora")
    given["model"]["init_args"]["vlm"]["init_args"]["activation_checkpointing"] = True
    assert run(given, tmp_path) == 0
    ends = [load(root / "checkpoints/step=4.ckpt").vlm.trainable_state_dict() for root in (fitted["lora"], tmp_path)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=name)


def test_no_reference_without_kl(shards: str, tmp_path: Path) -> None:
    assert run(config(shards, tmp_path, "plain", kl_coeff=0.0), tmp_path) == 0
    assert "reference" not in torch.load(tmp_path / "checkpoints/step=4.ckpt", weights_only=True)
    assert all(float(row["train/kl"]) == 0 for row in rows(tmp_path))


@pytest.mark.parametrize("updates", [1, 2])
def test_two_processes_give_what_one_gives(updates: int, shards: str, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        root = tmp_path / name
        given = config(shards, root)
        given["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
        given["trainer"]["max_steps"] = 2
        if updates > 1:
            given["model"]["init_args"] |= {"num_iterations": updates, "algorithm": DAPO}
        if name == "one":
            assert run(given, root) == 0
        else:
            run_on_two_ranks(given, root)
        made.append(root)
    one, two = (rows(root) for root in made)
    names = [name for name in one[0] if name.startswith("train/")]
    for a, b in zip(one, two, strict=True):
        assert [float(b[n]) for n in names if a[n]] == pytest.approx([float(a[n]) for n in names if a[n]], abs=1e-5)
    ends = [load(root / "checkpoints/step=2.ckpt").vlm.trainable_state_dict() for root in made]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_missing_callback_is_one_line(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = config(shards, tmp_path)
    del given["trainer"]["callbacks"][0]
    assert run(given, tmp_path) == 2
    assert "trainer.callbacks: seen no rollouts, expected a ts_lightning.rl.RolloutCallback" in capsys.readouterr().err


def test_a_reward_that_is_no_number_names_itself_and_the_sample(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(config(shards, tmp_path, reward="nan"), tmp_path) == 2
    error = capsys.readouterr().err
    assert "reward own: seen nan, expected a finite number" in error
    assert "rl-000000.tar:mig" in error or "rl-00000" in error


def test_a_prompt_without_room_is_one_line(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = config(shards, tmp_path)
    given["trainer"]["callbacks"][0]["init_args"]["max_new_tokens"] = 2047
    assert run(given, tmp_path) == 2
    assert "tokens and max_new_tokens 2047, expected at most 2048 together" in capsys.readouterr().err


DAPO = {"class_path": "ts_lightning.losses.DAPO", "init_args": {"clip_low": 0.001, "clip_high": 0.001}}


def several_updates(shards: str, root: Path, reward: str = "length", **model: Any) -> dict[str, Any]:
    """Two iterations of two mini-batches over every rollout, with bounds that act soon."""
    schedule = {"class_path": "ts_lightning.training.schedule.WarmupCosine", "init_args": {"total_steps": 6}}
    updates = {"num_iterations": 2, "num_mini_batches": 2, "lr_scheduler": schedule}
    given = config(shards, root, algorithm=DAPO, **updates, **model)
    given["data"]["init_args"] |= {"global_batch_size": 4, "micro_batch_size": 1}
    given["trainer"]["max_steps"] = 6
    rewards = {"own": f"tests.integration.test_grpo.{reward}"}
    given["trainer"]["callbacks"][0]["init_args"] |= {"rewards": rewards, "table_every": 2}
    return given


@pytest.fixture(scope="module")
def several(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after steps 2 (of four updates of a rollout) and 4 (the rollout is over)."""
    whole = tmp_path_factory.mktemp("several") / "whole"
    os.environ["TS_LIGHTNING_CLASS_PREFIXES"] = "tests.integration.test_grpo"
    assert run(several_updates(shards, whole), whole) == 0
    return whole


def test_several_updates_of_a_rollout_and_resume_in_their_middle(shards: str, several: Path, tmp_path: Path) -> None:
    """Bounds act when the policy has moved."""
    whole, rest = several, tmp_path / "rest"
    steps = rows(whole)
    assert float(steps[0]["train/clipped"]) == 0
    assert all(float(row["train/clipped"]) > 0 for row in steps[2:4])
    tables = {path.name[:11] for path in (whole / "rollouts").iterdir()}
    assert tables == {"step-000000"}  # of every second rollout: the next was made at step 4
    rewards = [row["train/reward/own"] for row in steps]
    assert len(set(rewards[:4])) == len(set(rewards[4:])) == 1
    assert "rollout" not in torch.load(whole / "checkpoints/step=4.ckpt", weights_only=True)
    middle = whole / "checkpoints/step=2.ckpt"
    assert torch.load(middle, weights_only=True)["rollout"]["updates"] == 2
    COUNTED.clear()
    assert run(several_updates(shards, rest, reward="counted"), rest, "--ckpt_path", str(middle)) == 0
    assert len(COUNTED) == 12  # of the next rollout alone: the first one's are in the checkpoint
    assert rows(rest) == steps[2:]
    ends = [load(folder / "checkpoints/step=6.ckpt").vlm.trainable_state_dict() for folder in (whole, rest)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_constrained_rollouts_are_scored_under_their_masks_and_resume(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds of a thousandth: the first ratios are 1 only among the tokens that could be drawn."""
    own_logits = TwinExpertVLM.logits

    def begins_boxes(vlm: TwinExpertVLM, *args: Any) -> torch.Tensor:
        opening = vlm.tokenizer.convert_tokens_to_ids("<|box_start|>")
        return own_logits(vlm, *args) + torch.eye(len(vlm.tokenizer))[opening] * 7

    monkeypatch.setattr(TwinExpertVLM, "logits", begins_boxes)
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    for root, args in ((whole, []), (rest, ["--ckpt_path", str(whole / "checkpoints/step=2.ckpt")])):
        given = several_updates(shards, root, kl_coeff=0.1)
        given["trainer"]["callbacks"][0]["init_args"] |= {"constrain": True, "max_new_tokens": 60, "stop_after": None}
        assert run(given, root, *args) == 0
    steps = rows(whole)
    assert float(steps[0]["train/clipped"]) == 0
    assert float(steps[0]["train/kl"]) < 1e-6
    assert float(steps[2]["train/clipped"]) > 0
    assert rows(rest) == steps[2:]
    kept = torch.load(whole / "checkpoints/step=2.ckpt", weights_only=True)["rollout"]["prompts"]
    vlm = load(whole / "checkpoints/step=2.ckpt").vlm
    texts = [vlm.tokenizer.decode(ids) for prompt in kept for ids in prompt["tokens"]]
    boxes = sum(len(mention.boxes) for text in texts for mention in vlm.codec.parse_strict(text, (1, 1)))
    assert sum(text.count("<|box_start|>") for text in texts) == boxes > 5


def test_a_rollout_goes_on_on_another_number_of_ranks(shards: str, several: Path, tmp_path: Path) -> None:
    """The same completions, rewards and micro-batches; sums over ranks round differently.

    From one rank to two after the second of four updates, and from these two to one after the third.
    """
    two, one = tmp_path / "two", tmp_path / "one"
    starts = {two: several / "checkpoints/step=2.ckpt", one: two / "checkpoints/step=3.ckpt"}
    for root, start in starts.items():
        given = several_updates(shards, root)
        given["trainer"]["max_steps"] = 4
        given["trainer"]["callbacks"][1]["init_args"]["every_n_train_steps"] = 1
        (run_on_two_ranks if root == two else run)(given, root, "--ckpt_path", str(start))
        assert torch.load(start, weights_only=True)["rollout"]["updates"] == (2 if root == two else 3)
    third, fourth = rows(several)[2:4]
    for seen, expected in zip([*rows(two), *rows(one)], [third, fourth, fourth], strict=True):
        assert seen["train/reward/own"] == expected["train/reward/own"]
        names = [name for name in expected if name.startswith("train/") and expected[name]]
        assert [float(seen[n]) for n in names] == pytest.approx([float(expected[n]) for n in names], abs=1e-5)


def test_overfitting_that_begins_again_in_the_middle_of_a_rollout(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches of two updates each: prompts a a b, a a b. The second a is answered anew, in a resumed run, too."""
    answered, trained = list[list[str]](), list[list[str]]()
    losses = GRPO.row_losses
    roll_out = RolloutCallback.roll_out

    def drawn(self: RolloutCallback, vlm: Any, micro_batches: Any, *more: Any) -> Any:
        answered.append([sample.id for micro in micro_batches for sample in micro["samples"]])
        return roll_out(self, vlm, micro_batches, *more)

    def seen(self: GRPO, batch: dict[str, Any]) -> Any:
        trained.append([sample.id for sample in batch["samples"]])
        assert batch["rollout"].ids == trained[-1]
        return losses(self, batch)

    monkeypatch.setattr(RolloutCallback, "roll_out", drawn)
    monkeypatch.setattr(GRPO, "row_losses", seen)
    given = config(shards, tmp_path, num_iterations=2, kl_coeff=0.0)
    given["data"]["init_args"] |= {"global_batch_size": 2, "micro_batch_size": 2}
    given["trainer"] |= {"max_steps": 6, "overfit_batches": 3}
    given["trainer"]["callbacks"][1]["init_args"]["every_n_train_steps"] = 3
    assert run(given, tmp_path) == 0
    first, second = trained[0], trained[2]
    assert first != second
    assert trained == [first, first, second] * 2
    assert answered == [first, second] * 2
    (rest := tmp_path / "rest").mkdir()
    again = given | {"trainer": given["trainer"] | {"default_root_dir": str(rest)}}
    assert run(again, rest, "--ckpt_path", str(tmp_path / "checkpoints/step=3.ckpt")) == 0
    assert (trained[6:], answered[4:]) == ([first, first, second], [first, second])


def test_a_prompt_without_room_is_a_bad_record(shards: str, tmp_path: Path) -> None:
    """One record of six has a prompt of 2,010 tokens: of 2,048 there are fewer left than the 40 of a completion."""
    samples = [tiny.sample(i, "rec") for i in range(6)]
    samples[3].turns[0].text += " a" * 1995
    write_shards(samples, tmp_path / "long", "long")
    given = config(str(tmp_path / "long/*.tar"), tmp_path / "run", kl_coeff=0.0)
    given["data"]["init_args"] |= {"global_batch_size": 6, "max_bad_fraction": 0.2}
    given["trainer"]["max_steps"] = 2
    given["trainer"]["callbacks"][0]["init_args"]["max_new_tokens"] = 40
    assert run(given, tmp_path / "run") == 0
    assert len(rows(tmp_path / "run")) == 2


def test_fewer_updates_than_are_done_are_refused(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    given = several_updates(shards, first)
    given["trainer"]["max_steps"] = 2
    assert run(given, first) == 0
    again = several_updates(shards, second)
    again["model"]["init_args"]["num_iterations"] = 1
    assert run(again, second, "--ckpt_path", str(first / "checkpoints/step=2.ckpt")) == 2
    assert "seen 2 updates on one batch, expected fewer than 2 (num_iterations or num" in capsys.readouterr().err


def test_mini_batches_have_to_divide_the_micro_batches(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = several_updates(shards, tmp_path)
    given["model"]["init_args"]["num_mini_batches"] = 3
    assert run(given, tmp_path) == 2
    assert "num_mini_batches: seen 3, expected a divisor of the 4 micro-batches of a rank" in capsys.readouterr().err
