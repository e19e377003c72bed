"""The page "My VLM, my data" and its notebook: commands and cells as they stand there, with few steps."""

import base64
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.models.hf_families import make_folder
from ts_lightning import cli

DOCS = Path(__file__).parents[2] / "docs"
FEW = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.num_sanity_val_steps", "0"]
FEW += ["--trainer.limit_val_batches", "1", "--data.init_args.global_batch_size", "2"]
FEW += ["--data.init_args.micro_batch_size", "2"]


def my_coco(folder: Path) -> None:
    """Twenty pictures of a cup, in COCO's layout."""
    photos = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 384, "height": 256} for i in range(20)]
    (folder / "val2017").mkdir(parents=True)
    for photo in photos:
        shutil.copy(DOCS / "photos/coffee.jpg", folder / "val2017" / str(photo["file_name"]))
    box = {"category_id": 0, "bbox": [111, 11, 149, 186], "area": 149 * 186, "iscrowd": 0}
    notes = [{"id": i, "image_id": i, **box} for i in range(20)]
    (folder / "annotations").mkdir()
    content = {"images": photos, "annotations": notes, "categories": [{"id": 0, "name": "cup"}]}
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))


def test_the_pages_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```bash\n(.*?)^```", (DOCS / "own_model.md").read_text(), re.M | re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    [downloaded] = [words for words in lines if words[0] == "hf"]
    make_folder("qwen3_vl", Path(downloaded[-1]))  # in place of the download
    my_coco(Path("my_coco"))
    shutil.copy(DOCS / "photos/coffee.jpg", "kitchen.jpg")
    verbs = []
    for name, *words in lines:
        if name == "ts-lightning":
            assert cli.main([*words, *(FEW if words[0] == "fit" else [])]) == 0, words
            verbs.append(words[0])
    assert set(verbs) == {"init", "fit", "evaluate", "ask", "export"}
    assert {words[0] for words in lines} == {"hf", "ts-lightning"}
    for made in ("mug.png", "runs/mine/report/report.json", "runs/mine/package/package.safetensors"):
        assert Path(made).is_file(), made


def test_what_the_page_links_to_is_there() -> None:
    for page in (DOCS / "own_model.md", DOCS / "photos/README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).is_file(), target


def test_the_notebooks_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS)
    first, *others = [cell for cell in notebook() if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    exec("".join(first["source"]), names)
    names |= {"CROPS": 42, "STEPS": 1, "OUT": tmp_path / "out"}
    for cell in others:
        exec(compile("".join(cell["source"]), "own_model.ipynb", "exec"), names)
    assert (tmp_path / "out/package/package.safetensors").is_file()
    assert json.loads((tmp_path / "out/certificate.json").read_text())["passed"]


def test_the_notebook_was_run_in_order_and_is_small() -> None:
    cells = [cell for cell in notebook() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    pictures = [
        base64.b64decode("".join(data))
        for output in outputs
        for kind, data in output.get("data", {}).items()
        if kind.startswith("image/")
    ]
    assert len(pictures) == 4
    assert sum(map(len, pictures)) < 200_000


def notebook() -> list[dict[str, Any]]:
    """The notebook's cells."""
    return json.loads((DOCS / "own_model.ipynb").read_text())["cells"]
