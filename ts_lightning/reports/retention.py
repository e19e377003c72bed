"""The retention certificate: proof that tuning left the understanding side of a model untouched."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ts_lightning.metrics import AnswerAccuracy

Batch = Mapping[str, Any]
MOVED = (".understanding", ".base_layer")  # where a twin layer and an adapter keep the module they replace


def tensor_sha256(tensor: Tensor) -> str:
    """Sha256 over shape, dtype and bytes of one tensor."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + data.tobytes()).hexdigest()


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones under each of their names, buffers that are not saved included."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def compare_frozen(tuned: nn.Module, untouched: nn.Module) -> dict[str, Any]:
    """Compare every tensor of the untouched base with its namesake in the tuned model, by sha256.

    A twin layer moves a frozen MLP to `.understanding`, an adapter a matrix to `.base_layer`. A tensor
    that the tuned model lacks, or that could still train, counts as differing.
    """
    ours = {reduce(lambda n, part: n.replace(part, ""), MOVED, k): v for k, v in named_tensors(tuned).items()}
    digests, differing = {}, []
    for name, tensor in sorted(named_tensors(untouched).items()):
        digests[name] = tensor_sha256(tensor)
        mine = ours.get(name)
        if mine is None or mine.requires_grad or tensor_sha256(mine) != digests[name]:
            differing.append(name)
    return {"tensors_compared": len(digests), "differing": differing, "sha256": digests}


@torch.no_grad()
def compare_logits(
    tuned_logits: Callable[[Batch], Tensor], untouched_logits: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> dict[str, Any]:
    """Bitwise comparison (`torch.equal`) of the logits [N, V] that both models give on the same understanding batches.

    Both run here, in one process, with the same shapes, dtype and threads: that is what makes equality exact. Columns
    of tokens that the tuned model added have to be -inf.
    """
    found: dict[str, Any] = {"batches": 0, "positions": 0, "max_abs_diff": 0.0, "bitwise_equal": True}
    for batch in batches:
        if bool((batch["task"] != 0).any()):
            raise ValueError("retention batches: seen a row of a skill, expected rows of task understanding only")
        ours, theirs = tuned_logits(batch), untouched_logits(batch)
        found["batches"] += 1
        found["positions"] += theirs.numel() // theirs.shape[-1]
        ours, added = ours[..., : theirs.shape[-1]], ours[..., theirs.shape[-1] :]
        if ours.shape != theirs.shape or bool((added > -torch.inf).any()):
            found.update(bitwise_equal=False, max_abs_diff=float("inf"))
        elif not torch.equal(ours, theirs):
            difference = (ours.double() - theirs.double()).abs().max().item()
            found.update(bitwise_equal=False, max_abs_diff=max(found["max_abs_diff"], difference))
    return found


@torch.no_grad()
def answer_accuracy(
    answer: Callable[[Batch], list[str]], prompts: Iterable[Batch]
) -> tuple[float | None, int, list[str]]:
    """Accuracy of generated answers against the accepted ones (None without any), their number, and the texts."""
    metric, texts = AnswerAccuracy(), list[str]()
    for batch in prompts:
        answered = answer(batch)
        accepted = [sample.accepted_answers for sample in batch["samples"]]
        rows = [i for i, answers in enumerate(accepted) if answers and batch["row_valid"][i]]
        metric.update([answered[i] for i in rows], [accepted[i] for i in rows])
        texts += [answered[i] for i in rows]
    return metric.compute()["accuracy"].item() if texts else None, len(texts), texts


def changed(
    quantized: Any, full: Any, batches: Iterable[Batch], prompts: Iterable[Batch], max_new_tokens: int = 32
) -> dict[str, Any]:
    """What quantisation itself changed of a base, on the batches of `certify`: logits, accuracy, answers."""
    logits = compare_logits(lambda batch: quantized(batch)["logits"], lambda batch: full(batch)["logits"], batches)
    prompts = list(prompts)
    after, _, texts = answer_accuracy(lambda batch: quantized.generate(batch, max_new_tokens), prompts)
    before, _, full_texts = answer_accuracy(lambda batch: full.generate(batch, max_new_tokens), prompts)
    return {
        "max_abs_diff": logits["max_abs_diff"],
        "accuracy": {"full": before, "quantised": after},
        "answers_changed": sum(a != b for a, b in zip(texts, full_texts, strict=True)),
    }


def certify(
    tuned: Any,
    untouched: Any,
    batches: Iterable[Batch],
    prompts: Iterable[Batch],
    max_new_tokens: int = 32,
) -> dict[str, Any]:
    """The certificate, as plain values for JSON; `passed` only if everything is the same and something was compared.

    tuned, untouched: VLMs over the tuned and over a freshly loaded backbone; called with a batch they give `logits` at
    the loss positions, `generate` gives texts. batches: understanding rows with their answers (right padded);
    prompts: the same questions for generation (left padded).
    """
    if tuned.backbone.model is untouched.backbone.model:
        raise ValueError("certify: seen one model twice, expected a freshly loaded untouched base")
    frozen = compare_frozen(tuned.backbone.model, untouched.backbone.model)
    logits = compare_logits(lambda batch: tuned(batch)["logits"], lambda batch: untouched(batch)["logits"], batches)
    prompts = list(prompts)
    after, questions, texts = answer_accuracy(lambda batch: tuned.generate(batch, max_new_tokens), prompts)
    before, _, base_texts = answer_accuracy(lambda batch: untouched.generate(batch, max_new_tokens), prompts)
    changed = sum(a != b for a, b in zip(texts, base_texts, strict=True))
    passed = not frozen["differing"] and frozen["tensors_compared"] > 0
    passed = passed and logits["bitwise_equal"] and logits["positions"] > 0 and questions > 0 and changed == 0
    return {
        "passed": passed,
        "tensors_compared": frozen["tensors_compared"],
        "differing": frozen["differing"],
        "logits": logits,
        "accuracy": {"before": before, "after": after, "questions": questions, "answers_changed": changed},
        "sha256": frozen["sha256"],
    }
