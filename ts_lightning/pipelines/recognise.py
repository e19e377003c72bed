"""What kind of data a folder or a file holds, by looking into it."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts_lightning.pipelines.converters.files import load_json, rows
from ts_lightning.pipelines.converters.source import files_of

BY_NAME = ("localization", "all")  # a question for each name in a photo: where one is, or where all are
_ROWS = {
    "conversations": ("llava", "LLaVA's conversations"),
    "messages": ("ms-swift", "ms-swift's messages"),
    "problem": ("vlm-r1", "VLM-R1's problems"),
}
_FOLDERS = "a folder of COCO, Roboflow, VOC, LabelImg, YOLO or RefCOCO, one JSON, or shards"


@dataclass(frozen=True)
class Kind:
    """A converter with its options (None: shards as they are), what it reads, and what was seen."""

    converter: str | None
    path: Path
    reason: str
    options: dict[str, Any] = field(default_factory=dict)
    images: Path | None = None


def recognise(data: Path) -> Kind:
    """The kind of a folder or file, by what is in it; ValueError in one line for none that is known."""
    return _folder(data) if data.is_dir() else _file(data)


def _folder(data: Path) -> Kind:
    def has(*patterns: str) -> bool:
        return bool(files_of(data, *patterns))

    if has("*.tar"):
        return Kind(None, data, "shards")
    if has("*/_annotations.coco.json"):
        return Kind("coco", data, "Roboflow's COCO export", {"tasks": BY_NAME})
    if has("annotations/instances_*.json"):
        return Kind("coco", data, "COCO's folder", {"tasks": BY_NAME})
    if has("refs(*).p"):
        return _refcoco(data)
    if splits := files_of(data, "*.pth"):
        return _file(next((file for file in splits if "train" in file.stem), splits[0]))
    if has("Annotations/*.xml"):
        return Kind("voc", data, "a VOC folder", {"tasks": BY_NAME})
    if has("*.xml", "*/*.xml"):
        seen = "LabelImg's XML beside the pictures" if has("*.xml") else "Roboflow's VOC export"
        return Kind("voc", data, seen, {"tasks": BY_NAME})
    if has("labels/*.txt", "labels/*/*.txt"):
        return Kind("yolo", data, "YOLO's labels", {"tasks": BY_NAME})
    if has("*/labels/*.txt"):
        return Kind("yolo", data, "Roboflow's YOLO export", {"tasks": BY_NAME})
    if has("obj_*_data/**/*.txt"):
        return Kind("yolo", data, "CVAT's YOLO export", {"tasks": BY_NAME})
    if has("classes.txt", "obj.names") and has("*.txt"):
        return Kind("yolo", data, "YOLO's labels beside the pictures", {"tasks": BY_NAME})
    return _only_json(data)


def _refcoco(data: Path) -> Kind:
    """The training split by the split that papers report: unc, or umd of RefCOCOg."""
    known = [file.stem.removeprefix("refs(").removesuffix(")") for file in files_of(data, "refs(*).p")]
    chosen = next((name for name in ("unc", "umd") if name in known), known[0])
    reason = f"RefCOCO's refs, split train of {chosen}"
    return Kind("refcoco", data, reason, {"split": "train", "split_by": chosen})


def _only_json(data: Path) -> Kind:
    """The kind of a folder's JSON files, or of those in annotations/, where they are of one kind of rows, or one."""
    for folder in (data, data / "annotations"):
        files = files_of(folder, "*.json", "*.jsonl")
        if len(files) == 1:
            return _file(files[0])
        kinds = []
        for file in files:
            with suppress(ValueError):  # a dataset_info.json beside the rows
                kinds.append(_file(file))
        if kinds and all(kind.reason == kinds[0].reason for kind in kinds):
            if kinds[0].converter in ("llava", "ms-swift"):
                return Kind(kinds[0].converter, folder, kinds[0].reason, images=folder)
            names = ", ".join(kind.path.name for kind in kinds[:5])
            raise ValueError(
                f"data: seen {kinds[0].reason} {len(kinds)} times ({names}) in {folder}, expected one file"
            )
    seen = ", ".join(path.name for path in sorted(data.iterdir())[:5]) or "nothing"
    raise ValueError(f"data: seen {seen} in {data}, expected {_FOLDERS}")


def _file(data: Path) -> Kind:
    if data.suffix == ".pth":
        return Kind("refcoco", data, f"RefCOCO's split {data.stem}")
    what = "a folder, a JSON or JSON lines"
    try:
        first = None if data.suffix == ".jsonl" else load_json(data, what)
    except ValueError:
        first = None  # JSON lines under another ending
    if isinstance(first, dict) and {"images", "annotations"} <= first.keys():
        return _coco(data, first)
    try:
        row = next(rows(data, (), what), {})
    except (OSError, ValueError) as error:
        raise ValueError(f"data: {error}") from None
    for key, (converter, reason) in _ROWS.items():
        if key in row:
            return Kind(converter, data, reason, images=data.parent)
    raise ValueError(f"data: seen {sorted(row)[:5]} in {data}, expected images, conversations or messages")


def _coco(data: Path, content: dict[str, Any]) -> Kind:
    """COCO's layout under any name; MDETR's RefCOCO files have its keys too, and a caption in each image."""
    images = content["images"] if isinstance(content["images"], list) else []
    first = images[0] if images and isinstance(images[0], dict) else {}
    notes = content["annotations"]
    if (
        isinstance(notes, list)
        and notes
        and isinstance(notes[0], dict)
        and not {"bbox", "segmentation"} & notes[0].keys()
    ):
        raise ValueError(f"data: seen annotations of {sorted(notes[0])[:5]} in {data}, expected some with bbox")
    beside = _beside(data, str(first.get("file_name", "")))
    if "caption" in first:
        return Kind("refcoco", data, "MDETR's RefCOCO file", images=beside)
    return Kind("coco", data, "a COCO file", {"tasks": BY_NAME}, beside)


def _beside(data: Path, name: str) -> Path | None:
    """The folder near a file in which its first picture lies."""
    roots = [data.parent, data.parent.parent]
    places = [place for root in roots for place in (root, *sorted(one for one in root.iterdir() if one.is_dir()))]
    found = (place for place in places for one in (name, Path(name).name) if one and (place / one).is_file())
    return next(found, None)
