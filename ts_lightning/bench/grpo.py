"""One GRPO step with the prompt read once a group, against the same loop with repeated prompts and against TRL.

Text alone, the tiny decoder at H = 768 with 3 layers and plain MLPs, the MLPs of layers 0 and 2 trainable, KL 0.04.
Log-probabilities and gradients of both forms are compared first. Legend: N completions, S steps.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from ts_lightning.bench.harness import interleave, ratio, relative_error, report, saved_bytes
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.generate import banned_tokens
from ts_lightning.models.moe import MoE
from ts_lightning.rl.log_probs import group_log_probs, tempered
from ts_lightning.rl.rollout import Rollout
from ts_lightning.rl.sampling import sample_groups
from ts_lightning.training import GRPO

GROUP, PROMPT, COMPLETION, KL = 8, 600, 60, 0.04
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 3, "num_heads": 12}
TRAIN = ("*language_model.layers.0.mlp*", "*language_model.layers.2.mlp*")
WORD = " red"


def make_vlm() -> PlainVLM:
    """The policy, the same weights each time; its end mark is a token that is never drawn: completions are full."""
    backbone = TinyBackbone(pretrained=None, **SIZES)  # type: ignore[arg-type]
    for layer in backbone.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp = layer.mlp.experts[0]
    backbone.encoder.tokenizer.eos_token = backbone.encoder.image_token
    return PlainVLM(backbone, train=list(TRAIN)).eval()


def make_batch(vlm: PlainVLM, prompt: int = PROMPT, pictures: int = 0) -> dict[str, Any]:
    """One prompt of so many tokens, pictures included."""
    encoder = vlm.backbone.encoder
    ids = [vlm.backbone.image_token_id] * (encoder.image_tokens * pictures)
    ids += encoder.tokenizer(WORD * (prompt - len(ids)), add_special_tokens=False)["input_ids"]
    assert len(ids) == prompt, "the word is one token"
    pixels = torch.randint(0, 256, (pictures, 3, encoder.image_size, encoder.image_size), dtype=torch.uint8)
    return {
        "input_ids": torch.tensor([ids]),
        "valid": torch.ones(1, prompt, dtype=torch.bool),
        "position_ids": torch.arange(prompt)[None],
        "step_ids": torch.full((1, prompt), -1),
        "pixel_values": pixels,
        "task": torch.ones(1, dtype=torch.long),
        "row_valid": torch.ones(1, dtype=torch.bool),
        "samples": [SimpleNamespace(id="0", where="bench:0")],
    }


def repeat(batch: dict[str, Any]) -> dict[str, Any]:
    """The prompt once for each completion, as trainers without a shared prefix have it."""
    made = {k: v.repeat_interleave(GROUP, 0) for k, v in batch.items() if isinstance(v, Tensor) and k != "pixel_values"}
    names = [SimpleNamespace(id=str(i), where=f"bench:{i}") for i in range(GROUP)]
    return {**made, "pixel_values": torch.cat([batch["pixel_values"]] * GROUP), "samples": names}


def repeated_log_probs(vlm: PlainVLM, batch: dict[str, Any], tokens_NS: Tensor) -> Tensor:
    """[N, S] from prompts repeated for each completion, without a mask; logits at the completions alone."""
    rows = repeat(batch)
    ids = torch.cat([rows["input_ids"], tokens_NS], 1)
    valid = torch.ones_like(ids, dtype=torch.bool)
    rows |= {"input_ids": ids, "valid": valid, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}
    with vlm.routing(rows) as context:
        hidden_NTH = vlm.backbone.decoder(
            inputs_embeds=vlm.embed(rows, context), position_ids=rows["position_ids"], use_cache=False
        ).last_hidden_state
    steps = tokens_NS.shape[1]
    logits_KV = vlm.logits(hidden_NTH[:, -steps - 1 : -1].flatten(0, 1), rows["task"].repeat_interleave(steps))
    logp_KV = tempered(logits_KV, 1.0, banned_tokens(vlm))
    return logp_KV.gather(1, tokens_NS.reshape(-1, 1)).view(tokens_NS.shape)


class Case:
    """One prompt: rollouts and updates with the prefix shared, or not."""

    def __init__(self, prompt: int, completion: int, pictures: int = 0) -> None:
        self.vlm, self.completion = make_vlm(), completion
        self.batch = make_batch(self.vlm, prompt, pictures)
        self.repeated = repeat(self.batch)
        self.tokens_NS = torch.randint(100, 400, (GROUP, completion), generator=torch.Generator().manual_seed(0))
        self.module = GRPO(self.vlm, kl_coeff=KL)
        self.module.reference = None
        self.trainable = [p for p in self.vlm.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-6)
        self.held = [p.detach().clone() for p in self.trainable]

    def roll_out(self, shared: bool, steps: int) -> Any:
        batch, group = (self.batch, GROUP) if shared else (self.repeated, 1)
        return sample_groups(self.vlm, batch, group, steps, stop_after=None)

    def score(self, shared: bool, tokens_NS: Tensor) -> Tensor:
        if shared:
            return group_log_probs(self.vlm, self.batch, [tokens_NS.tolist()]).logp_NT
        return repeated_log_probs(self.vlm, self.batch, tokens_NS)

    def update(self, shared: bool) -> Tensor:
        """Forward and backward of the policy on given completions."""
        logp_NS = self.score(shared, self.tokens_NS)
        weights_N1 = torch.linspace(-1, 1, GROUP)[:, None]
        loss = (logp_NS * weights_N1).mean()
        loss.backward()
        return logp_NS.detach()

    def whole(self, shared: bool, number: int = 0) -> None:
        """Rollout, reference, forward, backward, AdamW: what `GRPO` does in one step, with a reward of no cost."""
        sampled = self.roll_out(shared, self.completion)
        tokens_NS = torch.tensor([t for group in sampled.tokens for t in group])
        with torch.no_grad():
            own = [p.data for p in self.trainable]
            for parameter, value in zip(self.trainable, self.held, strict=True):
                parameter.data = value
            reference_NS = self.score(shared, tokens_NS)
            for parameter, value in zip(self.trainable, own, strict=True):
                parameter.data = value
        advantages = torch.linspace(-1, 1, GROUP)
        mask_NS = torch.ones_like(sampled.logp_NS, dtype=torch.bool)
        rollout = Rollout([[None] * GROUP], sampled.logp_NS, mask_NS, {}, advantages, advantages, 1.0, self.completion)  # type: ignore[list-item]
        self.batch["rollout"] = rollout
        self.optimizer.zero_grad(set_to_none=True)
        logp_NS = self.score(shared, tokens_NS)
        terms = self.module.terms(self.batch, logp_NS, rollout.old_logp_NS, reference_NS)
        (terms.loss.sum() / terms.weight.sum()).backward()
        self.optimizer.step()

    def check(self) -> float:
        """Largest relative error of log-probabilities and gradients between both forms."""
        found = []
        for shared in (True, False):
            self.vlm.zero_grad()
            found.append([self.update(shared), *(p.grad.clone() for p in self.trainable if p.grad is not None)])
        self.vlm.zero_grad()
        return max(relative_error(a, b) for a, b in zip(*found, strict=True))


def _rising(completions: list[Any], **kwargs: Any) -> list[float | None]:
    return [float(i) for i in range(len(completions))]


def trl_steps(rounds: int, ours: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of TRL's whole steps, each followed by one of ours; the first round is warm-up. {} without trl."""
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        return {}
    vlm = make_vlm()
    config: Any = vlm.backbone.model.config.text_config
    tokenizer = copy.deepcopy(vlm.tokenizer)
    tokenizer.padding_side = "left"
    causal = PhiForCausalLM(PhiConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"}))
    causal.model.load_state_dict(vlm.backbone.decoder.state_dict())
    causal.lm_head.weight = causal.model.embed_tokens.weight
    causal.config.eos_token_id = causal.generation_config.eos_token_id = tokenizer.eos_token_id
    seconds: dict[str, list[float]] = {name: [] for name in ("trl", *ours)}
    with tempfile.TemporaryDirectory() as folder:
        causal.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        given = GRPOConfig(
            output_dir=str(Path(folder) / "out"),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=COMPLETION,
            beta=KL,
            loss_type="grpo",
            learning_rate=1e-6,
            max_steps=rounds + 1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            generation_kwargs={"min_new_tokens": COMPLETION},
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        prompts = Dataset.from_list([{"prompt": WORD * PROMPT}] * 8)
        trainer: Any = GRPOTrainer(
            folder,
            reward_funcs=_rising,
            args=given,
            train_dataset=prompts,
            processing_class=tokenizer,
        )
        for name, parameter in trainer.model.named_parameters():
            parameter.requires_grad_(".mlp." in name and (".0." in name or ".2." in name))

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                times = {"trl": time.perf_counter() - self.start}
                for name, step in ours.items():
                    start = time.perf_counter()
                    step()
                    times[name] = time.perf_counter() - start
                if state.global_step > 1:
                    for name, value in times.items():
                        seconds[name].append(value)

        trainer.add_callback(Clock())
        trainer.train()
        seconds["trained_parameters"] = [float(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))]
    return seconds


def main(rounds: int = 3) -> int:
    """Compare both forms, then time rollout, update and whole steps; the ratios are ours / the other."""
    text, pictures, even = Case(PROMPT, COMPLETION), Case(PROMPT, COMPLETION, pictures=4), Case(100, 100)
    error = max(case.check() for case in (text, pictures, even))
    if error > 1e-4:
        return report("grpo", False, ratios={}, max_relative_error=error)
    kept = [
        saved_bytes(lambda shared=shared: text.score(shared, text.tokens_NS), text.vlm.parameters())  # type: ignore[misc]
        for shared in (True, False)
    ]
    ratios: dict[str, float] = {}
    pairs: dict[str, Callable[[bool], Any]] = {
        "update": text.update,
        "rollout_24": lambda shared: text.roll_out(shared, 24),
        "rollout_60": lambda shared: text.roll_out(shared, 60),
        "whole_100_100": even.whole,
        "whole": text.whole,
        "whole_4_pictures": pictures.whole,
    }
    for name, run in pairs.items():
        variants = {"ours": lambda run=run: run(True), "repeated": lambda run=run: run(False)}  # type: ignore[misc]
        ratios[f"{name}/repeated"] = ratio(interleave(variants, rounds), "ours", "repeated")
    peer = trl_steps(rounds, {"ours": lambda: text.whole(True)})
    trained = sum(p.numel() for p in text.trainable)
    if peer:
        ratios["whole/trl"] = ratio(peer, "ours", "trl")
        if peer["trained_parameters"] != [float(trained)]:
            return report("grpo", False, ratios=ratios, trained=[trained, *peer["trained_parameters"]])
    return report(
        "grpo",
        True,
        ratios=ratios,
        saved_bytes_ratio=round(kept[0] / kept[1], 3),
        reference_parameters={"ours": trained, "trl": sum(p.numel() for p in text.vlm.backbone.decoder.parameters())},
        max_relative_error=error,
        trl="measured" if peer else "not installed (pip install trl datasets)",
        cuda="not measured here" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        threads=torch.get_num_threads(),
    )
