"""`init`: what it sees in data, and a configuration that trains, with a reason beside each value."""

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.data_samples import photo, shards
from tests.unit.models.hf_families import make_folder
from ts_lightning import cli
from ts_lightning.cli.init import recognise
from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader


def coco(folder: Path, photos: int = 24) -> Path:
    """A COCO folder: each photo has one dog."""
    pictures = folder / "val2017"
    pictures.mkdir(parents=True)
    for n in range(photos):
        photo(pictures / f"{n:012d}.jpg", (100, 50))
    data = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": 100, "height": 50} for n in range(photos)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 5, 30, 20], "iscrowd": 0, "area": 600}
            for n in range(photos)
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("method", ["twist", "lora", "full"])
def test_it_writes_a_run_that_trains_and_is_asked(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    vlm, data = make_folder("qwen3_vl", tmp_path / "vlm"), coco(tmp_path / "data")
    words = ["init", "--vlm", str(vlm), "--data", str(data), "--out", "run", "--method", method]
    assert cli.main(words) == 0
    text = Path("run/fit.yaml").read_text()
    written = yaml.safe_load(text)
    vlm_args = written["model"]["init_args"]["vlm"]["init_args"]
    assert vlm_args["backbone"]["init_args"]["codec"] == "qwen3_vl"
    assert written["model"]["init_args"]["max_new_tokens"] >= 30  # {"bbox_2d": ...} and its end, digit by digit
    assert "COCO's folder" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "expected a new folder" in capsys.readouterr().err
    if method == "lora":
        assert {"q_proj", "gate_proj", "down_proj"} <= set(vlm_args["targets"])
    if method != "twist":
        return
    short = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.num_sanity_val_steps", "0"]
    assert cli.main(["fit", "-c", "run/fit.yaml", *short, "--trainer.limit_val_batches", "1"]) == 0
    assert (
        cli.main(["ask", "--ckpt", "run", "--image", str(data / "val2017/000000000003.jpg"), "Where is the dog?"]) == 0
    )
    few = ["--out", "report", "--trainer.limit_predict_batches", "1"]
    assert cli.main(["evaluate", "--ckpt", "run", "--suites", "run/fit.yaml", *few]) == 0
    assert Path("report/report.json").is_file()


def test_kinds_of_data_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    assert recognise(coco(tmp_path / "coco")).converter == "coco"
    assert recognise(tmp_path / "coco/annotations/instances_val2017.json").options["annotations"]
    for name, row in {"llava": {"conversations": []}, "ms-swift": {"messages": []}}.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([row]))
        assert recognise(path).converter == name
        path.with_suffix(".jsonl").write_text(json.dumps(row) + "\n")
        assert recognise(path.with_suffix(".jsonl")).converter == name
    shards(tmp_path / "tars", [2])
    assert recognise(tmp_path / "tars").converter is None
    exported = tmp_path / "robo/train/_annotations.coco.json"
    exported.parent.mkdir(parents=True)
    exported.write_text("{}")
    assert "Roboflow" in recognise(tmp_path / "robo").reason


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("a.json", "[1, 2]", "expected images, conversations or messages"),
        ("a.json", "{", "expected a folder, a JSON or JSON lines"),
        ("a.txt", "", "expected a folder, a JSON or JSON lines"),
        ("b/c.txt", "", "seen c.txt in .*, expected a COCO, Roboflow or VOC folder"),
    ],
)
def test_other_data_is_refused_in_a_line(name: str, content: str, seen: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=seen):
        recognise(path if "/" not in name else path.parent)


def test_boxes_in_the_texts_of_a_llava_json_are_read_in_the_notation_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm, folder, out = make_folder("llava", tmp_path / "vlm"), coco(tmp_path / "data"), tmp_path / "run"
    pictures = sorted(folder.rglob("*.jpg"))
    answers = ["[0.250,0.250,0.750,0.500]", "a dog"]
    rows = [
        {
            "id": f"{n}",
            "image": str(path.relative_to(folder)),
            "conversations": [
                {"from": "human", "value": "<image>\nWhere is the dog?"},
                {"from": "gpt", "value": answers[n % 2]},
            ],
        }
        for n, path in enumerate(pictures)
    ]
    data = folder / "train.json"
    data.write_text(json.dumps(rows))
    words = ["init", "--vlm", str(vlm), "--out", str(out), "--codec", "shikra"]
    assert cli.main([*words, "--data", str(data)]) == 0
    manifest = index_shards([str(out / "shards/*.tar")])
    reader = ShardReader(manifest)
    read = [reader.read(i) for i in range(manifest.num_rows)]
    assert sum(bool(sample.regions) for sample in read) == sum(n % 2 == 0 for n in range(len(pictures)))
    capsys.readouterr()
    assert cli.main([*words[:-4], "--out", str(tmp_path / "other"), *words[-2:], "--data", str(folder)]) == 2
    assert "expected it for a LLaVA JSON only" in capsys.readouterr().err
