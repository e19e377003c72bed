"""Answers that other tools wrote, matched with the questions of shards.

| file | what a row says of its question |
|---|---|
| ours, JSON lines | `key`; our own records also `id`, their notation, and how they are scored |
| lmms-eval's samples, JSON lines | `doc_id`, its place, and `target`, the truth; sometimes `doc` |
| VLMEvalKit's xlsx, tsv, csv, json | `index`; RefCOCO's also the true box, `bbox_x1_norm` ... |

A file is matched by the first of these that names every row once: a question's key; its id; `meta.index`;
`meta.question_id`; `meta.question_id` with the phrase; the picture's file with the phrase. Rows that none names but
that say their truth (lmms-eval's without `doc`, VLMEvalKit's RefCOCO) follow the shards' order where every truth agrees
with it, else they go to the questions with that true box.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ts_lightning.data import ShardSource
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.data.source import source_of
from ts_lightning.grounding.codecs import Codec, get_codec
from ts_lightning.grounding.coordinates import Size
from ts_lightning.metrics.record import Record
from ts_lightning.training.records import listed, record_of

FORMATS = ("ours", "lmms-eval", "vlmevalkit")
KINDS = ("key", "id", "index", "question_id", "question_id and phrase", "file and phrase")
_NAMED = 5  # so many questions stand in a message
_SAME_BOX = 0.004  # of the picture: tools round a true box to pixels or to three decimals
_COCO = re.compile(r"COCO_\w+?2014_\d{12}", re.ASCII)  # RefCOCO adds the object's number to a picture's name


class GivenAnswer(NamedTuple):
    """A row: how it names its question, by `KINDS`; its text; its place in the task and its truth where told.

    `record`: the row itself, where it is one of our own predictions.
    """

    names: Mapping[str, str]
    text: str
    place: int | None = None
    target: str | None = None
    record: Record | None = None


def answer_codec(
    name: str, grid: str | None = None, frame: str | None = None, resize: Callable[[Size], Size] | None = None
) -> Codec:
    """The codec called `name` with the grid and the frame that a tool asked its model for.

    lmms-eval's RefCOCO is "shikra" with grid "decimals:3" and frame "original". Pixels of a resized picture need
    `resize`, as `grounding.resizing.resize_rule` gives it: ValueError without.
    """
    space = get_codec(name).space
    space = replace(space, grid=grid or space.grid, frame=frame or space.frame)
    if space.frame == "resized" and space.grid == "pixels":
        if resize is None:
            raise ValueError(
                f"codec {name}: seen no rule of the resized picture, expected min_pixels and max_pixels, or a "
                "processor's folder (or frame original, where nothing was resized)"
            )
        space = replace(space, resized=resize)
    return get_codec(name, space)


def read_answers(path: str | Path, kind: str, suite: str | None = None) -> list[GivenAnswer]:
    """The rows of a file of one of `FORMATS`; of our own predictions of several suites those of `suite`.

    ValueError with the line for what is no such file, for a repeated row, and where `suite` names none of several.
    """
    readers: dict[str, Callable[[Path], Iterable[GivenAnswer]]]
    readers = {"ours": _own, "lmms-eval": _lmms_eval, "vlmevalkit": _vlmevalkit}
    if kind not in readers:
        raise ValueError(f"--format: seen {kind!r}, expected one of {', '.join(FORMATS)}")
    rows = list(readers[kind](Path(path)))
    suites = list(dict.fromkeys(row.record.suite for row in rows if row.record))
    if len(suites) > 1:  # they may ask the same questions
        if suite not in suites:
            raise ValueError(f"--suite: seen {suite!r}, expected one of {', '.join(suites)} of {path}")
        rows = [row for row in rows if row.record and row.record.suite == suite]
    repeated = [_twice([row.names[name] for row in rows]) for name in KINDS if all(name in row.names for row in rows)]
    places = [row.place for row in rows]
    if None not in places:
        repeated.append(_twice([str(place) for place in places]))
    if repeated and all(repeated):
        raise ValueError(f"{path}: seen {listed(repeated[-1])} more than once, expected one answer a question")
    return rows


def join(
    answers: Sequence[GivenAnswer],
    shards: str | Sequence[str] | ShardSource,
    codec: Codec | None,
    suite: str,
    allow_missing: bool = False,
    rule: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Records of the shards' questions with their answers, read with `codec` and scored by `rule` (see `record_of`).

    Of a source its selection alone is asked. `codec` None: our own predictions are read as they say. ValueError for
    answers to questions that are not asked, and for missing ones unless `allow_missing`: then their records say so, and
    they are wrong.
    """
    reader = ShardReader(source_of(shards).load())
    questions = [_Question.of(sample) for sample in reader]
    given = _matched(answers, questions)
    missing = [question.key for i, question in enumerate(questions) if i not in given]
    if missing and not allow_missing:
        raise ValueError(f"predictions: seen no answer to {listed(missing)}, expected all (or --allow-missing)")
    rows = [given.get(i, GivenAnswer({}, "")) for i in range(len(questions))]
    records = [_answered(reader.read(i), row, codec, suite, rule) for i, row in enumerate(rows)]
    return [replace(record, missing=i not in given) for i, record in enumerate(records)]


