"""Tars, pictures and folders of a stranger: name -> what has to be refused with a ValueError of one line."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from tests.reliability import images, tiny_run
from ts_lightning.data import index_shards
from ts_lightning.models.backbones.hub_layout import load_tokenizer, small_tokenizer
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.llava_parts import assemble
from ts_lightning.models.pixels import load_pixels
from ts_lightning.runs.load import load

Attempts = dict[str, Callable[[], object]]
Build = Callable[[tarfile.TarFile], None]


class Evil:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def member(
    name: str, data: bytes = b"{}", kind: bytes = tarfile.REGTYPE, link: str = "", pax: dict[str, str] | None = None
) -> Build:
    """Adds one member; `pax` are headers that overrule its own."""

    def build(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, 0 if kind != tarfile.REGTYPE else len(data)
        info.pax_headers = pax or {}
        archive.addfile(info, io.BytesIO(data))

    return build


def tars(folder: Path, hit: Path) -> Attempts:
    """Names that lead out, links, devices, holes, sizes that are not there or too large, pickles, deep JSON."""

    def tar(name: str, build: Build) -> Callable[[], object]:
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            build(archive)
        return lambda: index_shards(str(folder / f"{name}.tar"))

    def sized(name: str, field: bytes, length: int = 10240) -> Callable[[], object]:
        """A member whose size field is written by hand."""
        header = bytearray(tarfile.TarInfo("a.json").tobuf(tarfile.GNU_FORMAT))
        header[124:136], header[148:156] = field, b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path = folder / f"{name}.tar"
        path.write_bytes(header)
        os.truncate(path, 512 + length)  # a hole: as large as one likes, for nothing
        return lambda: index_shards(str(path))

    headers = {"major": "1", "minor": "0", "name": "b.json", "realsize": "9"}
    sparse = {f"GNU.sparse.{key}": value for key, value in headers.items()}
    return {
        ".. member": tar("up", member("../../up.json")),
        "absolute member": tar("root", member("/tmp/root.json")),
        ".. by a PAX header": tar("pax", member("a.json", pax={"path": "../../up.json"})),
        "size by a PAX header": tar("pax-size", member("a.json", pax={"size": "99999999999"})),
        "symlink": tar("symlink", member("a.json", kind=tarfile.SYMTYPE, link="/etc/passwd")),
        "hard link": tar("hardlink", member("a.json", kind=tarfile.LNKTYPE, link="b.json")),
        "device": tar("device", member("a.json", kind=tarfile.CHRTYPE)),
        "sparse member": tar("sparse", member("a.json", kind=tarfile.GNUTYPE_SPARSE)),
        "sparse by a PAX header": tar("sparse2", member("a.json", b"0\n" * 256, pax=sparse)),
        "size below zero": sized("below", b"\xff" * 12),
        "huge declared size": sized("huge", b"\x80" + b"\x7f" * 11),
        "JSON of 6 GB": sized("hole", b"%011o\0" % (6 << 30), (6 << 30) + 1024),
        "pickle in a tar": tar("pickle", member("a.pkl", pickle.dumps(Evil(hit)))),
        "deep JSON": tar("deep", member("a.json", b"[" * 200_000)),
    }


def pictures() -> Attempts:
    """Decompression bombs, in the pixels and beside them."""
    png = images.kinds()["png"][0]

    def beside(kind: bytes) -> bytes:
        data = b"a\0\0" + zlib.compress(b"\0" * 50_000_000)
        return png[:33] + struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bombs = {"bomb": images.png_header(12000, 12000), "big bomb": images.png_header(60000, 60000)}
    bombs |= {"bomb in a text": beside(b"zTXt"), "bomb in a profile": beside(b"iCCP")}
    return {name: lambda data=data: load_pixels(data, 32) for name, data in bombs.items()}  # type: ignore[misc]


def checkpoints(folder: Path, hit: Path) -> Attempts:
    """Pickles, classes of others, and a file that unpacks to a hundred times its size."""
    (folder / "raw.ckpt").write_bytes(pickle.dumps(Evil(hit)))
    vlm = tiny_run.config("x", folder, 1)["model"]["init_args"]["vlm"]
    stored: dict[str, dict[str, object]] = {
        "pickle in a checkpoint": {"x": Evil(hit)},
        "class of a checkpoint": {"hyper_parameters": {"_class_path": "evil_module.Evil", "vlm": vlm}},
        "Lightning's instantiator": {
            "hyper_parameters": {"_class_path": "os.system", "_instantiator": "os.system", "vlm": vlm}
        },
        "settings that are a list": {"hyper_parameters": [1]},
        "bomb": {"x": torch.zeros(10_000_000)},
    }
    for name, values in stored.items():
        torch.save({"state_dict": {}, **values}, folder / f"{name}.ckpt")
    with zipfile.ZipFile(folder / "bomb.ckpt") as old, zipfile.ZipFile(folder / "zip.ckpt", "w", 8) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    (folder / "bomb.ckpt").unlink()
    names = {name: f"{name}.ckpt" for name in stored if name != "bomb"}
    names |= {"bare pickle as a checkpoint": "raw.ckpt", "compressed checkpoint": "zip.ckpt"}
    return {name: lambda file=file: load(folder / file) for name, file in names.items()}  # type: ignore[misc]


def folders(folder: Path, hit: Path) -> Attempts:
    """Models whose weights are pickles, with code of their own, and descriptions that name classes of others."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    language = {"model_type": "llama", "vocab_size": 2048, **sizes}
    vision = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **sizes}
    evil = {"class_path": "evil_module.Evil", "init_args": {}}

    def put(name: str, **files: object) -> Path:
        place = folder / name
        place.mkdir()
        for file, data in files.items():
            text = data if isinstance(data, str) else json.dumps(data)
            (place / file.replace("__", ".")).write_text(text)
        return place

    part = put("part", config__json=language)
    whole = put("whole", config__json={"model_type": "llava", "text_config": language, "vision_config": vision})
    for place in (part, whole):
        small_tokenizer().save_pretrained(place)
        torch.save({"x": Evil(hit)}, place / "pytorch_model.bin")
    own = {"auto_map": {"AutoTokenizer": ["evil_module.Evil", None]}, "tokenizer_class": "Evil"}
    code = put(
        "code", config__json=language | {"auto_map": {"AutoConfig": "evil_module.Evil"}}, tokenizer_config__json=own
    )
    (code / "evil_module.py").write_text(f"import os\nos.system('touch {hit}')\nclass Evil: pass\n")
    standalone = put("standalone", ts_lightning__json={"backbone": evil, "max_new_tokens": 1})
    deep = put("deep", twin_config__json="[" * 100_000)
    return {
        "pickled weights": lambda: LlavaBackbone(str(whole)),
        "pickled weights of a part": lambda: assemble(part, part, folder / "assembled"),
        "tokenizer with code": lambda: load_tokenizer(code, "<image>", "</s>"),
        "class of a standalone folder": lambda: load(standalone),
        "deep JSON in a package": lambda: load(deep),
    }
