"""`ts-lightning evaluate`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ts_lightning.cli.configurations import SHIPPED, find_configuration, read_configuration
from ts_lightning.cli.lightning import main as lightning
from ts_lightning.grounding import get_codec
from ts_lightning.grounding.resizing import resize_rule
from ts_lightning.metrics.answer_files import answer_codec, join, read_answers
from ts_lightning.metrics.class_mapping import ClassMapper, sentence_embedder
from ts_lightning.metrics.gic import SYNONYMS, caption_pairs, score_captions
from ts_lightning.metrics.gic_names import PROMPT, AskedPairs
from ts_lightning.metrics.judge import judge as judge_answers
from ts_lightning.metrics.predictions import completeness, read_own
from ts_lightning.metrics.region_class import SUBTASK, score_region_class
from ts_lightning.metrics.robustness import by_noise, noise_table, plot_noise
from ts_lightning.metrics.submission import write_submission
from ts_lightning.metrics.suites import by_suite, judged_entry, score_suites
from ts_lightning.pipelines.llm_client import OpenAIChat, RequestFailed
from ts_lightning.pipelines.response_cache import CachedChat
from ts_lightning.reports.suite_report import markdown, write_suite_report
from ts_lightning.runs.load import load

Record = Mapping[str, Any]
JUDGED = ("mmvet", "llava_bench")


def evaluate(
    *,
    out: Path,
    ckpt: Path | None = None,
    suites: list[str] = (),  # type: ignore[assignment]
    task: str = "given",
    alpha: float | None = None,
    predictions: Path | None = None,
    format: Literal["ours", "lmms-eval", "vlmevalkit"] = "ours",
    shards: list[str] = (),  # type: ignore[assignment]
    suite: str = "predictions",
    codec: str = "scout",
    grid: str | None = None,
    frame: Literal["original", "padded_square", "resized"] | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    processor: Path | None = None,
    protocol: str | None = None,
    allow_missing: bool = False,
    annotations: Path | None = None,
    embedder: str | None = None,
    threshold: float | None = None,
    names_alone: bool = False,
    box_score: Literal["similarity", "one"] = "similarity",
    extract: str | None = None,
    judge: str | None = None,
    base_url: str | None = None,
    submission: Path | None = None,
    title: str = "Evaluation",
    overrides: Sequence[str] = (),
) -> int:
    r"""Answer suites with a checkpoint and score them, or score stored answers without a model: one report.

        ts-lightning evaluate --ckpt last.ckpt --suites eval/toy.yaml --out outputs/report
        ts-lightning evaluate --predictions outputs/report/predictions.jsonl --out outputs/scores
        ts-lightning evaluate --predictions samples.jsonl --format lmms-eval --shards 'refcoco/testA-*.tar' \
            --suite refcoco_testA --codec shikra --grid decimals:3 --frame original --out outputs/scores

    Writes report.json, report.md and report.html; answers stay in OUT/predictions.jsonl, where `evaluate --predictions`
    and `compare` read them again. Any --trainer.X, --model.X and --data.X of `predict` goes to the answering.

    Suites: {suites}

    Args:
        out: folder for the report, and for the answers of --ckpt
        ckpt: checkpoint, package, adapter or standalone folder that answers --suites
        suites: configurations with suites, such as eval/rec.yaml
        task: whose task answers: given (the record's), auto (the task router's), or one for every question
        alpha: the mixing weight, in place of the learned one
        predictions: stored answers, in place of --ckpt
        format: of the stored answers
        shards: the questions with their truth; needed unless the stored answers have it
        suite: name of the suite, with --shards
        codec: the notation of the answers' boxes, with --shards
        grid: another grid than the notation's own: 100, 1000, decimals:n, pixels
        frame: another picture than the notation's own that the numbers refer to
        min_pixels: least area of the resized picture, for answers in pixels of it
        max_pixels: its greatest area
        processor: folder with a preprocessor_config.json that says both
        protocol: how to score, in place of what follows from a suite's name or truth
        allow_missing: with --shards: missing answers count as wrong
        annotations: COCO's instances_*.json, for grounded captions and region classification
        embedder: folder of a sentence transformer (the packaged MiniLM when missing), for names without a class
        threshold: cosine below which a name has no class (0.65; none for region classification)
        names_alone: grounded captions without synonyms, as in the paper
        box_score: the score of a box in COCO AP of captions
        extract: openai:MODEL[@URL], who names the boxes of captions; a grammar when missing
        judge: the model that judges MM-Vet and LLaVA-Bench
        base_url: the judge's OpenAI-compatible server; the key comes from OPENAI_API_KEY
        submission: tab-separated file for MMBench's server
        title: of the report
        overrides: options of `predict`
    """
    if (ckpt is None) == (predictions is None):
        raise ValueError("evaluate: seen not one of --ckpt and --predictions, expected one of them")
    resize = resize_rule(min_pixels, max_pixels, processor) if min_pixels or max_pixels or processor else None
    notation: Any = answer_codec(codec, grid, frame, resize) if shards else get_codec(codec)
    if ckpt is not None:
        if not suites:
            raise ValueError(f"--suites: seen none, expected some of {', '.join(shipped_suites())}")
        overlay = json.dumps(merged_overlays(suites))
        root = [f"--trainer.default_root_dir={out}", "--trainer.enable_progress_bar=false", f"--task={task}"]
        root += [] if alpha is None else [f"--alpha={alpha}"]
        if status := lightning(["predict", "--ckpt_path", str(ckpt), "-c", overlay, *root, *overrides]):
            return status
        predictions = out / "predictions.jsonl"
        notation = load(ckpt).vlm.codec
    records, told = stored(predictions, format, shards, suite, notation, allow_missing)
    try:
        chosen = dict.fromkeys(by_suite(records), protocol) if protocol else None
        scores = score_suites(records, chosen, told)
        for name in [name for name in scores if judge and name in JUDGED]:
            result = judged(by_suite(records)[name], name, str(judge), base_url, out)
            scores[name] = judged_entry(scores[name], result)
        if submission is not None:
            print(f"{submission}: {write_submission(records, submission)} answers for MMBench's server")
        page = write_suite_report(scores, records, out, notation, title)
        print(f"{markdown(scores)}\n\n{page}")
        figures = {name: one["score"] for name, one in scores.items()}
        if annotations is not None:
            figures |= regions(records, annotations, embedder, -1.0 if threshold is None else threshold, out)
            asked = asked_pairs(extract, out) if extract else None
            options: dict[str, Any] = {"names_alone": names_alone, "box_score": box_score, "codec": codec, "grid": grid}
            options |= {"embedder": embedder, "extract": extract, "threshold": threshold or 0.65}
            captions(records, annotations, notation, options, asked, out)
        if rows := by_noise(figures):
            print(noise_table(rows))
            plot_noise(rows, out / "noise.png")
    except (ModuleNotFoundError, RequestFailed) as error:
        raise ValueError(str(error)) from None
    return 0


def shipped_suites() -> list[str]:
    """The names of the configurations with suites that come with the package."""
    return [f"eval/{path.name}" for path in sorted(SHIPPED.glob("eval/*.yaml"))]


evaluate.__doc__ = (evaluate.__doc__ or "").replace("{suites}", ", ".join(shipped_suites()))


def merged_overlays(names: Sequence[str]) -> dict[str, Any]:
    """One configuration of several overlays with the suites of all: a later `-c` would replace the earlier's suites.

    Other settings are the last overlay's. ValueError for no overlay, and for two suites of one name that differ.
    """
    init_args: dict[str, Any] = {}
    suites: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in names:
        path = find_configuration(name)
        try:
            data = read_configuration(str(path))["data"]
            module, own = data["class_path"], dict(data["init_args"]["val"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: seen no data.init_args.val, expected an overlay of configs/eval") from None
        for one, source in own.items():
            if suites.get(one, source) != source:
                raise ValueError(f"{path}: suite {one}: seen {source}, expected {suites[one]} as in {origin[one]}")
            origin.setdefault(one, str(path))
        init_args |= data["init_args"]
        suites |= own
    return {"data": {"class_path": module, "init_args": init_args | {"val": suites}}}


def stored(
    predictions: Path | None, format: str, shards: Sequence[str], suite: str, codec: Any, allow_missing: bool
) -> tuple[list[Any], dict[str, str]]:
    """The records of a file of answers, and what is to be said of each suite's completeness."""
    assert predictions is not None
    if shards:
        answers = read_answers(predictions, format)
        records = join(answers, list(shards), codec, suite, allow_missing)
        missing = f"{len(records) - len(answers)} of {len(records)} questions of --shards have no answer: wrong"
        told = {suite: missing}
    elif allow_missing:
        raise ValueError("--allow-missing: seen without --shards, expected them: they say what is missing")
    else:
        records = list(read_own(predictions))
        told = dict(completeness(records))
    if not records:
        raise ValueError(f"{predictions}: seen no prediction, expected some")
    return records, told


