"""Reading foreign files: JSON, JSON lines, tables and pickles, with errors that name the file and the place."""

import csv
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn


def load_json(path: str | Path, what: str) -> Any:
    """A JSON file; ValueError with the byte where it ends too early."""
    try:
        text = Path(path).read_bytes().decode()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: seen no UTF-8 at byte {error.start}, expected {what}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        raise ValueError(f"{path}: seen no JSON: broken at byte {byte} ({error.msg}), expected {what}") from None
    except RecursionError:
        raise ValueError(f"{path}: seen no JSON that can be read (nested too deeply), expected {what}") from None


def json_lines(path: str | Path, what: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; ValueError with the line and the byte where it begins."""
    byte = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield dict(json.loads(line))
                    except (ValueError, TypeError):
                        seen = line.strip()[:60].decode(errors="replace")
                        raise ValueError(f"{path}:{number}: seen {seen!r} at byte {byte}, expected {what}") from None
                byte += len(line)
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None


def rows(path: str | Path, keys: Sequence[str], what: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines, whichever the file holds; each has `keys`."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            first = file.read(4096).lstrip()[:1]
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    if first == b"[":
        yield from listed(load_json(path, what), path, keys, what)
        return
    for number, row in enumerate(json_lines(path, what)):
        yield listed([row], f"{path}:{number + 1}", keys, what)[0]


def listed(value: Any, path: str | Path, keys: Sequence[str], what: str) -> list[dict[str, Any]]:
    """`value` when it is a list of objects that have `keys`."""
    if not isinstance(value, list):
        raise ValueError(f"{path}: seen a JSON {type(value).__name__}, expected {what}")
    for number, item in enumerate(value):
        if not isinstance(item, dict) or (missing := [key for key in keys if key not in item]):
            lost = keys[0] if not isinstance(item, dict) else missing[0]
            raise ValueError(f"{path}: item {number}: seen no {lost!r}, expected {what} with {', '.join(keys)}")
    return value


def mapped(value: Any, path: str | Path, what: str) -> dict[str, Any]:
    """`value` when it is an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: seen a JSON {type(value).__name__}, expected {what}")
    return value


def table(path: str | Path, columns: Sequence[str], what: str) -> Iterator[dict[str, str]]:
    """The rows of a tab-separated file with a header, quoted as the csv module quotes."""
    csv.field_size_limit(1 << 30)  # pictures in base64
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t")
            if missing := [name for name in columns if name not in (reader.fieldnames or [])]:
                raise ValueError(f"{path}: seen no column {missing[0]!r}, expected {what} with {', '.join(columns)}")
            yield from reader
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names the class {module}.{name}")


def plain_pickles(path: str | Path, count: int) -> list[Any]:
    """The first `count` objects of a pickle file that holds plain values; any class in it is refused, none is made."""
    try:
        with open(path, "rb") as file:
            return [_load(file) for _ in range(count)]
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected a pickle of plain values") from None
    except Exception as error:  # broken pickles raise whatever the byte at hand makes of them
        raise ValueError(f"{path}: seen {error or type(error).__name__}, expected a pickle of plain values") from None


def _load(file: IO[bytes]) -> Any:
    return _PlainUnpickler(file, encoding="latin1").load()
