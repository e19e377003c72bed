"""Reading foreign files: JSON, JSON lines, Parquet, tables and pickles, errors that name file and place."""

import codecs
import csv
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn


class Broken(dict[str, Any]):
    """A row that can't be read: it says why as soon as it is used, inside the guard of that row."""

    def __init__(self, why: str, place: str) -> None:
        super().__init__()
        self.why, self.place = why, place

    def __getitem__(self, key: str) -> NoReturn:
        raise ValueError(self.why)

    def get(self, key: str, default: Any = None) -> NoReturn:  # type: ignore[override]
        raise ValueError(self.why)

    def __contains__(self, key: object) -> NoReturn:
        raise ValueError(self.why)


def read_text(path: str | Path, what: str) -> str:
    """A text file in UTF-8 or, where its first bytes say so, UTF-16; with Unix line ends. ValueError names the file."""
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: seen no {encoding.removesuffix('-sig').upper()} at byte {error.start}, expected {what}"
        ) from None


def load_json(path: str | Path, what: str) -> Any:
    """A JSON file; ValueError with the byte where it ends too early."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        raise ValueError(f"{path}: seen no JSON: broken at byte {byte} ({error.msg}), expected {what}") from None
    except RecursionError:
        raise ValueError(f"{path}: seen no JSON that can be read (nested too deeply), expected {what}") from None


def json_lines(path: str | Path, what: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that is none is `Broken`. ValueError where the first two are."""
    byte, first, good = 0, None, False
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    try:
                        row = dict(json.loads(line))
                    except (ValueError, TypeError, RecursionError):
                        seen = f"seen {line.strip()[:60].decode(errors='replace')!r} at byte {byte}, expected {what}"
                        row = Broken(seen, f"(line {number})")
                        if not good and first is None:
                            first = row  # of a file of another kind the next one is no object either
                            continue
                        if not good:
                            break
                    if first is not None and not good:
                        yield first
                    good = True
                    yield row
                byte += len(line)
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    if first is not None and not good:
        raise ValueError(f"{path}:{first.place[6:-1]}: {first.why}")


def rows(path: str | Path, keys: Sequence[str], what: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, of JSON lines or of a Parquet file; ValueError where none has `keys`.

    What is no object, or lacks one of `keys`, is `Broken`.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        yield from _parquet(path, keys, what)
        return
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    if start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[" or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        yield from listed(load_json(path, what), path, keys, what)
        return
    any_good, first = False, None
    for number, row in enumerate(json_lines(path, what)):
        checked = _checked(row, keys, what, number)
        any_good |= not isinstance(checked, Broken)
        first = first or (checked if isinstance(checked, Broken) else None)
        yield checked
    if first is not None and not any_good:
        raise ValueError(f"{path}:1: item 0: {first.why}")


def _parquet(path: Path, columns: Sequence[str], what: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, a few at a time: pictures lie inside."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ValueError(f"{path}: Parquet files need pyarrow: pip install 'ts-lightning[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise ValueError(f"{path}: seen no column {missing[0]!r}, expected {what} with {', '.join(columns)}")
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    except ArrowInvalid as error:
        raise ValueError(f"{path}: seen no Parquet ({str(error).splitlines()[0]}), expected {what}") from None


def listed(value: Any, path: str | Path, keys: Sequence[str], what: str) -> list[dict[str, Any]]:
    """`value` when it is a list whose objects have `keys`; an item without them is `Broken`.

    ValueError where it is no list, or no item has them: a file of another kind.
    """
    if not isinstance(value, list):
        raise ValueError(f"{path}: seen a JSON {type(value).__name__}, expected {what}")
    checked = [_checked(item, keys, what, number) for number, item in enumerate(value)]
    if checked and all(isinstance(one, Broken) for one in checked):
        raise ValueError(f"{path}: item 0: {checked[0].why}")  # type: ignore[attr-defined]
    return checked


def _checked(item: Any, keys: Sequence[str], what: str, number: int) -> dict[str, Any]:
    if isinstance(item, dict) and (isinstance(item, Broken) or all(key in item for key in keys)):
        return item
    lost = next((f"no {key!r}" for key in keys if not isinstance(item, dict) or key not in item), "no object")
    return Broken(f"seen {lost}, expected {what}" + (f" with {', '.join(keys)}" if keys else ""), f"(item {number})")


def name_of(row: dict[str, Any], key: str) -> Any:
    """What a row calls itself under `key`; of a broken row its place in the file."""
    return row.place if isinstance(row, Broken) else row.get(key)


def mapped(value: Any, path: str | Path, what: str) -> dict[str, Any]:
    """`value` when it is an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: seen a JSON {type(value).__name__}, expected {what}")
    return value


def table(path: str | Path, columns: Sequence[str], what: str) -> Iterator[dict[str, str]]:
    """The rows of a tab-separated file with a header, quoted as the csv module quotes."""
    csv.field_size_limit(1 << 30)  # pictures in base64
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            if missing := [name for name in columns if name not in (reader.fieldnames or [])]:
                raise ValueError(f"{path}: seen no column {missing[0]!r}, expected {what} with {', '.join(columns)}")
            yield from reader
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: seen {error}, expected {what} in UTF-8") from None


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
