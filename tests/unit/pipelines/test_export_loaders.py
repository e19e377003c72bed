"""Exports through ms-swift's and LLaMA-Factory's own loaders, each in an environment of its own: equal boxes.

Both pin other versions than this project, so that they can't be installed beside it. The variables name the Python of
an environment that has them (docs/data_engine.md says how to make one).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_samples import sample
from ts_lightning.data.sample import Sample, SampleRegion, Turn
from ts_lightning.grounding import get_codec
from ts_lightning.pipelines.export import to_llava, to_ms_swift

SWIFT = """
import json, sys
from types import SimpleNamespace
from swift.dataset import load_dataset
from swift.template import Template
rows = []
for row in load_dataset([sys.argv[1]], strict=True)[0]:
    objects = row.get("objects") or {}
    sized = json.loads(json.dumps(objects)) | {"width": [8, 8], "height": [6, 6]}
    thousandths = SimpleNamespace(objects=sized, images=row["images"])
    if objects:
        Template.normalize_bbox(SimpleNamespace(norm_bbox="norm1000"), thousandths)
    images = [image["path"] if isinstance(image, dict) else image for image in row["images"]]
    texts = [message["content"] for message in row["messages"]]
    rows.append({"images": images, "objects": objects, "texts": texts, "thousandths": thousandths.objects.get("bbox")})
print("ROWS" + json.dumps(rows))
"""
FACTORY = """
import json, sys
from types import SimpleNamespace
from llamafactory.data.loader import _get_merged_dataset
from llamafactory.hparams import DataArguments, ModelArguments
data = DataArguments(dataset="ts_lightning", dataset_dir=sys.argv[1], media_dir=sys.argv[1], overwrite_cache=True)
args = SimpleNamespace(seed=0, local_process_index=0, should_log=False)
model = ModelArguments(model_name_or_path="none", cache_dir=sys.argv[1] + "/cache")
rows = _get_merged_dataset(data.dataset, model, data, args, "sft")
said = [[message["content"] for message in row["_prompt"] + row["_response"]] for row in rows]
print("ROWS" + json.dumps([{"images": row["_images"], "texts": texts} for row, texts in zip(rows, said)]))
"""


def loaded(variable: str, tool: str, script: str, path: Path, home: Path) -> list[dict[str, Any]]:
    """What the tool's loader makes of a file or folder of ours; skips where no environment has the tool."""
    if (python := os.environ.get(variable)) is None:
        pytest.skip(f"{variable} names no Python that has {tool}")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(home / "hf"), "MODELSCOPE_CACHE": str(home / "ms"), "USE_HF": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([python, "-c", script, str(path)], capture_output=True, text=True, env=env, cwd=home)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("ROWS"))[4:])


def several_sources() -> list[Sample]:
    """Rows whose further fields differ: one box, two pictures with boxes and a point, no region at all."""
    one, two, three = sample(1), sample(2, images=2), sample(3)
    two.regions[0].image = 1
    two.turns += [Turn("user", "And {region:0}?"), Turn("assistant", "No, {region:1} {region:2}.")]
    two.regions += [
        SampleRegion(boxes=[(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.9, 1.0)]),
        SampleRegion(points=[(0.25, 0.5)]),
    ]
    two.meta, three.meta, three.source = {"origin": {"a": [1, [2]]}, "number": "x"}, None, "other"
    three.regions, three.answer, three.task = [], None, "understanding"
    three.turns[1] = Turn("assistant", "Nothing.")
    return [one, two, three]


BOXES = [
    [[0.125, 0.25, 0.5, 1.0]],
    [[0.125, 0.25, 0.5, 1.0], [0.125, 0.25, 0.5, 1.0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 1.0], [0.25, 0.5]],
    [],
]


def test_ms_swift_loads_equal_boxes(tmp_path: Path) -> None:
    to_ms_swift(several_sources(), tmp_path)
    rows = loaded("TS_LIGHTNING_SWIFT_PYTHON", "ms-swift", SWIFT, tmp_path / "ms_swift.jsonl", tmp_path)
    for row, boxes in zip(rows, BOXES, strict=True):  # its reader may be off in a number's last bit
        found = row["objects"].get("bbox") or []
        assert len(found) == len(boxes)
        assert all(one == pytest.approx(box, abs=1e-12) for one, box in zip(found, boxes, strict=True))
    assert [(row["thousandths"] or []) for row in rows] == [[[round(1000 * v) for v in b] for b in bs] for bs in BOXES]
    assert rows[1]["objects"]["image_id"] == [1, 1, 0, 0, 0]
    assert [len(row["images"]) for row in rows] == [1, 2, 1]
    assert all(Path(path).is_file() for row in rows for path in row["images"])
    assert rows[1]["texts"][3] == "No, <bbox><bbox> <bbox>."


def test_llama_factory_loads_equal_boxes(tmp_path: Path) -> None:
    codec = get_codec("chatspot")
    to_llava(several_sources(), tmp_path, codec)
    rows = loaded("TS_LIGHTNING_LLAMAFACTORY_PYTHON", "LLaMA-Factory", FACTORY, tmp_path, tmp_path)
    found = [[m.regions for t in row["texts"] for m in codec.find(t, (8, 6)) if m.regions] for row in rows]
    boxes = [
        [list(region.box if region.kind == "box" else region.points[0]) for rs in row for region in rs] for row in found
    ]
    assert boxes == BOXES
    assert [len(row["images"]) for row in rows] == [1, 2, 1]
    assert all(Path(path).is_file() for row in rows for path in row["images"])
