"""The record of a shard, schema 2: a set of pictures with the questions about them, and its JSON.

Everything that reads data sees a question at a time, as a `Sample` with its record's pictures. Version 1, which is a
sample's own JSON, is a record with one question.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from ts_lightning.data.sample import MAX_ITEMS, MAX_JSON, Sample

SCHEMA_VERSION = 2
MAX_QUESTIONS = 1000  # of a record; of what is about the same pictures the next record holds the rest
_RECORD = ("version", "source", "images", "regions", "questions")
_QUESTION = dict.fromkeys(("id", "task", "subtask", "tags", "regions", "turns", "answer", "answers", "choices", "meta"))
_NUMBERED = re.compile(r"(.+)#(\d{1,6})")


def question_key(key: str, j: int, count: int) -> str:
    """The name of question j of a record: the record's own key, or "key#j" where it has several."""
    return key if count == 1 else f"{key}#{j}"


def split_key(name: str) -> tuple[str, int]:
    """(key, j) of a question's name; j is 0 for a record's own key."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def to_json(samples: Sequence[dict[str, Any]]) -> bytes:
    """The JSON of a record from those of samples about the same pictures. A region of several is stored once.

    A question's `regions` are numbers of the record's regions, and its `{region:i}` is the i-th of them.
    """
    regions: dict[str, int] = {}
    questions = []
    for sample in samples:
        own = [json.dumps(region, ensure_ascii=False) for region in sample["regions"]]
        numbers = [regions.setdefault(region, len(regions)) for region in own]
        questions.append({name: numbers if name == "regions" else sample[name] for name in _QUESTION})
    record = {"version": SCHEMA_VERSION, "source": samples[0]["source"], "images": samples[0]["images"]}
    record |= {"regions": [json.loads(region) for region in regions], "questions": questions}
    return json.dumps(record, ensure_ascii=False).encode()


class Questions:
    """The questions of a record's JSON, read one by one: `questions[j]` is a validated `Sample`.

    ValueError "<shard>:<key>: ..." for JSON that is no record; from `questions[j]` for what is wrong with that one.
    """

    def __init__(self, data: bytes | str, key: str = "", shard: str = "", image_bytes: Sequence[bytes] = ()) -> None:
        self.key, self.shard, self.image_bytes = key, shard, image_bytes
        where = f"{shard}:{key}"
        if len(data) > MAX_JSON:
            raise ValueError(f"{where}: json: seen {len(data)} bytes, expected at most {MAX_JSON}")
        try:
            self._record: Any = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: json: seen {str(error)[:200]!r}, expected one JSON object") from None
        if not isinstance(self._record, dict) or "questions" not in self._record:
            self._questions = None  # version 1
            return
        if self._record.keys() != set(_RECORD):
            odd = sorted(self._record.keys() ^ set(_RECORD))[0][:80]
            raise ValueError(f"{where}: field record: seen a missing or unknown {odd!r}, expected {', '.join(_RECORD)}")
        if self._record["version"] != SCHEMA_VERSION:
            seen = repr(self._record["version"])[:80]
            raise ValueError(f"{where}: field version: seen {seen}, expected {SCHEMA_VERSION}")
        self._questions = self._record["questions"]
        for name in ("questions", "regions", "images"):
            most = MAX_QUESTIONS if name == "questions" else MAX_ITEMS
            if not isinstance(self._record[name], list) or len(self._record[name]) > most:
                raise ValueError(f"{where}: field {name}: seen no list of at most {most}, expected one")
        used = sum(
            len(q["regions"]) for q in self._questions if isinstance(q, dict) and isinstance(q.get("regions"), list)
        )
        if used > MAX_ITEMS:
            raise ValueError(f"{where}: field questions: seen {used} regions in all, expected at most {MAX_ITEMS}")
        if not self._questions:
            raise ValueError(f"{where}: field questions: seen none, expected at least one")

    def __len__(self) -> int:
        return 1 if self._questions is None else len(self._questions)

    def __getitem__(self, j: int) -> Sample:
        if self._questions is None:
            return Sample.from_values(self._record, self.key, self.shard, self.image_bytes)
        key = question_key(self.key, j, len(self))
        where, question, shared = f"{self.shard}:{key}", self._questions[j], self._record["regions"]
        if not isinstance(question, dict) or question.keys() != _QUESTION.keys():
            raise ValueError(f"{where}: field questions[{j}]: seen other fields, expected {', '.join(_QUESTION)}")
        own = question["regions"]
        if not isinstance(own, list) or len(own) > MAX_ITEMS:
            raise ValueError(
                f"{where}: field questions[{j}].regions: seen no list of at most {MAX_ITEMS}, expected one"
            )
        for number in own:
            if type(number) is not int or not 0 <= number < len(shared):
                seen = repr(number)[:80]
                raise ValueError(f"{where}: field questions[{j}].regions: seen {seen}, expected below {len(shared)}")
        values = {"source": self._record["source"], "images": self._record["images"]}
        values |= question | {"regions": [shared[number] for number in own]}
        return Sample.from_values(values, key, self.shard, self.image_bytes)
