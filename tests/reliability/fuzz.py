"""Item 14: files of a stranger by the thousand. Each is read, or refused in one line that names it.

A case is a pure function of its kind and number, so "tar 1234" in a failure is enough to see it again:
python -m tests.reliability.fuzz tar 1234
"""

import faulthandler
import gc
import hashlib
import io
import json
import multiprocessing
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning import __version__ as lightning_version
from PIL import Image
from safetensors.torch import save

from tests.reliability import tiny_run
from ts_lightning import cli
from ts_lightning.data import index_shards
from ts_lightning.data.images import displayed_size, inspect_image
from ts_lightning.data.reader import ShardDataset, ShardReader
from ts_lightning.data.write import write_shards
from ts_lightning.models.package import read_package, write_package
from ts_lightning.models.pixels import load_pixels
from ts_lightning.models.vlm import VLM
from ts_lightning.runs.ask import encoded
from ts_lightning.runs.checkpoint_io import CheckpointIO
from ts_lightning.runs.class_paths import instantiate
from ts_lightning.runs.load import load
from ts_lightning.training import StepwiseSFT

# "loaded" are checkpoints too, by the doors that users have: `load(FILE)` and `validate --ckpt_path FILE`.
COUNTS = {"tar": 10_000, "picture": 2_000, "checkpoint": 1_200, "loaded": 300, "safetensors": 1_500}
MAX_SECONDS, MAX_HOLE_SECONDS, MAX_MEGABYTES = 5.0, 1.0, 600
Members = list[tuple[str, bytes]]


