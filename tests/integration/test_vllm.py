"""With a real vLLM: rollouts of a policy that trains, packages and an adapter in one server, one that is killed.

Skipped where TS_LIGHTNING_VLLM_PYTHON does not name an interpreter with vLLM (`make vllm`).
TS_LIGHTNING_VLLM_QUESTIONS=200 asks as many questions as docs/vllm.md tells of; `-s` prints what was seen.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.models.hf_checks import sample, steps
from tests.unit.models.hf_families import FAMILIES, ROPE, make_folder
from tests.unit.reports.planted import Change, bgr, changed, nearest
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Sample
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.generate import decode, prefill
from ts_lightning.models.vlm import VLM
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples
from ts_lightning.reports import parity
from ts_lightning.rl import RolloutCallback, VLLMEngine
from ts_lightning.rl.handover import served
from ts_lightning.rl.vllm_engine import request_of
from ts_lightning.rl.vllm_server import MORE, PYTHON, OwnServer, Said, VLLMServer

pytestmark = [
    pytest.mark.skipif(not os.environ.get(PYTHON), reason=f"{PYTHON} names no interpreter with vLLM (make vllm)"),
    pytest.mark.slow,
]
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
SMALL = '--enforce-eager --max-num-seqs 32 --limit-mm-per-prompt \'{"image":2,"video":0}\''
QUESTIONS = int(os.environ.get("TS_LIGHTNING_VLLM_QUESTIONS", "12"))
AT_ONCE, TOKENS = 32, 16
TOLERANCE = 1e-3  # of log-probabilities
TIE = 1e-4  # two tokens whose log-probabilities are nearer are equally likely: an engine may say either
PARTS = ("boxes", "one", "thin", "lora")


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (CPU | {MORE: SMALL}).items():
            patch.setenv(name, value)
        yield


def small_folder(name: str, place: Path) -> Path:
    """A small model of random weights with heads of a size that vLLM's attention has."""
    family = FAMILIES[name]
    config = copy.deepcopy(family.config)
    config["text_config"] |= {"hidden_size": 128, "head_dim": 32}
    if "rope_parameters" in config["text_config"]:
        config["text_config"]["rope_parameters"] = {**ROPE, "mrope_section": [4, 6, 6]}
    vision = {
        "qwen2_vl": {"embed_dim": 64, "hidden_size": 128},
        "qwen2_5_vl": {"hidden_size": 64, "out_hidden_size": 128},
    }
    config["vision_config"] |= vision.get(name, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "config", config)
        folder = make_folder(name, place)
    file = folder / "model.safetensors"
    published = {key.replace("vision_tower.", "vision_tower.vision_model."): v for key, v in load_file(file).items()}
    save_file(published, file, {"format": "pt"})  # transformers 5 writes a CLIP tower's names shorter
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder("qwen2_vl", tmp_path_factory.mktemp("vllm") / "base")


def backbone(folder: Path) -> QwenVLBackbone:
    return QwenVLBackbone(pretrained=str(folder), codec="scout", max_length=512, max_pixels=28 * 28 * 16)


