"""Ref-L4: long referring expressions over 365 classes, one box each."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import name_of, rows
from ts_lightning.pipelines.converters.source import Pictures, clean, from_xywh, grounding, located

# COCO's class and the class of Objects365 that the benchmark counts it as, for the mean over classes.
_TABLE = """
1:1 2:47 3:6 4:59 5:115 6:56 7:117 8:66 9:22 10:41 11:177 13:128 14:250 15:25 16:56 17:140 18:93 19:79
20:100 21:97 22:145 23:296 24:179 25:181 27:39 28:40 31:13 32:44 33:194 34:220 35:119 36:174 37:100000
38:155 39:138 40:114 41:146 42:147 43:205 44:9 46:36 47:11 48:89 49:85 50:94 51:26 52:113 53:83 54:266
55:104 56:142 57:153 58:235 59:144 60:151 61:98 62:3 63:51 64:26 65:76 67:98 70:154 72:37 73:74 74:116
75:133 76:107 77:62 78:164 79:135 80:278 81:82 82:134 84:19 85:95 86:31 87:170 88:70 89:328 90:227
"""
_OBJECTS365 = {coco: other for coco, _, other in (pair.partition(":") for pair in _TABLE.split())}


def read(path: str | Path, pictures: Pictures | None = None, split: str = "test") -> Iterator[Sample]:
    """One question a row of ref-l4-SPLIT.parquet (val or test); `path` is its folder, or the file, also as JSON.

    Pictures are those of images.tar.gz, unpacked in the folder or below images/. `meta.class` is the class of
    Objects365 that the row counts under; COCO's photos are excluded by their names.
    """
    file, folder = located(path, f"ref-l4-{split}.parquet", f"ref-l4-{split}.json*")
    here = (pictures or Pictures()).under(folder, "images", ".")
    for row in rows(file, ("id", "caption", "bbox", "file_name", "width", "height"), "Ref-L4's rows"):
        with here.dropped.row(f"{file.name} id {name_of(row, 'id')}"):
            known = here.get(row["file_name"], (row["width"], row["height"]))
            if known is None:
                continue
            xywh = list(row["bbox"])
            size = (known[0].width, known[0].height)
            if (box := here.dropped.box(from_xywh(xywh), size, f"{file.name} id {row['id']}")) is None:
                continue
            kind = str(row.get("ori_category_id"))
            source, _, number = kind.rpartition("_")
            named = f"o365_{_OBJECTS365.get(number, number)}" if source == "refcoco" and number in _OBJECTS365 else kind
            meta = {"question_id": row["id"], "class": named, "is_rewrite": row.get("is_rewrite"), "split": split}
            area = float(xywh[2] * xywh[3])
            key = f"ref-l4-{split}-{row['id']}"
            yield grounding("ref_l4", key, known, clean(row["caption"]), box, area_px=area, meta=meta)