def fuzz(folder: Path, quick: bool) -> dict[str, Any]:
    """The figures of every kind; AssertionError with the cases that crashed, hung, or were refused without a name."""
    figures = {kind: run(folder / kind, kind, count // (50 if quick else 1)) for kind, count in COUNTS.items()}
    return {**figures, "hole_of_3_GB_s": hole(folder)}


def hole(folder: Path) -> float:
    """Seconds until 3 GB of nothing are refused, as each kind of header; AssertionError for more than one."""
    slowest = 0.0
    for kind in (b"L", b"K", b"x", b"g", b"0", b"S"):
        path = folder / "hole.tar"
        with path.open("wb") as file:
            file.write(_header(b"a.jpg", 3 << 30, kind))
            file.truncate(3 << 30)
        began, said = worked(), ""
        try:
            index_shards(str(path))
        except ValueError as refusal:
            said = str(refusal)
        assert str(path) in said, f"a hole of 3 GB as the header {kind!r}: {said or 'taken'}"
        slowest = max(slowest, worked() - began)
    assert slowest < MAX_HOLE_SECONDS, f"{slowest:.2f} s until a hole of 3 GB is refused"
    return round(slowest, 3)


def worked() -> float:
    """Seconds by the clock without those for which this thread waited for a core: sleeping and reading do count.

    Where the kernel doesn't say how long it waited (no Linux), the clock alone.
    """
    waited = Path("/proc/thread-self/schedstat")
    return time.monotonic() - (int(waited.read_text().split()[1]) / 1e9 if waited.exists() else 0.0)


def run(folder: Path, kind: str, count: int) -> dict[str, Any]:
    """`count` cases of a kind in processes of their own: what became of them, the slowest and the peak in MB."""
    folder.mkdir(parents=True)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    slowest, peak, start, jumps = 0.0, 0.0, 0, Counter[str]()
    context = multiprocessing.get_context("forkserver")  # a process begins with everything imported
    context.set_forkserver_preload([__name__])
    while start < count:  # a process that crashed or hung is replaced by one that begins behind that case
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_cases, args=(str(folder), kind, start, count, writer))
        process.start()
        writer.close()
        try:
            while True:
                start, outcome, seconds, peak_now = reader.recv()
                outcomes[outcome.split(":")[0]] += 1
                if outcome.startswith("fault"):
                    faults.append(f"{kind} {start}: {outcome}")
                jumps[f"{kind} {start}"] = round(peak_now - peak) if peak else 0
                slowest, peak, start = max(slowest, seconds), max(peak, peak_now), start + 1
        except EOFError:
            process.join()
        if start < count:
            faults.append(f"{kind} {start}: the process ended with {process.exitcode} (a crash or a hang)")
            start += 1
    assert not faults, f"{len(faults)} faults: " + "; ".join(faults[:10])
    assert peak < MAX_MEGABYTES, f"{kind}: peak {peak:.0f} MB, most by {jumps.most_common(5)}"
    return {"cases": count, **outcomes, "slowest_s": round(slowest, 2), "peak_mb": round(peak)}


def _cases(folder: str, kind: str, start: int, count: int, results: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number in range(start, count):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            faulthandler.dump_traceback_later(20 * MAX_SECONDS, exit=True)  # what never ends; cores may be shared
            outcome, seconds = case(Path(place), kind, number)
            faulthandler.cancel_dump_traceback_later()
        if seconds > MAX_SECONDS:
            outcome = f"fault: {seconds:.1f} s"
        results.send((number, outcome, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def case(folder: Path, kind: str, number: int) -> tuple[str, float]:
    """What becomes of one mutated file ("read", "bad record", "refused", "fault: why"), seconds `worked` on it.

    The making is not counted: writing a JSON of 40 MB takes longer than refusing it.
    """
    rng = random.Random(f"{kind} {number}")
    path, look = globals()[kind](folder, rng)
    began = worked()
    try:
        outcome = look()
    except (ValueError, OSError) as refusal:
        text = str(refusal)
        outcome = "refused"
        if "\n" in text or str(path) not in text:
            outcome = f"fault: the refusal {text[:200]!r} does not name {path.name} in one line"
    except BaseException as error:
        outcome = f"fault: {type(error).__name__}: {str(error)[:200]}"
    return outcome, worked() - began


Case = tuple[Path, Callable[[], str]]


# ---- tars


@cache
def _shard() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_shards((tiny_run.sample(i) for i in range(3)), folder, "f")[0].read_bytes()


@cache
def _members() -> Members:
    with tarfile.open(fileobj=io.BytesIO(_shard())) as tar_:
        return [(m.name, tar_.extractfile(m).read()) for m in tar_]  # type: ignore[union-attr]


def tar(folder: Path, rng: random.Random) -> Case:
    path = folder / "x.tar"
    rng.choice(TARS)(path, rng)

    def look() -> str:
        manifest = index_shards(str(path))
        reader, lines = ShardReader(manifest), [why for _, why in manifest.bad]
        assert all(where.startswith(f"{path}:") for where, _ in manifest.bad)
        for i in range(manifest.num_samples):
            try:
                sample = reader.read(i)
                pickle.dumps(sample)
                sample.to_json()
                for data in sample.image_bytes:
                    load_pixels(data, 24)
            except ValueError as error:
                lines.append(str(error))
        assert not any("\n" in line for line in lines), lines
        return "bad record" if lines else "read"

    return path, look


def _write(path: Path, members: Members, **options: Any) -> None:
    with tarfile.open(path, "w", **options) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def _flips(data: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _sliced(data: bytes, rng: random.Random, step: int = 1) -> bytes:
    """A slice left out, twice, elsewhere, or zeros in its place."""
    a, b = sorted(rng.randrange(len(data) // step + 1) * step for _ in range(2))
    c = rng.randrange(len(data) // step + 1) * step
    return rng.choice(
        [data[:a] + data[b:], data[:b] + data[a:], data[:c] + data[a:b] + data[c:], data[:a] + bytes(b - a) + data[b:]]
    )


def _resummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _header(name: bytes, size: int | bytes, kind: bytes) -> bytes:
    header = bytearray(512)
    header[: len(name[:100])] = name[:100]
    header[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    return _resummed(header)


def _tar_flips(path: Path, rng: random.Random) -> None:
    path.write_bytes(_flips(_shard(), rng, rng.choice([1, 2, 5, 50, 500])))


def _tar_header_flips(path: Path, rng: random.Random) -> None:
    """A field of a header changed, its checksum right again."""
    data = bytearray(_shard())
    places = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    for place in rng.sample(places, rng.randint(1, 3)):
        header = data[place : place + 512]
        for _ in range(rng.randint(1, 12)):
            header[rng.choice([rng.randrange(100), rng.randrange(124, 136), 156, rng.randrange(257, 512)])] = (
                rng.choice([rng.randrange(256), rng.choice(b"01257gxLKSAVDZ/\0\x80\xff ")])
            )
        data[place : place + 512] = _resummed(header)
    path.write_bytes(data)


def _tar_sliced(path: Path, rng: random.Random) -> None:
    path.write_bytes(_sliced(_shard(), rng, rng.choice([1, 512])))


def _tar_names(path: Path, rng: random.Random) -> None:
    pieces = [
        "..",
        "/",
        "\\",
        "\n",
        "\0",
        "é",
        "狗",
        "\udce9",
        "__x__",
        ".",
        " ",
        "a" * 300,
        "k00000",
        "%s",
        "{0}",
        "C:",
    ]
    members = list(_members())
    for i in rng.sample(range(len(members)), rng.randint(1, len(members))):
        name = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 4))) + rng.choice(
            [".jpg", ".json", "", ".0.jpg"]
        )
        members[i] = (name, members[i][1])
    _write(path, members, format=rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), errors="surrogateescape")


def _tar_members(path: Path, rng: random.Random) -> None:
    members = list(_members())
    for _ in range(rng.randint(1, 4)):
        i, j = rng.randrange(len(members)), rng.randrange(len(members))
        change = rng.randrange(4)
        if change == 0:
            members[i], members[j] = members[j], members[i]
        elif change == 1:
            members.insert(i, members[j])
        elif change == 2:
            members[i] = (members[i][0], members[j][1])
        elif len(members) > 1:
            members.pop(i)
    _write(path, members)


def _tar_chain(path: Path, rng: random.Random) -> None:
    """Long names, long links, PAX headers: many in a row, too long, or said to be longer than the file."""
    kind, count = rng.choice([b"L", b"K", b"x", b"g"]), rng.choice([1, 2, 4, 5, 300, 1000])
    body = rng.choice([b"11 path=aa\n", b"a" * 600 + b"\0", b"", b"\0" * 512, b"30 mtime=1350244992.0239602\n"])
    body = rng.choice([body, body * 200])
    size = rng.choice(
        [len(body), len(body), len(body) + 512, 1 << 20, 3 << 30, b"\x80" + b"\xff" * 11, b"-1".ljust(12)]
    )
    meta = _header(b"././@LongLink", size, kind) + body + bytes(-len(body) % 512)
    with path.open("wb") as file:  # piece by piece: the peak is to be the reader's
        file.writelines([meta] * count)
        file.write(_shard())


def _tar_pax(path: Path, rng: random.Random) -> None:
    keys = [
        "size",
        "path",
        "linkpath",
        "GNU.sparse.size",
        "GNU.sparse.major",
        "GNU.sparse.map",
        "mtime",
        "uid",
        "hdrcharset",
    ]
    values = [
        "x",
        "-1",
        "9" * 5000,
        "0",
        "12",
        "../../etc/passwd",
        "1e400",
        "",
        "\n",
        "\0",
        "BINARY",
        "k.json",
        "1,2,3",
    ]
    records = b""
    for _ in range(rng.randint(1, 4)):
        record = f" {rng.choice(keys)}={rng.choice(values)}\n".encode()
        length = len(record) + len(str(len(record) + 2))
        records += rng.choice([str(length), str(length), "9" * 5000, "0", "-4", str(length + 99)]).encode() + record
    head = _header(b"pax", len(records), rng.choice([b"x", b"g"])) + records + bytes(-len(records) % 512)
    data = _shard()
    place = rng.choice([i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"])
    path.write_bytes(data[:place] + head + data[place:])


def _tar_holes(path: Path, rng: random.Random) -> None:
    """Gigabytes of nothing: as a header, as a member, or behind the end."""
    size = rng.choice([3 << 30, 300 << 20, 17 << 20])
    kinds = [(b"L", b"x"), (b"x", b"x"), (b"0", b"a.json"), (b"0", b"a.jpg"), (b"S", b"a.jpg"), (b"", b""), (b"", b"")]
    kind, name = rng.choice(kinds)
    with path.open("wb") as file:
        file.write(_header(name, size, kind) if kind else _shard())
        file.truncate(file.tell() + size)


def _tar_json(path: Path, rng: random.Random) -> None:
    """A value of a record's JSON, or its text, replaced."""
    members = list(_members())
    i = rng.choice([i for i, (name, _) in enumerate(members) if name.endswith("json")])
    record = json.loads(members[i][1])
    for _ in range(rng.randint(1, 2)):
        spot: Any = record
        while True:
            key = rng.choice(list(spot) if isinstance(spot, dict) else list(range(len(spot))))
            if not (isinstance(spot[key], dict | list) and 0 < len(spot[key]) < 1000 and rng.random() < 0.8):
                break  # a large value in each part of a large one would fill the maker's memory, not the reader's
            spot = spot[key]
        spot[key] = _hostile(rng)
    text = json.dumps(record)
    if rng.random() < 0.3:
        text = text.replace('"meta": null', '"meta": ' + _nested(rng))
    data = text.encode()
    if rng.random() < 0.2:
        data = rng.choice([_flips(data, rng, 3), _sliced(data, rng), data + data, data.decode().encode("utf-16"), b""])
    members[i] = (members[i][0], data)
    _write(path, members)


def _nested(rng: random.Random) -> str:
    depth = rng.choice([3, 48, 51, 900, 100_000])
    return rng.choice(['{"a":' * depth + "1" + "}" * depth, '{"a":' + "[" * depth + "]" * depth + "}"])


def _hostile(rng: random.Random) -> Any:
    small: list[Any] = [
        *(None, True, -1, 0, 1.5, 10**400, 1e308, float("nan"), float("inf"), "", "\ud83d", "<image>", "{region:0}"),
        *("{region:" + "9" * 5000 + "}", "x" * 300_000, [], {}, [[]], [None], {"a": 1}, [0, 1], [0.1, 0.2, 0.3, 0.4]),
        *("\0", "\u202e", "<|im_end|>", 2**63, [[0, 10**9]], "assistant", "../../x", -0.0, [float("nan")] * 4),
    ]
    large: list[Callable[[], Any]] = [  # made when they are drawn: the peak is to be the reader's
        lambda: [0.1] * 1_000_000,
        lambda: ["a"] * 1_000_000,
        lambda: [[0.5, 0.5]] * 300_000,
        lambda: {str(i): i for i in range(100_000)},
    ]
    return rng.choice(large)() if rng.random() < 0.1 else rng.choice(small)


def _tar_picture(path: Path, rng: random.Random) -> None:
    members = list(_members())
    i = rng.choice([i for i, (name, _) in enumerate(members) if not name.endswith("json")])
    members[i] = (members[i][0], _mutated_picture(rng))
    _write(path, members)


def _tar_index(path: Path, rng: random.Random) -> None:
    """A whole tar, and a stranger's index beside it."""
    path.write_bytes(_shard())
    index_shards(str(path))
    beside = Path(f"{path}.idx")
    data = beside.read_bytes()
    choice = rng.randrange(3)
    if choice == 0:
        data = _flips(data, rng, rng.choice([1, 5, 100]))
    elif choice == 1:
        data = _sliced(data, rng)
    else:
        a, b = data[: data.find(b"\n") + 1], data[data.find(b"\n") + 1 :]
        data = a + _sliced(b or a, rng, 8)
    beside.write_bytes(data)


TARS = [
    *(_tar_flips, _tar_header_flips, _tar_sliced, _tar_names, _tar_members, _tar_chain, _tar_pax, _tar_holes),
    *(_tar_json, _tar_json, _tar_json, _tar_picture, _tar_index),
]


# ---- pictures


@cache
def _pictures() -> list[bytes]:
    noise = Image.effect_noise((90, 60), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((noise, kind, {}) for kind in ("JPEG", "PNG", "WEBP")),
        (noise, "JPEG", {"progressive": True, "exif": exif}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise.convert("P"), "PNG", {"transparency": 3}),
        (noise.convert("L"), "PNG", {"exif": exif}),
        (noise.convert("RGBA"), "WEBP", {"lossless": True, "exif": exif}),
        (noise.convert("1"), "PNG", {}),
    ]
    stored = []
    for image, kind, options in kinds:
        data = io.BytesIO()
        image.save(data, kind, **options)
        stored.append(data.getvalue())
    return stored


def _mutated_picture(rng: random.Random) -> bytes:
    data = rng.choice(_pictures())
    choice = rng.randrange(6)
    if choice == 0:
        return _flips(data, rng, rng.choice([1, 4, 40]))
    if choice == 1:  # where sizes and tables are
        return _flips(data[:200], rng, rng.choice([1, 4, 20])) + data[200:]
    if choice == 2:
        return _sliced(data, rng)
    if choice == 3:  # a size field of any value
        place = rng.randrange(min(400, len(data) - 4))
        value = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
        return data[:place] + struct.pack(rng.choice(["<I", ">I"]), value) + data[place + 4 :]
    if choice == 4:  # one format's beginning, another's rest
        return data[: rng.randrange(100)] + rng.choice(_pictures())[rng.randrange(100) :]
    return rng.choice([b"", b"\xff\xd8\xff", data * 3, rng.randbytes(500), data[:12] + rng.randbytes(2000)])


def picture(folder: Path, rng: random.Random) -> Case:
    """As bytes, which have no name; as a file that is asked about; and as a record that is trained on."""
    path, data = folder / "x.jpg", _mutated_picture(rng)
    path.write_bytes(data)
    sample = json.loads(tiny_run.sample(0).to_json())
    sample["images"][0]["width"], sample["images"][0]["height"] = displayed_size(data) or (40, 30)
    _write(folder / "x.tar", [("k.jpg", data), ("k.json", json.dumps(sample).encode())])

    def look() -> str:
        refusals = []
        for read in (lambda: load_pixels(data, 24), lambda: load_pixels(data, 24, "pad"), lambda: inspect_image(data)):
            try:
                read()
            except ValueError as error:  # a picture is bytes here: the reader puts shard and key before this line
                refusals.append(str(error))
        assert all("\n" not in line and line.startswith("image: seen") and " at 0x" not in line for line in refusals), (
            refusals
        )
        manifest = index_shards(str(folder / "x.tar"))
        bad = ShardDataset(manifest, lambda sample, **_: {"x": load_pixels(sample.image_bytes[0], 24)}).row(0)["bad"]
        assert bool(bad) == bool(refusals), (bad, refusals)
        assert bad is None or (bad[0].startswith(f"{folder / 'x.tar'}:") and "\n" not in bad[1]), bad
        encoded(path)
        assert not refusals, refusals
        return "read"

    return path, look


# ---- checkpoints and safetensors


@cache
def _checkpoint() -> bytes:
    data = io.BytesIO()
    tensors = {f"layer.{i}.weight": torch.arange(12.0).reshape(3, 4) for i in range(3)}
    torch.save({"state_dict": tensors, "epoch": 1, "global_step": 7, "loops": {"a": [1, {"b": 2}]}}, data)
    return data.getvalue()


def checkpoint(folder: Path, rng: random.Random) -> Case:
    path = folder / "x.ckpt"
    path.write_bytes(_mutated_checkpoint(_checkpoint(), rng))
    if rng.random() < 0.1:
        (folder / "x.ckpt.sha256").write_bytes(
            rng.choice([b"", b"\xff\xfe", b"x" * 100, b"\n \n", b"0" * 64 + b"  x.ckpt\n"])
        )

    def look() -> str:
        CheckpointIO().load_checkpoint(path)
        return "read"

    return path, look


def _mutated_checkpoint(data: bytes, rng: random.Random) -> bytes:
    pickled = data.find(b"\x80\x02")
    end = data.find(b"PK", pickled)
    choice = rng.randrange(5)
    if choice == 0:
        data = _flips(data, rng, rng.choice([1, 5, 50]))
    elif choice == 1:
        data = _sliced(data, rng)
    elif choice == 2:  # the program of the pickle
        data = data[:pickled] + _flips(data[pickled:end], rng, rng.choice([1, 2, 8])) + data[end:]
    elif choice == 3:  # the directory of the zip
        place = data.rfind(b"PK\x01\x02")
        data = data[:place] + _flips(data[place:], rng, rng.choice([1, 3, 9]))
    else:
        data = rng.choice(
            [b"", b"PK\x03\x04", data[pickled:end], b"\x80\x02" + rng.randbytes(300), data + b"x" * 70_000]
        )
    return data


@cache
def _trained() -> bytes:
    """The checkpoint of the run that is tortured, after no step."""
    config = tiny_run.config("train-*.tar", Path("run"), 1)
    module = StepwiseSFT(instantiate(VLM, **config["model"]["init_args"]["vlm"]))
    counted = {"batch_progress": {"total": {"ready": 1, "completed": 1}}, "state_dict": {}}
    stored: dict[str, Any] = {
        **{"config": config, "epoch": 0, "global_step": 1, "pytorch-lightning_version": lightning_version},
        **{"callbacks": {"SaveCheckpoints": {"kept": []}}, "lr_schedulers": [{"last_epoch": 1}]},
        "loops": {f"{verb}_loop": counted for verb in ("fit", "validate", "test", "predict")},
        "optimizer_states": [{"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.01, "params": [0]}]}],
        "ShardDataModule": {"version": 1, "epoch": 0, "samples_consumed": 4, "served": 0},
    }
    module.on_save_checkpoint(stored)
    data = io.BytesIO()
    torch.save(stored, data)
    return data.getvalue()


def _tampered(rng: random.Random) -> bytes:
    """A value of a whole checkpoint replaced by another, taken out, or put beside."""
    stored = torch.load(io.BytesIO(_trained()), weights_only=True)
    for _ in range(rng.randint(1, 2)):
        spot: Any = stored
        while True:
            key = rng.choice(list(spot) if isinstance(spot, dict) else list(range(len(spot))))
            if not (isinstance(spot[key], dict | list) and spot[key] and rng.random() < 0.9):
                break
            spot = spot[key]
        tensors = [
            torch.tensor(float("nan")),
            torch.zeros(0),
            torch.zeros(3, 1 << 14),
            torch.ones(2, dtype=torch.int64),
        ]
        value = rng.choice(
            [_hostile(rng), rng.choice(tensors), rng.choice(["ts_lightning.models.LoRAVLM", "os.system"])]
        )
        if rng.random() < 0.2 and isinstance(spot, dict):
            spot.pop(key)
        elif rng.random() < 0.2 and isinstance(spot, dict):
            spot["more"] = value
        else:
            spot[key] = value
        if not spot:
            break
    data = io.BytesIO()
    torch.save(stored, data)
    return data.getvalue()


def loaded(folder: Path, rng: random.Random) -> Case:
    """A checkpoint by the doors that users have."""
    path = folder / "x.ckpt"
    path.write_bytes(_tampered(rng) if rng.random() < 0.8 else _mutated_checkpoint(_trained(), rng))
    validates = rng.random() < 0.5
    (folder / "x.tar").write_bytes(_shard())

    def look() -> str:
        if not validates:
            load(path)
            return "read"
        suite = ["--data.init_args.val", json.dumps({"toy": {"shards": str(folder / "x.tar")}})]
        trainer = {"default_root_dir": folder / "out", "accelerator": "cpu", "enable_progress_bar": "false"}
        options = [f"--trainer.{name}={value}" for name, value in trainer.items()]
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = cli.main(["validate", "--ckpt_path", str(path), *suite, *options])
        gc.unfreeze()  # a command keeps all that it imports: it ends with its process, which here goes on
        gc.collect()
        if status == 2:
            raise ValueError("\n".join(line for line in said.getvalue().splitlines() if ": error: " in line))
        assert status == 0, status
        return "read"

    return path, look


@cache
def _safetensors() -> bytes:
    return save({f"layer.{i}.weight": torch.arange(12.0).reshape(3, 4) for i in range(3)}, {"format": "pt"})


def safetensors(folder: Path, rng: random.Random) -> Case:
    """A package's weights, its sum made right again: the file is what its sender wanted."""
    package = folder / "package"
    base, codec = dict.fromkeys(("class", "name", "sha256"), "x"), dict.fromkeys(("name", "grid", "frame"), "x")
    config = {"package": "x", "base": base, "backbone": {}, "codec": codec, "options": {}, "max_new_tokens": 1}
    write_package(package, {"a": torch.zeros(2)}, config, {})
    data = _safetensors()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    choice = rng.randrange(4)
    if choice == 0:
        data = _flips(data, rng, rng.choice([1, 5, 50]))
    elif choice == 1:
        data = _sliced(data, rng)
    elif choice == 2:
        data = _flips(data[:header], rng, rng.choice([1, 2, 6])) + data[header:]
    else:
        text = rng.choice(
            [b"[" * 100_000, b"{}", b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,144]}}', b"\xff"]
        )
        data = struct.pack("<Q", rng.choice([len(text), 1 << 62, 0])) + text + data[header:]
    (package / "package.safetensors").write_bytes(data)
    config = json.loads((package / "twin_config.json").read_text())
    config["sha256"] = hashlib.sha256(data).hexdigest()
    (package / "twin_config.json").write_text(json.dumps(config))

    def look() -> str:
        read_package(package)
        return "read"

    return package, look


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(*case(Path(place), sys.argv[1], int(sys.argv[2])))