def _answered(
    sample: Sample, row: GivenAnswer, codec: Codec | None, suite: str, rule: Mapping[str, Any] | None
) -> Record:
    own = row.record
    made = record_of(sample, row.text, codec or get_codec("scout"), suite, own is not None and own.cut_off, rule)
    if own is None or codec is not None:
        return made
    return replace(made, codec=own.codec, grid=own.grid, frame=own.frame, resized=own.resized)


_NO_KEY = re.compile(r"[^A-Za-z0-9_-]+")


class _Question(NamedTuple):
    """What a question may be matched by: a sample without its pictures."""

    key: str
    names: dict[str, str]
    box: Sequence[float] | None
    answers: list[str]

    @classmethod
    def of(cls, sample: Sample) -> "_Question":
        meta, names = sample.meta or {}, {"key": sample.key, "id": sample.id}
        names |= {name: str(meta[name]) for name in ("index", "question_id") if meta.get(name) is not None}
        regions = [sample.regions[i] for i in (sample.answer.regions if sample.answer else [])]
        phrase = regions[0].phrase if len(regions) == 1 else None
        if phrase is not None:
            picture = sample.images[regions[0].image].name
            names |= _with_phrase(names.get("question_id"), picture, phrase)
        answers = [*(sample.answers or []), *(sample.choices or [])]
        return cls(sample.key, names, regions[0].box if len(regions) == 1 else None, answers)


def _with_phrase(question_id: str | None, picture: str | None, phrase: str) -> dict[str, str]:
    names, phrase = {}, " ".join(phrase.lower().split())
    if question_id is not None:
        names["question_id and phrase"] = f"{question_id}: {phrase}"
    if picture is not None:
        match = _COCO.search(picture)
        names["file and phrase"] = f"{match[0] if match else Path(picture).name}: {phrase}"
    return names


def _matched(answers: Sequence[GivenAnswer], questions: Sequence[_Question]) -> dict[int, GivenAnswer]:
    """The row of each answered question by its place; ValueError where no rule names every row."""
    fewest: list[str] | None = None
    for kind in KINDS:
        asked = _unique({i: q.names[kind] for i, q in enumerate(questions) if kind in q.names})
        if kind == "key":  # converters make a key of the id; where a record has several questions it numbers them
            made = [
                (_NO_KEY.sub("-", q.names["id"]), _NO_KEY.sub("-", q.names["id"].partition("/")[2])) for q in questions
            ]
            asked = _unique({i: own for i, (_, own) in enumerate(made) if own}) | asked
            asked = _unique({i: whole for i, (whole, _) in enumerate(made)}) | asked
        names = [row.names[kind] for row in answers if kind in row.names]
        if len(names) < len(answers) or _twice(names):
            continue
        unknown = [name for name in names if name not in asked]
        if not unknown:
            return {asked[name]: row for name, row in zip(names, answers, strict=True)}
        if fewest is None or len(unknown) < len(fewest):
            fewest = unknown
    if all(row.place is not None for row in answers):
        try:
            return _by_place(answers, questions)
        except ValueError:
            if (by_box := _by_target(answers, questions)) is None:
                raise
            return by_box
    raise ValueError(
        f"predictions: seen {listed(fewest or [])} that the shards don't ask, expected their questions alone"
    )