def shaken(vlm: VLM) -> VLM:
    """Another vlm than its base."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return vlm.eval()


@pytest.fixture(scope="module")
def parts(folder: Path) -> dict[str, VLM]:
    made: dict[str, VLM] = {
        "boxes": shaken(TwinExpertVLM(backbone(folder), package="boxes", alpha_init=0.3)),
        "one": shaken(TwinExpertVLM(backbone(folder), package="one", every=1, num_experts=1)),
        "thin": shaken(TwinExpertVLM(backbone(folder), package="thin", every=1, num_experts=3, top_k=2, expert_rank=8)),
        "lora": shaken(LoRAVLM(backbone(folder), rank=4, targets=("q_proj", "down_proj"))),
    }
    for name, vlm in made.items():
        vlm.save_pretrained(folder.parent / name)  # type: ignore[operator]
    return made


@pytest.fixture(scope="module")
def server(folder: Path, parts: dict[str, VLM]) -> Iterator[OwnServer]:
    """One server of the base, three packages and an adapter."""
    packages = {name: folder.parent / name for name in PARTS[:-1]}
    arguments = served(parts["boxes"], packages)
    arguments[arguments.index("--max-loras") + 1] = str(len(PARTS))
    arguments += [f"lora={folder.parent / 'lora'}", "--max-lora-rank", "8"]
    own = OwnServer(folder, arguments=arguments, log=folder.parent / "vllm.log")
    own.start()
    yield own
    own.close()


class Greedy(NamedTuple):
    """The trainer's tokens of one answer, their log-probabilities [S], and each step's second choice with its own."""

    tokens: list[int]
    logp: list[float]
    second: list[int]
    second_logp: list[float]


@torch.no_grad()
def own_answers(vlm: VLM, samples: Sequence[Sample]) -> list[Greedy]:
    return [one for start in range(0, len(samples), 16) for one in vlm.run(_own, samples[start : start + 16])]


def _own(vlm: VLM, samples: Sequence[Sample]) -> list[Greedy]:
    batch, eos = collate([vlm.encode(one, True) for one in samples], vlm.pad_id, "left"), vlm.tokenizer.eos_token_id
    found: list[list[tuple[int, float, int, float]]] = [[] for _ in samples]

    def likeliest(logits_RV: Tensor, rows_R: Tensor) -> Tensor:
        logp_R2, token_R2 = logits_RV.float().log_softmax(-1).topk(2)
        for row, logp, token in zip(rows_R.tolist(), logp_R2.tolist(), token_R2.tolist(), strict=True):
            if not found[row] or found[row][-1][0] != eos:
                found[row].append((token[0], logp[0], token[1], logp[1]))
        return token_R2[:, 0]

    list(decode(prefill(vlm, batch), likeliest, {int(eos)}, TOKENS))
    return [Greedy(*map(list, zip(*row, strict=True))) for row in found]


def told(server: VLLMServer, asked: Sequence[tuple[VLM, Sample]]) -> list[Said]:
    """The server's greedy answers, `AT_ONCE` of them under way: who answers is a matter of each question."""

    def ask(one: tuple[VLM, Sample]) -> Said:
        vlm, question = one
        batch = collate([vlm.encode(question, True)], vlm.pad_id)
        request = request_of(vlm, batch, 1, TOKENS, 0.0, 1.0, None)
        name = "lora" if isinstance(vlm, LoRAVLM) else request.models[0]
        return server.generate(request.prompts, request.sampling, name)[0][0]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, asked))


