"""A task folder of lmms-eval from shards: our questions and our scores (lenient, strict, official) in its table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.codecs import Codec
from ts_lightning.metrics.protocols import make_protocol, plain
from ts_lightning.metrics.record import Record
from ts_lightning.models.pixels import open_picture
from ts_lightning.training.records import record_of

_YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_target: target
process_results: !function utils.row
generation_kwargs: {{max_new_tokens: {max_new_tokens}, temperature: 0, do_sample: false, until: []}}
metric_list:
{metrics}
metadata: {{version: 1.0, protocol: {protocol}}}
"""
_METRIC = "  - {{metric: {figure}, aggregation: !function utils.{figure}, higher_is_better: {higher}}}"
_UTILS = '''"""What the YAML beside it names."""

from functools import partial

from ts_lightning.reports.lmms_eval_task import figure, pictures, question, row_of

FIGURES = {figures}
HOW = {{"protocol": {protocol!r}, "reading": {reading!r}, "annotations": {annotations!r}}}
row = partial(row_of, figures=FIGURES, **HOW)
globals().update({{name: partial(figure, name=name, **HOW) for name in FIGURES}})
__all__ = ["pictures", "question", "row", *FIGURES]
'''


def write_task(
    shards: Sequence[str],
    protocol: str,
    reading: str | None,
    codec: Codec,
    out: Path,
    name: str,
    max_new_tokens: int,
    limit: int | None = None,
    annotations: Path | None = None,
) -> tuple[int, list[str]]:
    """Write the folder `out`: the YAML, its functions, the questions and their pictures. Questions and figures written.

    `codec` reads the boxes of the answers. ValueError where the protocol takes none of the records.
    """
    file = None if annotations is None else str(annotations.absolute())
    scored = make_protocol(protocol, reading, file)
    lines, records = list[str](), list[Record]()
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for sample in ShardReader(index_shards(list(shards))):
        record = record_of(sample, "", codec, name)
        if not scored.takes(record) or (limit is not None and len(records) == limit):
            continue
        files = []
        for number, data in enumerate(sample.image_bytes):
            files.append(str((out / "pictures" / f"{len(records)}_{number}").absolute()))
            Path(files[-1]).write_bytes(data)
        records.append(record)
        about = {"key": record.key, "question": sample.question.replace("<image>", "").strip(), "pictures": files}
        lines.append(json.dumps(about | {"target": record.truth.text, "record": json.dumps(record.to_json())}))
    if not records:
        raise ValueError(f"--protocol {protocol}: seen none of its questions in {', '.join(shards)}, expected some")
    figures = sorted(n for n in plain(scored.figures(scored.rows_of(records))) if n.isidentifier())
    questions = out / "questions.jsonl"
    questions.write_text("\n".join(lines) + "\n")
    metrics = "\n".join(
        _METRIC.format(figure=n, higher=str(not n.startswith(("unparsed", "several"))).lower()) for n in figures
    )
    filled = {"name": name, "questions": questions.absolute(), "protocol": protocol, "metrics": metrics}
    (out / f"{name}.yaml").write_text(_YAML.format(**filled, max_new_tokens=max_new_tokens))
    (out / "utils.py").write_text(_UTILS.format(figures=figures, protocol=protocol, reading=reading, annotations=file))
    return len(records), figures


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """`doc_to_visual`: the pictures as they are displayed."""
    return [open_picture(Path(path).read_bytes()) for path in doc["pictures"]]


def question(doc: dict[str, Any]) -> str:
    """`doc_to_text`."""
    return str(doc["question"])


def row_of(
    doc: dict[str, Any],
    results: Sequence[str],
    protocol: str,
    reading: str | None,
    annotations: str | None,
    figures: Sequence[str],
) -> dict[str, str]:
    """`process_results`: the protocol's row of an answer, for each of its figures."""
    stored = json.loads(doc["record"]) | {"text": results[0]}
    (row,) = make_protocol(protocol, reading, annotations).rows_of([Record.from_json(stored, doc["key"])])
    return dict.fromkeys(figures, json.dumps(row))


def figure(rows: Sequence[str], protocol: str, reading: str | None, annotations: str | None, name: str) -> float:
    """`aggregation`: one of the protocol's figures."""
    return float(make_protocol(protocol, reading, annotations).figures([json.loads(row) for row in rows])[name])
