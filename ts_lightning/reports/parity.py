"""Are a server's answers the trainer's: the same questions to both, and why not where they are not.

Legend: B questions, R those that are still answered, V vocabulary.
"""

import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile, zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ts_lightning.data import Sample, index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.answer import read_answer
from ts_lightning.grounding.boxes import iou
from ts_lightning.models.generate import decode, prefill
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.handover import model_of
from ts_lightning.rl.vllm_engine import as_our_loop, started_vllm
from ts_lightning.rl.vllm_server import OwnServer, Refused, VLLMServer, data_url
from ts_lightning.runs.batch import batch_for
from ts_lightning.runs.load import load

QUANTILES = (0.0, 0.01, 0.05, 0.5)
PICTURE = "<image>"
AT_ONCE = 32  # questions under way
TRIED = 8  # questions that are asked again in other forms, where the answers differ
LISTED = 20  # differing answers that are named
FULL, BAD = 503, (400, 422)  # statuses of a server whose line is full, and of one that does not know a field
Asker = Callable[[Sample], "Told"]


@dataclass(frozen=True)
class Told:
    """One answer: its text, and where they are known its tokens with log-probabilities, and the prompt's tokens.

    `length`: of the prompt, where that alone is known.
    """

    text: str
    tokens: list[str]
    logp: list[float]
    prompt: list[int] | None = None
    length: int | None = None


def own_answers(vlm: VLM, samples: Sequence[Sample], max_new_tokens: int, batch_size: int = 16) -> list[Told]:
    """The trainer's greedy answers."""
    return [
        told
        for start in range(0, len(samples), batch_size)
        for told in vlm.run(_own, samples[start : start + batch_size], max_new_tokens)
    ]


@torch.no_grad()
def _own(vlm: VLM, samples: Sequence[Sample], max_new_tokens: int) -> list[Told]:
    rows = [vlm.encode(sample, for_generation=True) for sample in samples]
    batch, eos = batch_for(vlm, rows), int(vlm.tokenizer.eos_token_id)
    logps: list[Tensor] = []

    def likeliest(logits_RV: Tensor, rows_R: Tensor) -> Tensor:
        logp_R, token_R = logits_RV.float().log_softmax(-1).max(-1)
        logps.append(torch.zeros(len(rows)).index_copy(0, rows_R.cpu(), logp_R.cpu()))
        return token_R

    tokens = torch.stack(list(decode(prefill(vlm, batch), likeliest, {eos}, max_new_tokens)), 1).tolist()
    told = []
    for row, ids, logp in zip(rows, tokens, torch.stack(logps, 1).tolist(), strict=True):
        spoken = list(takewhile(lambda token: token != eos, ids))
        text, prompt = vlm.tokenizer.decode(spoken, skip_special_tokens=False), row["input_ids"].tolist()
        said = ids[: len(spoken) + 1]
        told.append(Told(text.strip(), _texts(vlm, said), logp[: len(said)], prompt, len(prompt)))
    return told


def _texts(vlm: VLM, ids: Sequence[int]) -> list[str]:
    return [vlm.tokenizer.decode([token], skip_special_tokens=False) for token in ids]


def server_asker(server: VLLMServer, vlm: VLM, max_new_tokens: int) -> Asker:
    """Asks a server as its clients do: pictures as they are, turns by its own template.

    Where it has no model of the name that `handover` gives, its first one answers. One that does not know vLLM's own
    fields is asked without them.
    """
    end, models = vlm.tokenizer.eos_token, server.models()
    of_vllm = as_our_loop(vlm) | {"return_token_ids": True}

    def ask(sample: Sample) -> Told:
        name = model_of(vlm, vlm.encoder.task_index(sample.task, sample.key))
        body = {
            "model": name if name in models else models[0],
            "messages": messages_of(vlm, sample),
            "temperature": 0.0,
            "max_tokens": max_new_tokens,
            "logprobs": True,
        }
        try:
            answer = _answer(server, body | of_vllm)
        except Refused as refused:
            if refused.status not in BAD:
                raise
            answer = _answer(server, body)
        choice = answer["choices"][0]
        listed = ((choice.get("logprobs") or {}).get("content")) or []
        text, tokens = choice["message"]["content"] or "", [token["token"] for token in listed]
        if ids := choice.get("token_ids"):  # the same tokens are the same text, whoever puts them together
            text, tokens = vlm.tokenizer.decode(ids, skip_special_tokens=False), _texts(vlm, ids)
        prompt, length = answer.get("prompt_token_ids"), (answer.get("usage") or {}).get("prompt_tokens")
        return Told(text.removesuffix(end).strip(), tokens, [token["logprob"] for token in listed], prompt, length)

    return ask


def _answer(server: VLLMServer, body: dict[str, Any]) -> Any:
    """The answer to a chat request, when its turn comes."""
    end = time.monotonic() + server.patience
    while True:
        try:
            return server.call("/v1/chat/completions", body)
        except Refused as refused:
            if refused.status != FULL or time.monotonic() > end:
                raise
        time.sleep(0.2)


