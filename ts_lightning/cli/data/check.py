"""`ts-lightning data check`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ts_lightning.cli.configurations import read_configuration

if TYPE_CHECKING:
    from ts_lightning.models.backbones.base import Backbone


def check(*shards: str, config: str, out: Path = Path("outputs/coordinates")) -> int:
    """Send every box of shards through the real pipeline and back, and say in which frame it was labelled.

        ts-lightning data check 'data_shards/coco/train-*.tar' --config fit/coco_localization.yaml

    Prints round-trip IoU, the ceiling of the coordinate grid by object size, and a verdict; writes a contact sheet of
    what the model sees. Exit status 0: labelled in the right frame or can't be told; 1: a wrong frame or wrong sizes;
    2: the shards or the configuration can't be used.

    Args:
        shards: tars or glob patterns
        config: a configuration of `fit`, which names the backbone
        out: folder for report.json and seen.png
    """
    from ts_lightning.data import index_shards
    from ts_lightning.metrics.frames import RIGHT
    from ts_lightning.reports.coordinates import check_coordinates, table, write_contact_sheet
    from ts_lightning.reports.json_file import write_json

    backbone, manifest = backbone_of(config), index_shards(list(shards))
    report = check_coordinates(backbone, manifest)
    drawn = write_contact_sheet(backbone, manifest, out / "seen.png")
    write_json(out / "report.json", report)
    print(f"{table(report)}\n{drawn} pictures in {out / 'seen.png'}")
    return int(bool(report["wrong_sizes"]) or not report["verdict"].startswith((RIGHT, "cannot tell")))


def backbone_of(config: str) -> "Backbone":
    """The backbone that a fit configuration names."""
    from ts_lightning.models.backbones.base import Backbone
    from ts_lightning.runs.class_paths import instantiate

    try:
        spec = read_configuration(config)["model"]["init_args"]["vlm"]["init_args"]["backbone"]
    except (KeyError, TypeError):
        raise ValueError(f"{config}: seen no model.init_args.vlm.init_args.backbone, expected a fit config") from None
    return instantiate(Backbone, spec["class_path"], spec.get("init_args", {}))
