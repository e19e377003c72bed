"""What `ts-lightning evaluate` is made of: suites of several configurations, stored answers, judges."""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ts_lightning.cli.configurations import find_configuration, read_configuration
from ts_lightning.data import ShardSource
from ts_lightning.data.source import source_of
from ts_lightning.grounding.codecs import Codec
from ts_lightning.metrics.gic_names import AskedPairs
from ts_lightning.metrics.judge import Ask, few_shot_instruction, judge_reading
from ts_lightning.metrics.judge import judge as judge_answers
from ts_lightning.metrics.protocols import DEFAULTS, make_default, make_protocol
from ts_lightning.metrics.protocols.words import OpenEnded
from ts_lightning.metrics.record import Record, read_records
from ts_lightning.pipelines.llm_client import CutAnswer, OpenAIChat, RequestRefused
from ts_lightning.pipelines.response_cache import CachedChat
from ts_lightning.reports.json_file import write_json
from ts_lightning.training.answer_files import join, read_answers
from ts_lightning.training.records import completeness

MOST_TOKENS = 1024  # of a judge's answer: a number is enough, but some say it in sentences or think first


def source_named(names: Sequence[str], suite: str | None) -> ShardSource:
    """What the configurations say of a suite: its shards, which of their questions it asks, and how it is scored."""
    known = merged_overlays(names)["data"]["init_args"]["val"]
    if suite is None or suite not in known:
        raise ValueError(f"--suite: seen {suite!r}, expected one of {', '.join(known)} of --suites")
    return suite_source(suite, known[suite])


def suite_source(suite: str, value: Any) -> ShardSource:
    """A suite as a configuration says it; ValueError for a key that no suite has, or without shards."""
    if isinstance(value, Mapping):
        known = [field.name for field in fields(ShardSource)]
        if odd := [str(key) for key in value if key not in known]:
            raise ValueError(f"suite {suite}: seen {', '.join(odd)}, expected some of {', '.join(known)}")
        if "shards" not in value:
            raise ValueError(f"suite {suite}: seen no shards, expected them")
    return source_of(value)


def check_rule(suite: str, rule: Mapping[str, str | None]) -> None:
    """ValueError naming the suite where no protocol scores by `rule`: its protocol, reading and annotations."""
    make = make_protocol if rule["protocol"] else make_default
    try:
        make(rule["protocol"] or DEFAULTS[0], rule["reading"], rule["annotations"])
    except ValueError as error:
        raise ValueError(f"suite {suite}: {error}") from None


def check_judge(protocols: Iterable[str | None]) -> None:
    """ValueError where none of the suites' protocols asks for a judge."""
    if OpenEnded.name not in protocols:
        raise ValueError(f"--judge: seen no suite of the protocol {OpenEnded.name}, expected one for it to judge")


def check_kept(kept: Path, records: Sequence[Record], predictions: Path) -> None:
    """ValueError where the file `kept` has answers that are not among the records, which would be written over it."""
    if not kept.exists():
        return
    having = {(record.shard, record.key, record.text) for record in records}
    answered = [record for record in read_records(kept) if not record.missing]
    if lost := [r for r in answered if (r.shard, r.key, r.text) not in having]:
        seen = f"{len(lost)} answers ({lost[0].suite}:{lost[0].key} ...) that {predictions} does not give"
        raise ValueError(f"{kept}: seen {seen}, expected another folder as --out: they would be lost")


def check_asked(kept: Path, suites: Collection[str]) -> None:
    """ValueError where the file `kept` has answers of other suites than those that are asked, which would go."""
    lost: dict[str, int] = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        try:
            answer = json.loads(line)
        except ValueError:  # cut off by an end: no answer
            continue
        if not answer.get("missing") and (suite := str(answer.get("suite"))) not in suites:
            lost[suite] = lost.get(suite, 0) + 1
    if lost:
        seen = ", ".join(f"{count} answers of suite {suite}" for suite, count in lost.items())
        raise ValueError(
            f"{kept}: seen {seen}, which --suites do not ask, expected another folder as --out: they would be lost"
        )


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
    asked = {"val": suites, "predict": None, "suites": None}  # not what the checkpoint's own run had to answer
    return {"data": {"class_path": module, "init_args": init_args | asked}}


def stored(
    predictions: Path,
    format: str,
    source: ShardSource | None,
    suite: str | None,
    codec: Callable[[str | None], Codec | None],
    allow_missing: bool,
) -> tuple[list[Record], dict[str, str]]:
    """The records of a file of answers, and what is to be said of each suite's completeness.

    `codec` of the notation that our own predictions name (None for other files): what reads the answers.
    """
    if source is not None:
        answers = read_answers(predictions, format, suite)
        own = next((row.record for row in answers if row.record), None)
        suite = suite or (own.suite if own else "predictions")
        says = source if own is None or source.protocol or source.reading else own
        rule = {"protocol": says.protocol, "reading": says.reading}
        rule["annotations"] = source.annotations or (own.annotations if own else None)
        records = join(answers, source, codec(own.codec if own else None), suite, allow_missing, rule)
        missing = f"{len(records) - len(answers)} of {len(records)} questions of --shards have no answer: wrong"
        told = {suite: missing}
    elif allow_missing:
        raise ValueError("--allow-missing: seen without --shards, expected them: they say what is missing")
    else:
        records = read_records(predictions)
        told = dict(completeness(records))
    if not records:
        raise ValueError(f"{predictions}: seen no prediction, expected some")
    return records, told


def judged(
    records: Sequence[Record],
    suite: str,
    model: str,
    base_url: str | None,
    out: Path,
    prompt: Path | None = None,
) -> dict[str, Any]:
    """The verdicts of `model` on the answers of a suite, which are also written to OUT/SUITE.json.

    `prompt`: MM-Vet's own table, for suites that are judged as it is.
    """
    asked = [record for record in records if OpenEnded().takes(record)]
    reading = judge_reading(asked[0])
    instruction = few_shot_instruction(prompt) if prompt and reading == "mmvet" else None
    backend = OpenAIChat(model, base_url, os.environ.get("OPENAI_API_KEY"), max_tokens=MOST_TOKENS)
    result = judge_answers(asked, reading, _ask(CachedChat(backend, out / "verdicts.jsonl")), instruction)
    report = {"judge": model, "suite": suite, **result}
    write_json(out / f"{suite}.json", report)
    return report


def asked_pairs(name: str, out: Path) -> AskedPairs:
    """The backend that `--extract` names."""
    kind, _, rest = name.partition(":")
    model, _, url = rest.partition("@")
    if kind != "openai" or not model:
        raise ValueError(f"--extract: seen {name!r}, expected openai:MODEL[@URL]")
    backend = OpenAIChat(model, url or None, os.environ.get("OPENAI_API_KEY"), max_tokens=MOST_TOKENS)
    return AskedPairs(_ask(CachedChat(backend, out / "names.jsonl")), model)


def _ask(cached: CachedChat) -> Ask:
    """What asks the model; an answer that is refused or cut off holds nothing, and stderr says so."""

    def ask(messages: list[dict[str, str]], attempt: int) -> str:
        try:
            return cached.chat(messages, attempt=attempt)
        except CutAnswer:
            why = f"cut off at {MOST_TOKENS} tokens"
        except RequestRefused as error:
            why = f"refused: {error}"
        print(f"{cached.name}: an answer {why}", file=sys.stderr)
        return ""

    return ask
