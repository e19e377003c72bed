"""Every box of a data set through image pipeline, prompt text, parser and back."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.data.manifest import Manifest
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.coordinates import Size
from ts_lightning.metrics.frames import Labelled, frame_reports, verdict
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.pixels import image_size
from ts_lightning.reports.drawing import Picture, contact_sheet

BUCKETS = {"small (< 32x32 px)": (0, 32**2), "medium": (32**2, 96**2), "large (> 96x96 px)": (96**2, float("inf"))}


def raw_boxes(manifest: Manifest) -> Iterator[tuple[Labelled, bytes]]:
    """Every box of every record once per image, unchecked, with its image's bytes."""
    reader, seen = ShardReader(manifest), set()
    for shard in manifest.shards:
        for r in range(shard.num_records):
            record, images = reader.read_bytes(shard, r)
            fields = json.loads(record)
            for region in fields["regions"]:
                image = fields["images"][region["image"]]
                for box in region["boxes"] or [region["box"]]:
                    key = (image["name"], tuple(box or ()))
                    if box and key not in seen:
                        seen.add(key)
                        size = (image["width"], image["height"])
                        yield Labelled(tuple(box), size, image["name"]), images[region["image"]]


def check_coordinates(backbone: Backbone, manifest: Manifest) -> dict[str, Any]:
    """The report of `ts-lightning data check` as plain values."""
    codec, collapsed, impossible = backbone.encoder.codec, 0, 0
    labels: list[Labelled] = []
    sizes: dict[str, tuple[Size, Size]] = {}
    overlaps: dict[str, list[float]] = {name: [] for name in BUCKETS}
    for label, data in raw_boxes(manifest):
        labels.append(label)
        if label.image not in sizes:
            sizes[label.image] = (label.size, image_size(data))
        x1, y1, x2, y2 = label.box
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            impossible += 1
            continue
        back = round_trip(codec, (x1, y1, x2, y2), label.size)
        collapsed += back is None
        area = (x2 - x1) * label.size[0] * (y2 - y1) * label.size[1]
        bucket = next(name for name, (low, high) in BUCKETS.items() if low <= area < high)
        overlaps[bucket].append(iou(label.box, back) if back else 0.0)
    every = [value for values in overlaps.values() for value in values]
    reports = frame_reports(labels, backbone.encoder.resized)
    return {
        "codec": codec.name,
        "grid": codec.space.grid,
        "frame": codec.space.frame,
        "images": len(sizes),
        "boxes": len(labels),
        "impossible_boxes": impossible,
        "collapsed_boxes": collapsed,
        "wrong_sizes": [f"{n}: {a} stored, {b} displayed" for n, (a, b) in sizes.items() if a != b],
        "iou": {"min": min(every, default=None), "mean": _mean(every)},
        "ceiling": {name: {"boxes": len(v), "mean_iou": _mean(v)} for name, v in overlaps.items()},
        "frames": {name: report._asdict() for name, report in reports.items()},
        "verdict": verdict(labels, reports, backbone.encoder.resized) if labels else "cannot tell: seen no box",
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"codec {report['codec']}, grid {report['grid']}, frame {report['frame']}",
        f"{report['boxes']} boxes on {report['images']} images, {report['impossible_boxes']} impossible",
        f"round trip: IoU min {_figure(report['iou']['min'])}, mean {_figure(report['iou']['mean'])}, "
        f"{report['collapsed_boxes']} boxes collapse",
    ]
    for name, ceiling in report["ceiling"].items():
        lines.append(f"  ceiling, {name:20} {_figure(ceiling['mean_iou'])}  ({ceiling['boxes']} boxes)")
    lines.append(f"{'frame':34} {'boxes inside':>12} {'on its border':>14}")
    for name, frame in report["frames"].items():
        same = "  same here" if frame["coincides"] else ""
        lines.append(f"{name:34} {frame['inside']:12.1%} {frame['border']:14.1%}{same}")
    lines += [f"wrong size  {line}" for line in report["wrong_sizes"][:10]]
    return "\n".join([*lines, f"verdict: {report['verdict']}"])


def write_contact_sheet(backbone: Backbone, manifest: Manifest, path: Path, limit: int = 12) -> int:
    """What the model sees of the first `limit` images, with their boxes after the round trip; returns their number."""
    encoder = backbone.encoder
    grouped: dict[str, tuple[bytes, Size, list[Box]]] = {}
    for label, data in raw_boxes(manifest):
        if len(grouped) < limit or label.image in grouped:
            x1, y1, x2, y2 = label.box
            grouped.setdefault(label.image, (data, label.size, []))[2].append((x1, y1, x2, y2))
    pictures = []
    for name, (data, size, boxes) in grouped.items():
        returned = [box for raw in boxes if (box := round_trip(encoder.codec, raw, size))]
        back, true = ([seen_box(box, size, encoder.pixel_mode) for box in some] for some in (returned, boxes))
        note = f"{len(boxes)} boxes, {size[0]} x {size[1]} px"
        pictures.append(Picture(encoder.seen_picture(data), name, note, [back], true))
    if pictures:
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, title="what the model sees").save(path)
    return len(pictures)


def round_trip(codec: Codec, box: Box, size: Size) -> Box | None:
    """A box after prompt text and parser; None where it collapses on the grid."""
    boxes = [back for mention in codec.parse(codec.format([box], size), size) for back in mention.boxes]
    return boxes[0] if boxes else None


def seen_box(box: Sequence[float], size: Size, pixel_mode: str) -> Box:
    """A box of the displayed image in [0, 1] of the picture that the model sees."""
    x1, y1, x2, y2 = box
    if pixel_mode != "pad":
        return x1, y1, x2, y2
    wide, high = size[0] / max(size), size[1] / max(size)
    left, top = (1 - wide) / 2, (1 - high) / 2
    return left + x1 * wide, top + y1 * high, left + x2 * wide, top + y2 * high


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
