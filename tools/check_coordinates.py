#!/usr/bin/env python
"""Send every box of a data set through the real pipeline and back, and say in which frame it was labelled.

    python tools/check_coordinates.py --shards 'data/train-*.tar' --config configs/fit/coco_localization.yaml

Prints round-trip IoU, the ceiling of the coordinate grid by object size, and a verdict; writes a contact sheet of what
the model sees. Exit status 0: labelled in the right frame or can't be told; 1: a wrong frame or wrong sizes; 2: the
shards or the configuration can't be used.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from ts_lightning.data import index_shards
from ts_lightning.metrics.frames import RIGHT
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.reports.coordinates import check_coordinates, write_contact_sheet
from ts_lightning.runs.class_paths import instantiate


def backbone_of(config: Path) -> Backbone:
    """The backbone that a fit configuration names."""
    try:
        spec = yaml.safe_load(config.read_text())["model"]["init_args"]["vlm"]["init_args"]["backbone"]
    except (KeyError, TypeError, yaml.YAMLError):
        raise ValueError(f"{config}: seen no model.init_args.vlm.init_args.backbone, expected a fit config") from None
    return instantiate(Backbone, spec["class_path"], spec.get("init_args", {}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="+", required=True, help="tars or glob patterns")
    parser.add_argument("--config", type=Path, required=True, help="a configuration of ts-lightning fit")
    parser.add_argument("--out", type=Path, default=Path("outputs/coordinates"))
    args = parser.parse_args()
    try:
        backbone, manifest = backbone_of(args.config), index_shards(args.shards)
        report = check_coordinates(backbone, manifest)
        drawn = write_contact_sheet(backbone, manifest, args.out / "seen.png")
        (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"codec {report['codec']}, grid {report['grid']}, frame {report['frame']}")
    print(f"{report['boxes']} boxes on {report['images']} images, {report['impossible_boxes']} impossible")
    print(f"round trip: IoU min {report['iou']['min']:.3f}, mean {report['iou']['mean']:.3f}", end="")
    print(f", {report['collapsed_boxes']} boxes collapse")
    for name, ceiling in report["ceiling"].items():
        mean = "-" if ceiling["mean_iou"] is None else f"{ceiling['mean_iou']:.3f}"
        print(f"  ceiling, {name:20} {mean}  ({ceiling['boxes']} boxes)")
    print(f"{'frame':34} {'boxes inside':>12} {'on its border':>14}")
    for name, frame in report["frames"].items():
        print(f"{name:34} {frame['inside']:12.1%} {frame['border']:14.1%}{'  same here' if frame['coincides'] else ''}")
    for line in report["wrong_sizes"][:10]:
        print(f"wrong size  {line}")
    print(f"verdict: {report['verdict']}")
    print(f"{drawn} pictures in {args.out / 'seen.png'}")
    return int(bool(report["wrong_sizes"]) or not report["verdict"].startswith((RIGHT, "cannot tell")))


if __name__ == "__main__":
    sys.exit(main())
