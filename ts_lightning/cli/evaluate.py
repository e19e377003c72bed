"""`ts-lightning evaluate`."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ts_lightning.cli.configurations import shipped


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
    suite: str | None = None,
    codec: str | None = None,
    grid: str | None = None,
    frame: Literal["original", "padded_square", "resized"] | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    processor: Path | None = None,
    protocol: str | None = None,
    reading: str | None = None,
    allow_missing: bool = False,
    annotations: Path | None = None,
    embedder: str | None = None,
    threshold: float | None = None,
    names_alone: bool = False,
    box_score: Literal["similarity", "one"] = "similarity",
    extract: str | None = None,
    judge: str | None = None,
    base_url: str | None = None,
    judge_prompt: Path | None = None,
    submission: Path | None = None,
    title: str = "Evaluation",
    overrides: Sequence[str] = (),
) -> int:
    r"""Answer suites with a checkpoint and score them, or score stored answers without a model: one report.

        ts-lightning evaluate --ckpt last.ckpt --suites eval/toy.yaml --out outputs/report
        ts-lightning evaluate --predictions outputs/report/predictions.jsonl --out outputs/scores
        ts-lightning evaluate --predictions samples.jsonl --format lmms-eval --suites eval/rec.yaml \
            --suite refcoco_testA --reading lmms_eval --codec shikra --grid decimals:3 --frame original \
            --out outputs/scores

    Writes report.json, report.md and report.html. OUT/predictions.jsonl has the answers with their protocol, reading,
    annotations and notation, where `evaluate --predictions` and `compare` read them again; embedder, threshold,
    names_alone, box_score, extract and the judge's options have to be given again. A file that is given as
    --predictions stays as it is, and other answers in OUT are not written over; with --ckpt those of the same suites
    are, when all is answered.
    Any --trainer.X, --model.X and --data.X of `predict` goes to the answering.

    Suites: {suites}

    Args:
        out: folder for the report, and for the answers of --ckpt
        ckpt: a run's folder, checkpoint, package, adapter or standalone folder that answers --suites
        suites: configurations with suites, such as eval/rec.yaml; with --predictions they say how --suite is scored
        task: whose task answers: given (the record's), auto (the task router's), or one for every question
        alpha: the mixing weight, in place of the learned one
        predictions: stored answers, in place of --ckpt
        format: of the stored answers
        shards: the questions with their truth; needed unless the stored answers have it
        suite: name of the suite, with --shards (our own predictions: which of theirs; "predictions" for others)
        codec: the notation of the answers' boxes, with --shards (scout; our own predictions name theirs)
        grid: another grid than the notation's own: 100, 1000, decimals:n, pixels
        frame: another picture than the notation's own that the numbers refer to
        min_pixels: least area of the resized picture, for answers in pixels of it
        max_pixels: its greatest area
        processor: folder with a preprocessor_config.json that says both
        protocol: how to score, in place of what the suites say
        reading: whose rule reads an answer, in place of what the suites say
        allow_missing: with --shards: missing answers count as wrong
        annotations: COCO's instances_*.json, for grounded captions and region classification
        embedder: folder of a sentence transformer (the packaged MiniLM when missing), for names without a class
        threshold: cosine below which a name has no class (0.65; none for region classification)
        names_alone: grounded captions without synonyms, as in the paper
        box_score: the score of a box in COCO AP of captions
        extract: openai:MODEL[@URL], who names the boxes of captions; a grammar when missing
        judge: the model that judges suites of the protocol open_ended, as their reading says: mmvet or llava_bench
        judge_prompt: file with MM-Vet's own few-shot table, in place of our instruction for mmvet
        base_url: the judge's OpenAI-compatible server; the key comes from OPENAI_API_KEY
        submission: tab-separated file for MMBench's server
        title: of the report
        overrides: options of `predict`
    """
    if (ckpt is None) == (predictions is None):
        raise ValueError("evaluate: seen not one of --ckpt and --predictions, expected one of them")
    from dataclasses import replace

    from ts_lightning.cli.evaluation import (
        asked_pairs,
        check_asked,
        check_judge,
        check_kept,
        check_rule,
        judged,
        merged_overlays,
        source_named,
        stored,
        suite_source,
    )
    from ts_lightning.cli.lightning import main as lightning
    from ts_lightning.data import ShardSource
    from ts_lightning.grounding.codecs import Codec
    from ts_lightning.grounding.foreign_text import visible
    from ts_lightning.grounding.resizing import resize_rule
    from ts_lightning.metrics.protocols import Protocol
    from ts_lightning.metrics.protocols.captions import GIC, WithClasses
    from ts_lightning.metrics.protocols.words import OpenEnded
    from ts_lightning.metrics.record import Record, write_records
    from ts_lightning.metrics.robustness import by_noise, noise_table
    from ts_lightning.metrics.submission import write_submission
    from ts_lightning.metrics.suites import by_suite, judged_entry, score_suites
    from ts_lightning.pipelines.llm_client import RequestFailed
    from ts_lightning.reports.noise_plot import plot_noise
    from ts_lightning.reports.suite_report import markdown, write_suite_report
    from ts_lightning.runs.resume import first_process
    from ts_lightning.training.answer_files import answer_codec

    def rule(says: ShardSource | Record) -> dict[str, Any]:
        return {
            "protocol": protocol or says.protocol,
            "reading": reading or (None if protocol else says.reading),
            "annotations": str(annotations) if annotations else says.annotations,
        }

    resize = resize_rule(min_pixels, max_pixels, processor) if min_pixels or max_pixels or processor else None
    kept = out / "predictions.jsonl"
    if ckpt is not None:
        if not suites:
            raise ValueError(f"--suites: seen none, expected some of {', '.join(SUITES)}")
        overlay = merged_overlays(suites)
        rules = {name: rule(suite_source(name, one)) for name, one in overlay["data"]["init_args"]["val"].items()}
        for name, one in rules.items():  # before hours of answering
            check_rule(name, one)
        if judge:
            check_judge(one["protocol"] for one in rules.values())
        check_asked(kept, rules)
        root = [f"--trainer.default_root_dir={out}", "--trainer.enable_progress_bar=false", f"--task={task}"]
        root += [] if alpha is None else [f"--alpha={alpha}"]
        if status := lightning(["predict", "--ckpt_path", str(ckpt), "-c", json.dumps(overlay), *root, *overrides]):
            return status
        if not first_process():  # the ranks have answered together, and one scores
            return 0
    source = source_named(suites, suite) if suites and ckpt is None else None
    if shards:
        source = replace(source or ShardSource([]), shards=list(shards))

    def notation(own: str | None) -> Codec | None:
        given = codec or grid or frame or resize
        return answer_codec(codec or own or "scout", grid, frame, resize) if given or own is None else None

    records, told = stored(predictions or kept, format, source, suite, notation, allow_missing)
    records = [replace(record, **rule(record)) for record in records]
    if judge:
        check_judge(record.protocol for record in records)
    given = predictions is not None and predictions.resolve() == kept.resolve()
    if predictions is not None and not given:
        check_kept(kept, records, predictions)
    asked = asked_pairs(extract, out) if extract else None

    def prepare(made: Protocol) -> None:
        if isinstance(made, WithClasses):
            made.embedder = embedder
            made.threshold = made.threshold if threshold is None else threshold
        if isinstance(made, GIC):
            made.names_alone, made.box_score = names_alone, box_score
            made.extract = asked or made.extract

    try:
        scores = score_suites(records, told, prepare)
        if not given:  # now the rule is known to hold for them
            write_records(records, kept)
        for name, one in scores.items():
            if judge and one["protocol"] == OpenEnded.name and one["questions"]:
                answered = by_suite(records)[one["suite"]]
                scores[name] = judged_entry(one, judged(answered, one["suite"], judge, base_url, out, judge_prompt))
        if submission is not None:
            print(f"{submission}: {write_submission(records, submission)} answers for MMBench's server")
        page = write_suite_report(scores, records, out, title)
        print(f"{markdown(scores, visible)}\n\n{page}")
        if rows := by_noise({name: one["score"] for name, one in scores.items()}):
            print(noise_table(rows))
            plot_noise(rows, out / "noise.png")
    except (ModuleNotFoundError, RequestFailed) as error:
        raise ValueError(str(error)) from None
    return 0


SUITES = shipped("eval")
evaluate.__doc__ = (evaluate.__doc__ or "").replace(
    "{suites}", textwrap.fill(", ".join(SUITES), 110, subsequent_indent="    ")
)
