"""Questions about real photos take the disk of the photos: they are stored once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.images import displayed_size
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample, SampleImage
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.converters import refcoco

REAL = Path(__file__).parents[4] / "shared/real"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")
PHOTOS = sorted((REAL / "coco_mini").glob("*2017/*.jpg"))


def test_refcoco_expressions_of_photos(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        """RefCOCO testA's expressions of its first images, each with a photo that is here in its image's place."""
        photos: dict[str, Path] = {}
        for sample in refcoco.read(REAL / "refcoco/unc_testA.pth"):
            name = sample.images[0].name
            if name not in photos and len(photos) == len(PHOTOS):
                continue
            data = photos.setdefault(name, PHOTOS[len(photos) % len(PHOTOS)]).read_bytes()
            yield replace(sample, images=[SampleImage(name, *displayed_size(data))], image_bytes=[data])

    paths = write_shards(samples(), tmp_path, "testA")
    manifest = index_shards(paths)
    assert manifest.num_samples > 1000
    assert len({i.name for i in read_images(paths)}) == len(PHOTOS)
    assert disk(paths) < 1.3 * sum(photo.stat().st_size for photo in PHOTOS)


def test_scout_questions_of_photos(tmp_path: Path) -> None:
    notes = REAL / "coco_mini/annotations"
    for split in ("train", "val"):
        photos = ["--images", str(REAL / f"coco_mini/{split}2017"), "--prefix", split]
        annotations = ["--annotations", str(notes / f"instances_{split}2017.json"), "--tasks", '["detection"]']
        assert main(["data", "convert", "coco", *photos, *annotations, "--out", str(tmp_path / "in")]) == 0
    assert main(["data", "generate", "scout", f"{tmp_path}/in/*.tar", "--out", str(tmp_path / "out")]) == 0
    paths = sorted((tmp_path / "out").glob("*.tar"))
    manifest, names = index_shards(paths), {image.name for image in read_images(paths)}
    assert manifest.num_samples > 5 * len(names)
    assert disk(paths) < 1.3 * sum(photo.stat().st_size for photo in PHOTOS if photo.name in names)


def read_images(paths: list[Path]) -> list[SampleImage]:
    reader = ShardReader(index_shards(paths))
    return [image for i in range(reader.manifest.num_samples) for image in reader.read(i).images]


def disk(paths: list[Path]) -> int:
    """Bytes of the shards with their index files."""
    return sum(path.stat().st_size + Path(f"{path}.idx").stat().st_size for path in paths)
