"""Answers of the server's loop, sixteen written together, against one question after the other.

Every question has a picture; a new one joins as soon as an answer has ended. Before the clock: all answers are equal.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from tools.bench.harness import report
from ts_lightning.data.collate import collate
from ts_lightning.models import VLM, PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Batch, Writing
from ts_lightning.models.generate import generate_answers
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.runs.ask import sample_of

ROWS = 16
ASKED = ("Describe the image.", "What color is the star?", "Where is the star? Give its range across and down.")
MODELS = {"tiny": (48, 64), "hidden_768": (16, 32)}  # questions, longest answer


def make_vlm(name: str) -> VLM:
    """The shipped tiny base, or random weights of hidden size 768 and 6 layers."""
    if name == "tiny":
        return PlainVLM(TinyBackbone(), train=[]).eval()
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 6, "num_heads": 12, "vision_layers": 1}
    return PlainVLM(TinyBackbone(pretrained=None, num_experts=2, **sizes), train=[]).eval()  # type: ignore[arg-type]


def one_by_one(vlm: VLM, rows: Sequence[dict[str, Any]], tokens: int) -> list[str]:
    """The answers, each in a batch of its own."""
    return [generate_answers(vlm, collate([row], vlm.pad_id, "left"), tokens)[0].text for row in rows]


def together(vlm: VLM, rows: Sequence[dict[str, Any]], tokens: int) -> list[str]:
    """The answers of a running batch, which questions join as places become free."""
    batch, answers = Batch(vlm, ROWS), [Writing(tokens) for _ in rows]
    waiting = list(range(len(rows)))
    while waiting or batch.active:
        if joining := waiting[: batch.room]:
            waiting = waiting[len(joining) :]
            batch.join(collate([rows[i] for i in joining], vlm.pad_id, "left"), [answers[i] for i in joining])
        batch.step()
    return [vlm.tokenizer.decode(one.tokens, skip_special_tokens=False).strip() for one in answers]


def main(rounds: int) -> int:
    """Print the ratios of CPU time; status 1 where an answer differs."""
    figures: dict[str, Any] = {}
    correct = True
    for name, (questions, tokens) in MODELS.items():
        vlm = make_vlm(name)
        rows = []
        for number in range(questions):
            picture = jpeg(render(sample_scene(number)))
            rows.append(vlm.encode(sample_of(picture, ASKED[number % len(ASKED)], "understanding"), True))
        expected = one_by_one(vlm, rows, tokens)
        correct &= together(vlm, rows, tokens) == expected
        seconds: dict[str, list[float]] = {"one_by_one": [], "together": []}
        for number in range(rounds):
            steps = [("one_by_one", one_by_one), ("together", together)]
            for way, answer in steps[:: 1 if number % 2 else -1]:
                start = time.process_time()
                answer(vlm, rows, tokens)
                seconds[way].append(time.process_time() - start)
        speed = {f"{way}_questions_per_s": round(questions / statistics.median(s), 2) for way, s in seconds.items()}
        ratios = [alone / joint for alone, joint in zip(*seconds.values(), strict=True)]
        figures[name] = {
            "questions": questions,
            "tokens_an_answer": round(statistics.mean(len(vlm.tokenizer(text)["input_ids"]) for text in expected), 1),
            **speed,
            "speedup": round(statistics.median(ratios), 2),
            "speedup_from_to": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return report("serve", bool(correct), **figures, threads=torch.get_num_threads())