def messages_of(vlm: VLM, sample: Sample) -> list[dict[str, Any]]:
    """The turns of a sample up to its last answer in OpenAI's form; regions as `Encoder.render` writes them."""
    last = max((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), default=len(sample.turns))
    pictures, messages, mentioned = iter(sample.image_bytes), [], set[int]()
    encoder = vlm.encoder.of_task(vlm.encoder.task_index(sample.task, sample.key))
    for turn in sample.turns[:last]:
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(turn.text.split(PICTURE)):
            if number:
                parts.append({"type": "image_url", "image_url": {"url": data_url(next(pictures))}})
            said = None if turn.role == "user" else mentioned
            text = encoder.expand(piece.removeprefix("\n") if number else piece, sample, said)
            if text:
                parts.append({"type": "text", "text": text})
        content: Any = parts if turn.role == "user" else parts[0]["text"]
        messages.append({"role": turn.role, "content": content})
    return messages


def folder_asker(other: VLM, max_new_tokens: int) -> Asker:
    """Asks a second model that is opened here."""
    return lambda sample: own_answers(other, [sample], max_new_tokens)[0]


def compared(vlm: VLM, samples: Sequence[Sample], own: Sequence[Told], theirs: Sequence[Told]) -> dict[str, Any]:
    """Shares of equal answers and prompts, the IoU of boxes in order, and log-probabilities up to the first difference.

    `differing`: which answers differ, and from which token on (None: one is the other's beginning). A box that only one
    of the two has counts as 0. Differences are means over tokens; None where nothing is known.
    """
    overlaps, differences, prompts = list[float](), list[float](), list[bool]()
    for sample, mine, other in zip(samples, own, theirs, strict=True):
        pair = [read_answer(told.text, vlm.codec, sample.sizes, sample.answer_image) for told in (mine, other)]
        both = zip_longest(*([region for region in answer.objects if region.is_box] for answer in pair))
        overlaps += [iou(a.box, b.box) if a and b and a.image == b.image else 0.0 for a, b in both]
        differences += differing(mine, other)
        if other.prompt is not None:
            prompts.append(mine.prompt == other.prompt)
    sorted_overlaps = sorted(overlaps)
    apart = [one for one in zip(samples, own, theirs, strict=True) if one[1].text != one[2].text]
    return {
        "questions": len(samples),
        "equal_answers": sum(a.text == b.text for a, b in zip(own, theirs, strict=True)) / len(samples),
        "equal_prompts": sum(prompts) / len(prompts) if prompts else None,
        "boxes": len(overlaps),
        "mean_iou": sum(overlaps) / len(overlaps) if overlaps else None,
        "iou_quantiles": {str(q): sorted_overlaps[int(q * len(overlaps))] for q in QUANTILES} if overlaps else {},
        "mean_logp_difference": sum(differences) / len(differences) if differences else None,
        "max_logp_difference": max(differences, default=None),
        "tokens": len(differences),
        "differing": [{"question": one.id, **first_difference(a, b)} for one, a, b in apart[:LISTED]],
    }


def first_difference(mine: Told, other: Told) -> dict[str, Any]:
    """The place of the first token that two answers do not share, and what each says there."""
    for place, (own, theirs) in enumerate(zip(mine.tokens, other.tokens, strict=False)):
        if own != theirs:
            return {"token": place, "own": own, "theirs": theirs}
    return {"token": None}


def differing(mine: Told, other: Told) -> list[float]:
    """|difference| of log-probabilities up to and with the first token that the answers do not share.

    Both have read the same until there; the likeliest token's log-probability is no further apart than all of them.
    """
    place = first_difference(mine, other)["token"]
    both = list(zip(mine.logp, other.logp, strict=False))
    return [abs(a - b) for a, b in (both if place is None else both[: place + 1])]


def why_not(vlm: VLM, samples: Sequence[Sample], ask: Asker, max_new_tokens: int, bound: float) -> str:
    """What differs, in words: by asking the questions again with the trainer's own pixels, changed ones, or without."""
    own, theirs = own_answers(vlm, samples, max_new_tokens), [ask(sample) for sample in samples]
    for mine, other in zip(own, theirs, strict=True):
        if mine.prompt is not None and other.prompt is not None and len(mine.prompt) != len(other.prompt):
            pads = [prompt.count(vlm.backbone.image_token_id) for prompt in (mine.prompt, other.prompt)]
            if pads[0] != pads[1]:
                return f"pictures: another resize: {pads[1]} tokens of pictures in place of {pads[0]}"
            return f"prompt: another template: {len(other.prompt)} tokens in place of {len(mine.prompt)}"
        if mine.prompt is not None and other.prompt is not None and mine.prompt != other.prompt:
            place = next(i for i, (a, b) in enumerate(zip(mine.prompt, other.prompt, strict=True)) if a != b)
            return f"prompt: another template: token {other.prompt[place]} in place of {mine.prompt[place]} at {place}"

    bare = [_without_pictures(sample) for sample in samples]
    for sample, mine, other in zip(bare, own, theirs, strict=True):
        if other.prompt is None and other.length not in (None, mine.length):
            seen = f"{other.length} tokens of the prompt in place of {mine.length}"
            if ask(sample).length == own_answers(vlm, [sample], 1)[0].length:
                return f"pictures: another resize: {seen}, and as many without pictures"
            return f"prompt: another template: {seen}"

    def agree(change: Callable[[Sample], Sample], expected: Sequence[Told]) -> bool:
        told = [ask(change(sample)) for sample in samples]
        found = [value for mine, other in zip(expected, told, strict=True) for value in differing(mine, other)]
        return bool(found) and sum(found) / len(found) <= bound

    if agree(lambda sample: _with_pixels(vlm, sample), own):
        return "pictures: another resize: with pixels of the trainer's size the answers are the trainer's"
    if agree(lambda sample: _with_pixels(vlm, sample, reverse=True), own):
        return "pictures: channels in the other order (BGR): with reversed pixels the answers are the trainer's"
    if agree(_without_pictures, own_answers(vlm, bare, max_new_tokens)):
        return "pictures: other pixels (normalisation?) or another vision tower: without pictures the answers are equal"
    return "weights, dtype or code of the language model: questions without pictures differ, too"