def _unique(names: Mapping[int, str]) -> dict[str, int]:
    """Places by name, of the names that one question alone has."""
    twice = set(_twice(list(names.values())))
    return {name: place for place, name in names.items() if name not in twice}


def _by_target(answers: Sequence[GivenAnswer], questions: Sequence[_Question]) -> dict[int, GivenAnswer] | None:
    """Rows to the questions with their true box: expressions of one object share it, and score alike.

    None where rows tell no box, or one that no question left over has.
    """
    cells: dict[tuple[int, int], list[int]] = {}
    for place, question in enumerate(questions):
        if question.box is not None:
            cells.setdefault(_cell(question.box, 0, 0), []).append(place)
    given: dict[int, GivenAnswer] = {}
    for row in sorted(answers, key=lambda row: row.place or 0):
        if (box := _target_box(row.target)) is None:
            return None
        near = [i for x in (-1, 0, 1) for y in (-1, 0, 1) for i in cells.get(_cell(box, x, y), []) if i not in given]
        best = min(near, key=lambda i: (_apart(box, questions[i].box), i), default=None)
        if best is None or _apart(box, questions[best].box) > _SAME_BOX:
            return None
        given[best] = row
    return given


def _by_place(answers: Sequence[GivenAnswer], questions: Sequence[_Question]) -> dict[int, GivenAnswer]:
    """Rows to the questions in the shards' order; ValueError where a row's truth is not its question's."""
    given = {}
    for row in answers:
        place = row.place if row.place is not None else -1
        if not 0 <= place < len(questions):
            raise ValueError(f"predictions: seen doc_id {place}, expected the places of {len(questions)} questions")
        if not _fits(row.target, questions[place]):
            raise ValueError(
                f"predictions: doc_id {place}: seen the truth {row.target}, expected that of {questions[place].key} "
                "(other questions, or another order: a file with doc can be matched)"
            )
        given[place] = row
    return given


def _fits(target: str | None, question: _Question) -> bool:
    """Whether a row's truth can be its question's; a truth of another kind can't be compared."""
    box = _target_box(target)
    if question.box is not None and box is not None:
        return _apart(box, question.box) <= _SAME_BOX
    if not target or not question.answers or question.box is not None:
        return True
    letters = [chr(65 + i) for i in range(len(question.answers))]
    return target.strip().lower() in [name.strip().lower() for name in (*question.answers, *letters)]


def _target_box(target: str | None) -> list[float] | None:
    try:
        box = json.loads(target or "")
        return [float(value) for value in box] if len(box) == 4 else None
    except (ValueError, TypeError):
        return None


def _cell(box: Sequence[float], x: int, y: int) -> tuple[int, int]:
    return int(box[0] * 50) + x, int(box[1] * 50) + y


def _apart(one: Sequence[float], other: Sequence[float] | None) -> float:
    return 1.0 if other is None else max(abs(a - b) for a, b in zip(one, other, strict=True))


def _own(path: Path) -> Iterable[GivenAnswer]:
    for number, line in _json_lines(path):
        key, text = (_field(line, name, f"{path}:{number}") for name in ("key", "text"))
        own = Record.from_json(line, f"{path}:{number}") if {"truth", "codec"} <= line.keys() else None
        if own is None or not own.missing:
            yield GivenAnswer({"key": key, "id": (own and own.id) or key}, text, record=own)


