"""A record goes to JSON lines and back without loss, and is read with its own notation and frame."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ts_lightning.grounding.codecs import CODECS, backbone_codec
from ts_lightning.metrics.record import Record, Truth, distinct_keys, read_records, space_fields, write_records
from ts_lightning.metrics.steps import StepAnswer

SIZES = ((640, 480), (300, 500))
BOX = (0.2, 0.3, 0.6, 0.7)


def half(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


def full(**changes: Any) -> Record:
    """A record with every field set."""
    steps = StepAnswer("red", [[BOX], []], False)
    truth = Truth("{region:0}", ("red", "Red."), 1, BOX, (BOX, (0.0, 0.0, 1.0, 1.0)), 12.5, steps)
    fields: dict[str, Any] = {
        **{"suite": "s", "key": "q", "text": "caf\u00e9 \u2028 [[1,2,3,4]]", "truth": truth, "sizes": SIZES},
        **{"id": "a/1", "shard": "x.tar", "source": "coco", "task": "grounding", "subtask": "rec", "tags": ("cot",)},
        **{"meta": {"n": [1, None], "s": "x"}, "choices": ("a", "b"), "question": "Where?", "protocol": "rec"},
        **{"reading": "strict", "annotations": "f.json", "cut_off": True, "pictures": "q"},
    }
    return Record(**fields | changes)


@pytest.mark.parametrize("mode", ["stretch", "pad"])
@pytest.mark.parametrize("name", sorted(name for name, codec in CODECS.items() if "box" in codec.kinds))
def test_every_notation_comes_back(name: str, mode: str, tmp_path: Path) -> None:
    codec = backbone_codec(name, None, half, mode)
    text = codec.reference([BOX], SIZES[1], 1, 1, "cup")
    record = full(text=text, **space_fields(codec, SIZES))
    write_records([record], tmp_path / "p.jsonl")
    (back,) = read_records(tmp_path / "p.jsonl")
    assert back == record
    assert back.answer == record.answer
    assert back.answer.box == pytest.approx(BOX, abs=0.01)
    assert back.notation.parse(text, SIZES[1]) == codec.parse(text, SIZES[1])
    assert back.ceiling > 0.97
    assert json.loads((tmp_path / "p.jsonl").read_text())["parse_status"] == "ok"


def test_the_docs_name_the_keys_that_a_record_has() -> None:
    """In each sentence about a prediction record, and in the table of metrics.md."""
    docs, values = Path(__file__).parents[3] / "docs", full().to_json()
    for page in docs.glob("*.md"):
        for sentence in re.split(r"(?<=[.:])\s|\n\n", page.read_text()):
            if re.search(r"prediction\s+record", sentence, re.IGNORECASE):
                assert set(re.findall(r"`(\w+)`", sentence)) <= values.keys(), f"{page.name}: {sentence}"
    table = (docs / "metrics.md").read_text().partition("## Predictions")[2].partition("\n\n`--pictures")[0]
    rows = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
    assert len(rows) == 9
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} <= values.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": None}, "sizes: seen None, expected the width and height"),
        ({"sizes": [[0, 60], [1, 1]]}, r"sizes: seen \[\[0, 60\], \[1, 1\]\], expected the width and height"),
        ({"resized": [[1, 1]]}, "resized: seen 1 sizes, expected 2"),
        ({"truth": None}, "truth: seen None, expected an object"),
        ({"truth": {"box": ["a", 0, 1, 1]}}, r"truth.box: seen \['a', 0, 1, 1\], expected four finite numbers"),
        ({"truth": {"box": [float("nan"), 0, 1, 1]}}, r"truth.box: seen \[nan, 0, 1, 1\], expected four finite"),
        ({"truth": {"boxes": [[0, 1]]}}, r"truth.boxes: seen \[0, 1\]"),
        ({"truth": {"answers": "yes"}}, "truth.answers: seen 'yes', expected a list of texts"),
        ({"truth": {"image": 5}}, "truth.image: seen 5, expected the index of one of 2 pictures"),
        ({"text": 3}, "text: seen 3, expected a text"),
        ({"codec": "nope"}, "codec: seen 'nope', expected one of chatspot"),
        ({"frame": "moon"}, "frame: seen 'moon', expected one of original"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [full(key="first").to_json(), full().to_json() | changes]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=rf"p.jsonl:2: .*{message}"):
        read_records(path)


def test_files_that_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    line = json.dumps(full().to_json()) + "\n"
    path.write_text(line + line)
    with pytest.raises(ValueError, match=r"p.jsonl:2: seen s:q more than once, expected one answer a question"):
        read_records(path)
    other = full(shard="y.tar")
    write_records([full(), other], path)  # another shard may have a question of the same key
    assert [record.key for record in read_records(path)] == ["q", "q"]
    assert [record.key for record in distinct_keys([full(), other, full(key="r")])] == ["x.tar:q", "y.tar:q", "r"]
    path.write_text(line + line[:30])
    with pytest.raises(ValueError, match=r"p.jsonl:2: seen .* expected a prediction record \(is the file cut off\?\)"):
        read_records(path)
    path.write_text(line, encoding="utf-8-sig")  # as Windows writes it
    assert [record.key for record in read_records(path)] == ["q"]
    path.write_text(line, encoding="utf-16")
    with pytest.raises(ValueError, match=r"p.jsonl:1: seen .*xff.* expected a prediction record"):
        read_records(path)
    path.write_text('{"key": "q", "text": "x", "suite": "s"}\n')
    with pytest.raises(ValueError, match=r"seen no truth, expected a prediction record .* scored with --shards"):
        read_records(path)