def _with_pixels(vlm: VLM, sample: Sample, reverse: bool = False) -> Sample:
    pictures = []
    for data in sample.image_bytes:
        seen = vlm.encoder.seen_picture(data)
        stream = io.BytesIO()
        (Image.merge("RGB", seen.split()[::-1]) if reverse else seen).save(stream, "PNG")
        pictures.append(stream.getvalue())
    changed = replace(sample)
    changed.image_bytes = pictures
    return changed


def _without_pictures(sample: Sample) -> Sample:
    turns = [replace(turn, text=turn.text.replace(f"{PICTURE}\n", "").replace(PICTURE, "")) for turn in sample.turns]
    changed = replace(sample, images=[], turns=turns, regions=[])
    changed.image_bytes = []
    return changed


def _keep(kept: list[Tensor], layer: Any, given: Any, output: Any) -> None:
    kept.append(output[0] if isinstance(output, tuple) else output)


@torch.no_grad()
def first_differing_layer(vlm: VLM, other: VLM, sample: Sample, bound: float) -> str | None:
    """The first decoder layer of two opened models whose output on a prompt differs by more than `bound`."""
    outputs: list[list[Tensor]] = []
    for model in (vlm, other):
        kept: list[Tensor] = []
        hooks = [layer.register_forward_hook(partial(_keep, kept)) for layer in model.backbone.layers]
        prefill(model, batch_for(model, [model.encode(sample, for_generation=True)]))
        for hook in hooks:
            hook.remove()
        outputs.append(kept)
    for number, (a, b) in enumerate(zip(*outputs, strict=True)):
        if a.shape != b.shape or float((a - b).abs().max()) > bound:
            return f"layer {number}"
    return None


def certify_against(
    vlm: VLM,
    against: str,
    samples: Sequence[Sample],
    max_new_tokens: int,
    max_difference: float,
    min_iou: float,
    work: Path,
) -> dict[str, Any]:
    """The certificate of a vlm against "vllm" (a server that is started here), a server's URL, or a model's folder.

    `work`: a folder for a server's log and the weights that it loads. ServerError and ValueError in one line.
    """
    other: VLM | None = None
    server: VLLMServer | None = None
    try:
        if against == "vllm":
            server = started_vllm(vlm, work)
        elif "://" in against:
            server = VLLMServer(against)
        if server is not None:
            ask = server_asker(server, vlm, max_new_tokens)
        else:
            other = load(against, str(vlm.backbone.embedding.weight.device)).vlm
            ask = folder_asker(other, max_new_tokens)
        own = own_answers(vlm, samples, max_new_tokens)
        with ThreadPoolExecutor(AT_ONCE if server is not None else 1) as pool:
            result = compared(vlm, samples, own, list(pool.map(ask, samples)))
        difference, overlap = result["mean_logp_difference"], result["mean_iou"]
        passed = (difference is None or difference <= max_difference) and (overlap is None or overlap >= min_iou)
        passed = passed and (difference is not None or overlap is not None)
        plain = [sample for sample in samples if not any("{region" in turn.text for turn in sample.turns[:-1])]
        tried = [sample for sample in plain if sample.images][:TRIED] or list(samples[:TRIED])
        result["why"] = None if passed else why_not(vlm, tried, ask, max_new_tokens, max_difference)
        if other is not None:
            result["first_differing_layer"] = first_differing_layer(vlm, other, tried[0], max_difference)
    finally:
        if isinstance(server, OwnServer):
            server.close()
    bounds = {"max_logp_difference": max_difference, "min_mean_iou": min_iou}
    return {"against": against, **result, "bounds": bounds, "passed": passed}


def first_samples(shards: str | Sequence[str], limit: int) -> list[Sample]:
    """The first questions of shards, with their pictures."""
    return [*islice(ShardReader(index_shards(shards)), limit)]
