"""One file for each foreign format: `read(path, pictures)` yields samples."""

from pathlib import Path

_SHARED = ("coco_file", "conversation", "files", "photo_objects", "pointing", "region_text", "source", "vqa")
NAMES = sorted(
    file.stem.replace("_", "-")
    for file in Path(__file__).parent.glob("*.py")
    if file.stem not in (*_SHARED, "__init__")
)