def _lmms_eval(path: Path) -> Iterable[GivenAnswer]:
    for number, line in _json_lines(path):
        doc, place = line.get("doc") or {}, line.get("doc_id")
        said: Any = line.get("filtered_resps") or line.get("resps")
        while isinstance(said, list) and said:
            said = said[0]
        if not isinstance(said, str) or not isinstance(doc, dict) or not (doc or isinstance(place, int)):
            raise ValueError(f"{path}:{number}: seen no doc_id or no filtered_resps, expected a sample of lmms-eval")
        target = line.get("target")
        yield GivenAnswer(
            _doc_names(doc), said, place if isinstance(place, int) else None, None if target is None else str(target)
        )


def _doc_names(doc: Mapping[str, Any]) -> dict[str, str]:
    ids = {name: str(doc[name]) for name in ("question_id", "id", "index") if doc.get(name) is not None}
    if not ids:
        return {}
    first = next(iter(ids.values()))
    names = {"key": first, "id": ids.get("id", first), "question_id": first, "index": ids.get("index", first)}
    phrase = doc.get("answer")
    picture = doc.get("file_name") or doc.get("question_id")
    return names | (_with_phrase(first, str(picture), phrase) if isinstance(phrase, str) and picture else {})


def _vlmevalkit(path: Path) -> Iterable[GivenAnswer]:
    for number, row in enumerate(_rows(path), 2):
        index = _field(row, "index", f"{path}:{number}")
        names = {"key": index, "id": index, "index": index, "question_id": index}
        target = _table_target(row)
        yield GivenAnswer(names, _field(row, "prediction", f"{path}:{number}"), number - 2 if target else None, target)


def _table_target(row: Mapping[str, Any]) -> str | None:
    """The true box in a row of VLMEvalKit's RefCOCO, whose index no shard knows; None without such columns."""
    corners = ("x1", "y1", "x2", "y2")
    for part, sides in (("_norm", None), ("", ("width", "height", "width", "height"))):
        try:
            box = [float(row[f"bbox_{corner}{part}"]) for corner in corners]
            return json.dumps(box if sides is None else [n / float(row[s]) for n, s in zip(box, sides, strict=True)])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
    return None


def _rows(path: Path) -> list[dict[str, Any]]:
    kinds = ".xlsx", ".tsv", ".csv", ".json"
    if path.suffix not in kinds:
        raise ValueError(f"{path}: seen {path.suffix or 'no suffix'}, expected xlsx, tsv, csv or json")
    if path.suffix == ".xlsx":
        return _sheet(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            if path.suffix == ".json":
                return [dict(row) for row in json.load(file)]
            return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{path}: seen no rows ({error}), expected xlsx, tsv, csv or json (is the file cut off?)"
        ) from None


def _sheet(path: Path) -> list[dict[str, Any]]:
    """The first sheet's rows by its first row's names; whole numbers as such, as a tsv has them."""
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: reading xlsx needs openpyxl: pip install 'ts-lightning[xlsx]', or save it as tsv"
        ) from None
    try:
        lines = load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(iter(lines), ())]
        filled = (line for line in lines if any(value is not None for value in line))
        return [dict(zip(names, map(_cell_value, line), strict=True)) for line in filled]
    except Exception as error:  # openpyxl raises of many kinds for a file that is no workbook
        raise ValueError(
            f"{path}: seen no workbook ({type(error).__name__}), expected xlsx, tsv, csv or json (is the file cut off?)"
        ) from None


def _cell_value(value: Any) -> Any:
    if value is None:  # an empty cell: "", as a tsv has it
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _json_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, dict(json.loads(line))
            except (ValueError, TypeError):
                cut = " (is the file cut off?)" if not line.endswith("\n") else ""
                raise ValueError(f"{path}:{number}: seen {line.strip()[:60]!r}, expected a JSON object{cut}") from None


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    if row.get(name) is None:
        raise ValueError(f"{where}: seen no {name!r}, expected it")
    return str(row[name])


def _twice(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