def judged(records: Sequence[Record], suite: str, model: str, base_url: str | None, out: Path) -> dict[str, Any]:
    """The verdicts of `model` on the answers of a suite, which are also written to OUT/SUITE.json."""
    backend = OpenAIChat(model, base_url, os.environ.get("OPENAI_API_KEY"), max_tokens=16)
    cached = CachedChat(backend, out / "verdicts.jsonl")
    result = judge_answers(records, suite, lambda messages, attempt: cached.chat(messages, attempt=attempt))
    report = {"judge": model, "suite": suite, **result}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{suite}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def asked_pairs(name: str, out: Path) -> AskedPairs:
    """The backend that `--extract` names."""
    kind, _, rest = name.partition(":")
    model, _, url = rest.partition("@")
    if kind != "openai" or not model:
        raise ValueError(f"--extract: seen {name!r}, expected openai:MODEL[@URL]")
    backend = OpenAIChat(model, url or None, os.environ.get("OPENAI_API_KEY"), max_tokens=256)
    cached = CachedChat(backend, out / "names.jsonl")
    return AskedPairs(lambda messages, attempt: cached.chat(messages, attempt=attempt))


def captions(
    records: Sequence[Record],
    annotations: Path,
    codec: Any,
    options: dict[str, Any],
    asked: Callable[..., Any] | None,
    out: Path,
) -> None:
    """Grounded captions: (name, box) pairs, names to COCO's classes, COCO AP; OUT/captions.json."""
    about = [r for r in records if (r.get("meta") or {}).get("image_id") is not None and r.get("subtask") != SUBTASK]
    if not about:
        return
    truth = json.loads(annotations.read_bytes())
    names = [one["name"] for one in truth["categories"]]
    synonyms = {} if options["names_alone"] else {k: v for k, v in SYNONYMS.items() if k in names}
    mapper = ClassMapper(names, sentence_embedder(options["embedder"]), synonyms, options["threshold"])
    result = score_captions(about, truth, codec, mapper, asked or caption_pairs, options["box_score"])
    if isinstance(asked, AskedPairs):
        options = {**options, "prompt": PROMPT}
        result["boxes_without_name"] = asked.unnamed
    out.mkdir(parents=True, exist_ok=True)
    (out / "captions.json").write_text(json.dumps({"options": options, **result}, indent=1) + "\n")
    print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()))


def regions(
    records: Sequence[Record], annotations: Path, embedder: str | None, threshold: float, out: Path
) -> dict[str, float]:
    """Accuracy by suite of region classification; with COCO AP in OUT/regions.json."""
    classes = [record for record in records if record.get("subtask") == SUBTASK]
    if not classes:
        return {}
    result = score_region_class(classes, annotations, sentence_embedder(embedder), threshold)
    out.mkdir(parents=True, exist_ok=True)
    (out / "regions.json").write_text(json.dumps(result, indent=1) + "\n")
    for suite, values in result.items():
        cells = (f"{k} {v:.3f}" for k, v in values.items() if isinstance(v, float) and v == v)
        print(f"{suite:32} " + "  ".join(cells))
    return {suite: value["accuracy"] for suite, value in result.items() if "accuracy" in value}
