"""Frames: planted mistakes are named, right labels are not accused; EXIF and codecs agree on where things are."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from PIL import ExifTags, Image, ImageOps

from ts_lightning.cli import main
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import CODECS
from ts_lightning.grounding.coordinates import Size
from ts_lightning.metrics.frames import Labelled, frame_reports, verdict
from ts_lightning.models.pixels import image_size, load_pixels
from ts_lightning.reports.coordinates import seen_box

ROOT = Path(__file__).parents[3]
REAL = ROOT.parent / "shared/real/coco_mini"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no COCO photographs in {REAL}")


def resize(size: Size) -> Size:
    return 336, 336


def right(x: float, y: float, w: float, h: float, size: Size) -> tuple[float, ...]:
    return x / size[0], y / size[1], (x + w) / size[0], (y + h) / size[1]


def as_1000(x: float, y: float, w: float, h: float, size: Size) -> tuple[float, ...]:
    return x / 1000, y / 1000, (x + w) / 1000, (y + h) / 1000


def as_padded(x: float, y: float, w: float, h: float, size: Size) -> tuple[float, ...]:
    side = max(size)
    left, top = (side - size[0]) / 2, (side - size[1]) / 2
    return (x + left) / side, (y + top) / side, (x + w + left) / side, (y + h + top) / side


def as_resized(x: float, y: float, w: float, h: float, size: Size) -> tuple[float, ...]:
    u, v = 336 / size[0], 336 / size[1]
    return x * u / size[0], y * v / size[1], (x + w) * u / size[0], (y + h) * v / size[1]


def as_xywh(x: float, y: float, w: float, h: float, size: Size) -> tuple[float, ...]:
    return x / size[0], y / size[1], w / size[0], h / size[1]


PLANTED = {
    right: "original",
    as_1000: "absolute pixels read as 0-1000",
    as_padded: "padded square read as original",
    as_resized: "resized pixels read as original",
    as_xywh: "xywh read as xyxy",
}


def coco_labels(split: str, place: Callable[..., tuple[float, ...]], valid_only: bool = False) -> list[Labelled]:
    annotations = json.loads((REAL / f"annotations/instances_{split}2017.json").read_text())
    images = {i["id"]: i for i in annotations["images"]}
    labels = []
    for a in annotations["annotations"]:
        image = images[a["image_id"]]
        size = (image["width"], image["height"])
        box = place(*a["bbox"], size)
        if not valid_only or (box[2] > box[0] and box[3] > box[1]):
            labels.append(Labelled(box, size, image["file_name"]))
    return labels


@needs_real
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("place", PLANTED, ids=lambda place: place.__name__)
def test_planted_frames_are_named_on_photographs(split: str, place: Callable[..., tuple[float, ...]]) -> None:
    labels = coco_labels(split, place)
    assert verdict(labels, frame_reports(labels, resize), resize) == PLANTED[place]


@needs_real
def test_xywh_is_named_after_a_converter_dropped_the_reversed_boxes() -> None:
    labels = coco_labels("train", as_xywh, valid_only=True) + coco_labels("val", as_xywh, valid_only=True)
    assert verdict(labels, frame_reports(labels, resize), resize) == PLANTED[as_xywh]


def random_labels(size: Callable[[int], Size], images: int, margin: float) -> list[Labelled]:
    random = Random(0)
    labels = []
    for i in range(images):
        for _ in range(4):
            (x1, x2), (y1, y2) = (sorted(random.uniform(margin, 1 - margin) for _ in range(2)) for _ in range(2))
            labels.append(Labelled((x1, y1, x2, y2), size(i), f"{i}.jpg"))
    return labels


def test_frames_that_coincide_or_leave_no_trace_cannot_be_told() -> None:
    square = random_labels(lambda i: (500, 500), 60, 0.0)
    reports = frame_reports(square, resize)
    assert reports["padded square read as original"].coincides
    assert verdict(square, reports, resize).startswith("cannot tell original from padded square")
    inner = random_labels(lambda i: (640, 480), 60, 0.2)  # inside the padded frame, far from its border
    assert verdict(inner, frame_reports(inner, resize), resize).startswith("cannot tell original from padded square")
    few = random_labels(lambda i: (640, 480), 49, 0.0)
    assert "seen 49 images" in verdict(few, frame_reports(few, resize), resize)


def test_the_command_names_the_frame_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    samples = []
    for i, label in enumerate(random_labels(lambda i: (64, 48), 60, 0.0)):
        x1, y1, x2, y2 = label.box
        box = (x1, 0.125 + y1 * 0.75, x2, 0.125 + y2 * 0.75) if i % 8 else (x1, 0.125, x2, 0.875)
        sample = Sample(
            str(i),
            key=str(i),
            task="grounding",
            images=[SampleImage(label.image, 64, 48)],
            regions=[SampleRegion(box=box)],
        )
        sample.turns = [Turn("user", "<image>\nWhere is it?"), Turn("assistant", "{region:0}")]
        sample.answer, sample.image_bytes = Answer(regions=[0]), [jpeg(1)]
        samples.append(sample)
    write_shards(samples, tmp_path, "train")
    command = ["data", "check", f"{tmp_path}/train-*.tar", "--out", str(tmp_path)]
    assert main([*command, "--config", "fit/toy_twist.yaml"]) == 1
    assert "verdict: padded square read as original" in capsys.readouterr().out
    assert Image.open(tmp_path / "seen.png").width > 300
    assert json.loads((tmp_path / "report.json").read_text())["boxes"] == 240
    none = tmp_path / "none.yaml"
    none.write_text("seed_everything: 0\n")
    assert main([*command, "--config", str(none)]) == 2
    assert capsys.readouterr().err.startswith(f"ts-lightning: error: {none}: seen no model")


def jpeg(orientation: int, size: Size = (64, 48), mark: tuple[int, int, int, int] = (8, 8, 24, 20)) -> bytes:
    """A black picture with a white rectangle at `mark` (pixels as displayed), stored under an EXIF orientation."""
    upright = Image.new("RGB", size)
    upright.paste((255, 255, 255), mark)
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse of what EXIF asks for
    stored = upright if turned is None else upright.transpose(Image.Transpose(turned))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(buffer, "PNG", exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).tobytes() == upright.tobytes()
    return buffer.getvalue()


FRAMES = [("original", "stretch"), ("padded_square", "pad"), ("resized", "stretch")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("frame", "mode"), FRAMES)
@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if "box" in codec.kinds])
def test_exif_codecs_and_frames_agree(name: str, frame: str, mode: str, orientation: int) -> None:
    """What the text says is where the white rectangle is in the pixels that the model gets."""
    data, size, side = jpeg(orientation), (64, 48), 96
    assert image_size(data) == size
    default = get_codec(name).space
    codec = get_codec(name, CoordinateSpace(default.grid, frame, (side, side) if frame == "resized" else None))
    box: Box = (8 / 64, 8 / 48, 24 / 64, 20 / 48)
    (mention,) = codec.parse(codec.format([box], size), size)
    cells = {"100": 100, "1000": 1000, "decimals:3": 1000}.get(default.grid, side if frame == "resized" else 48)
    for true, back in zip(box, mention.boxes[0], strict=True):
        assert abs(true - back) <= 0.5 / cells * max(size) / min(size) + 1e-9
    x1, y1, x2, y2 = (round(v * side) for v in seen_box(mention.boxes[0], size, mode))
    white = load_pixels(data, side, mode).float().mean(0)
    assert white[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 200
    white[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = 0
    assert white.max() < (140 if mode == "pad" else 60)  # the padding is grey