def check(name: str, own: Sequence[Greedy], theirs: Sequence[Said]) -> None:
    """Equal answers but for ties, log-probabilities within `TOLERANCE` up to there."""
    equal, ties, differences = 0, list[float](), list[float]()
    for mine, said in zip(own, theirs, strict=True):
        pairs = list(zip(mine.tokens, said.token_ids, strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        differences += [abs(a - b) for a, b in zip(mine.logp[:same], said.logp[:same], strict=True)]
        if mine.tokens == said.token_ids:
            equal += 1
            continue
        assert same < len(pairs), name  # one is no beginning of the other
        assert said.token_ids[same] == mine.second[same], name
        ties.append(mine.logp[same] - mine.second_logp[same])
    print(
        f"\n{name}: {equal} of {len(own)} answers equal, gaps of the others {ties}; log-probabilities of "
        f"{len(differences)} tokens within {max(differences):.2g}"
    )
    assert max(ties, default=0.0) < TIE, name
    assert max(differences) < TOLERANCE, name


def questions(task: str, count: int = QUESTIONS) -> list[Sample]:
    if task == "understanding":
        return list(understanding_samples("val", count))
    return list(grounding_samples("val", count, ("localization", "rec")))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_answers_are_the_trainers_before_and_after_steps_of_training(name: str, tmp_path: Path) -> None:
    folder = small_folder(name, tmp_path / "base")
    made: Any = LlavaBackbone(str(folder), max_length=512) if name == "llava" else backbone(folder)
    vlm = PlainVLM(made).eval()
    engine = VLLMEngine(folder=str(tmp_path))
    asked = [one for pair in zip(questions("grounding"), questions("understanding"), strict=True) for one in pair]
    asked = asked[:QUESTIONS]
    try:
        for taken in (0, 5):
            if taken:
                steps(vlm, asked[:4], taken)
            engine.hand_over(vlm, taken)
            assert isinstance(engine.server, OwnServer)
            check(f"{name}, {taken} steps", own_answers(vlm, asked), told(engine.server, [(vlm, one) for one in asked]))
    finally:
        if isinstance(engine.server, OwnServer):
            engine.server.close()


def test_packages_an_adapter_and_the_base_in_one_batch(server: OwnServer, parts: dict[str, VLM], folder: Path) -> None:
    """Understanding is answered as by a server without packages, grounding as by the trainer."""
    assert {"base", *PARTS} <= set(server.models())
    base = PlainVLM(backbone(folder), train=[]).eval()
    understanding = [(base, one) for one in questions("understanding", QUESTIONS // 2)]
    grounding = list[tuple[VLM, Sample]]()
    for number, one in enumerate(questions("grounding", QUESTIONS // 2)):
        name = PARTS[number % len(PARTS)]
        one.task = "grounding" if name == "lora" else name
        grounding.append((parts[name], one))
    mixed = [one for pair in zip(understanding, grounding, strict=True) for one in pair]
    answers = told(server, mixed)
    plain = OwnServer(folder, arguments=served(base, {}), log=folder.parent / "plain.log")
    try:
        plain.start()
        alone = told(plain, understanding)
    finally:
        plain.close()
    check("understanding", own_answers(base, [one for _, one in understanding]), answers[::2])
    for number, name in enumerate(PARTS):
        its = [one for _, one in grounding[number :: len(PARTS)]]
        check(name, own_answers(parts[name], its), answers[1::2][number :: len(PARTS)])
        assert any(
            a.tokens != b.tokens for a, b in zip(own_answers(parts[name], its), own_answers(base, its), strict=True)
        )
    assert [one.token_ids for one in answers[::2]] == [one.token_ids for one in alone]
    apart = [abs(a - b) for x, y in zip(answers[::2], alone, strict=True) for a, b in zip(x.logp, y.logp, strict=True)]
    print(f"understanding with and without packages: {len(apart)} tokens, log-probabilities {max(apart):.2g} apart")
    assert max(apart) < 1e-6


def test_what_differs_is_named(server: OwnServer, parts: dict[str, VLM], folder: Path) -> None:
    """As clients ask, the server reads the trainer's own prompts; a trainer of smaller pictures has others."""
    samples = [sample("understanding", 1, (80, 60), seed=i) for i in range(6)]
    own = parity.own_answers(parts["boxes"], samples, 8)
    theirs = [parity.server_asker(server, parts["boxes"], 8)(one) for one in samples]
    assert parity.compared(parts["boxes"], samples, own, theirs)["equal_prompts"] == 1.0
    smaller = TwinExpertVLM(QwenVLBackbone(str(folder), codec="scout", max_length=512, max_pixels=28 * 28 * 4))
    ask = parity.server_asker(server, smaller, 8)
    assert parity.why_not(smaller, samples, ask, 8, 1e-3).startswith("pictures: another resize")


class Planted(VLLMServer):
    """The same server with a fault in what happens to pictures on the way."""

    def __init__(self, url: str, change: Change) -> None:
        super().__init__(url)
        self.change = change

    def call(self, path: str, body: Any = None, patience: float | None = None) -> Any:
        return super().call(path, changed(body, self.change) if body and "messages" in body else body, patience)


def test_planted_preprocessing_fails_the_certificate_and_is_named(
    server: OwnServer, parts: dict[str, VLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, asked = parts["boxes"], questions("grounding", 6)
    for one in asked:
        one.task = "boxes"
    faults = {
        "pictures: channels in the other order (BGR)": bgr,
        "pictures: another resize: with pixels": nearest(vlm.encoder.resized),
    }
    for why, change in faults.items():
        monkeypatch.setattr(parity, "VLLMServer", partial(Planted, change=change))
        found = parity.certify_against(vlm, server.url, asked, 8, TOLERANCE, 0.999, tmp_path)
        assert not found["passed"], why
        assert found["why"].startswith(why), found["why"]


def test_a_policy_that_trains_and_a_server_that_is_killed(
    server: OwnServer, parts: dict[str, VLM], folder: Path
) -> None:
    vlm = parts["boxes"]
    samples = questions("grounding", 3)
    for one in samples:
        one.task = "boxes"
    batch = collate([vlm.encode(one, True) for one in samples], vlm.pad_id)
    callback = RolloutCallback(num_generations=3, max_new_tokens=6, engine=VLLMEngine(url=server.url))
    for step in range(3):
        if step == 2:
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            server.start()
        rollout = callback.roll_out(vlm, [batch], step)[0]
        assert callback.figures["mismatch_kl"] < 1e-6
        assert rollout.weight_NS is not None
        torch.testing.assert_close(rollout.weight_NS, torch.ones_like(rollout.weight_NS), atol=1e-3, rtol=0)
        shaken(vlm)  # a step of the optimizer
