"""`init`: a configuration that trains, with a reason beside each value."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from tests.unit.data_samples import photo, sample
from tests.unit.models.hf_checks import sample as question
from tests.unit.models.hf_families import make_folder
from tests.unit.reports.test_memory_plan import FULL, geometry
from ts_lightning import cli
from ts_lightning.cli.fit_yaml import (
    Machine,
    Row,
    Setup,
    load_of,
    most_of,
    options,
    pixels_that_fit,
    rollouts,
    rows_of,
)
from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.reports.memory_plan import Form, GiB, Load, plan

LOAD = Load(1, 1, text=256, answer=64, picture_tokens=4015)


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
    assert all(
        "#" in line
        for line in text.splitlines()
        if re.match(r" +(?!init_args|class_path|default_root_dir|pretrained)\w+: [^{]", line)
    )
    if method == "lora":
        assert vlm_args["targets"] == "all-linear"
    if method != "twist":
        return
    assert "expert_rank" not in vlm_args  # of so small a model there is room for full copies
    small_card = ["--gpu", str(1 + 2.75 / 1024), "--out", "small"]  # one GiB is left to CUDA
    assert cli.main([*words[:5], *small_card, "--method", method]) == 0
    small = yaml.safe_load(Path("small/fit.yaml").read_text())["model"]["init_args"]
    assert small["vlm"]["init_args"]["expert_rank"] == 16
    assert small["optimizer"]["init_args"]["lr"] == 5 * written["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    short = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.num_sanity_val_steps", "0"]
    assert cli.main(["fit", "-c", "run/fit.yaml", *short, "--trainer.limit_val_batches", "1"]) == 0
    assert (
        cli.main(["ask", "--ckpt", "run", "--image", str(data / "val2017/000000000003.jpg"), "Where is the dog?"]) == 0
    )
    few = ["--out", "report", "--trainer.limit_predict_batches", "1"]
    assert cli.main(["evaluate", "--ckpt", "run", "--suites", "run/fit.yaml", *few]) == 0
    assert Path("report/report.json").is_file()
    more = ["init", "--vlm", "run", "--data", str(data), "--out", "rl", "--method"]
    assert cli.main([*more, "lora"]) == 2
    assert "what was trained is for --method grpo" in capsys.readouterr().err
    assert cli.main([*more, "grpo"]) == 0
    started = yaml.safe_load(Path("rl/fit.yaml").read_text())["model"]
    assert started["class_path"].endswith("GRPO")
    assert started["init_args"]["vlm"]["init_args"]["init_from"] == "run/checkpoints/last.ckpt"
    assert started["init_args"]["vlm"]["init_args"]["expert_rank"] is None
    assert started["init_args"]["optimizer"]["init_args"]["lr"] == 2e-4  # a tenth of the 2e-3 of full copies
    short += ["--trainer.limit_val_batches", "0", "--data.init_args.global_batch_size", "1"]
    assert cli.main(["fit", "-c", "rl/fit.yaml", *short, "--data.init_args.micro_batch_size", "1"]) == 0


@pytest.mark.parametrize(
    ("family", "expert"), [("glm4v", "Glm4vTextMLP"), ("qwen3_vl_moe", "Qwen3VLMoeTextSparseMoeBlock")]
)
def test_experts_without_a_form_of_low_rank_are_refused_where_full_copies_do_not_fit(
    family: str, expert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm, data, out = make_folder(family, tmp_path / "vlm"), coco(tmp_path / "data"), tmp_path / "run"
    words = ["init", "--vlm", str(vlm), "--data", str(data), "--out", str(out), "--gpu", str(1 + 1 / 1024)]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"method: seen twist for experts of {expert}, which have no form of low rank; full copies need" in said
    assert not (out / "fit.yaml").exists()
    assert cli.main([*words[:-1], str(1 + 4 / 1024), "--method", "lora"]) == 0


# Qwen2.5-VL-7B over bf16 takes 16 GiB alone; of 24 GiB there is room for both
@pytest.mark.parametrize(("gpu", "quantization"), [(24, None), (16, "int8"), (13, "nf4")])
@pytest.mark.parametrize("method", ["lora", "grpo"])
def test_lora_is_over_codes_where_the_base_leaves_no_room(
    method: str, gpu: int, quantization: str | None, tmp_path: Path
) -> None:
    seen = geometry(tmp_path, FULL["Qwen2.5-VL-7B"])
    model, card = SimpleNamespace(model=seen.model, layers=seen.layers), Machine(gpu * GiB, "bfloat16", True)
    lines, kind, form = options(cast("Any", model), method, card, seen, LOAD)
    assert (kind, form) == ("LoRAVLM", Form("lora", 64, quantization))
    assert yaml.safe_load("\n".join(lines)).get("quantization") == quantization
    assert plan(seen, form, LOAD).peak <= card.room
    with pytest.raises(ValueError, match=r"LoRA of rank 64, which needs .* expected a larger machine, or --gpu GiB"):
        options(cast("Any", model), method, Machine(6 * GiB, "bfloat16", True), seen, LOAD)


def test_twist_is_refused_where_nothing_fits(tmp_path: Path) -> None:
    seen = geometry(tmp_path, FULL["Qwen2.5-VL-7B"])
    model = SimpleNamespace(model=seen.model, layers=seen.layers)
    with pytest.raises(ValueError, match=r"needs .* with experts of rank 8 .* expected a larger machine, or --gpu GiB"):
        options(cast("Any", model), "twist", Machine(6 * GiB, "bfloat16", True), seen, LOAD)
    lines, _, form = options(cast("Any", model), "twist", Machine(13 * GiB, "bfloat16", True), seen, LOAD)
    assert form.quantization == yaml.safe_load("\n".join(lines))["quantization"]


def test_full_tuning_that_does_not_fit_is_said_and_a_step_has_what_fits_beside_its_states(tmp_path: Path) -> None:
    seen = geometry(tmp_path, FULL["Qwen2.5-VL-7B"])
    model = SimpleNamespace(model=seen.model, layers=seen.layers)
    for gpu, fits in ((120, False), (160, True)):  # 16 bytes a parameter are 124 GiB, and the optimizer's copies 31
        card = Machine(gpu * GiB, "bfloat16", True)
        lines, _, form = options(cast("Any", model), "full", card, seen, LOAD)
        assert ("-c trainer/fsdp.yaml" in lines[0]) == (not fits)
        rows = Setup(cast("Any", model), card, "", Row(2, 1, 1, 1, 1), seen, form, LOAD).micro_batch
        assert (rows > 1) == fits
        assert not fits or plan(seen, form, replace(LOAD, micro_batch=rows, eval_batch=rows)).peak <= card.room


@pytest.mark.parametrize("name", ["Qwen2.5-VL-7B", "Qwen3-VL-8B"])
def test_as_many_prompts_are_answered_at_once_as_fit(name: str, tmp_path: Path) -> None:
    seen, form, card = geometry(tmp_path, FULL[name]), Form("lora", 64), Machine(24 * GiB, "bfloat16", True)
    setup = Setup(cast("Any", None), card, "", Row(4143, 4111, 4015, 32, 32), seen, form, LOAD)
    micro, together = setup.micro_batch, setup.rollout_batch
    assert 1 <= micro <= together < 16  # all 16 prompts of a step would take 29 and 34 GiB
    assert plan(seen, form, replace(LOAD, micro_batch=micro, eval_batch=together)).peak <= card.room
    assert plan(seen, form, replace(LOAD, micro_batch=micro, eval_batch=2 * together)).peak > card.room
    assert yaml.safe_load(rollouts(setup))[0]["init_args"]["rollout_batch_size"] == together


def test_memory_is_planned_for_the_rows_that_there_are(tmp_path: Path) -> None:
    backbone = HFBackbone(str(make_folder("qwen3_vl", tmp_path)))
    samples = [question("grounding", 1, (56, 56)), question("grounding", 2, (112, 84)), question("understanding")]
    encoded = [backbone.encoder(one) for one in samples]
    seen = [int((row["input_ids"] == backbone.image_token_id).sum()) for row in encoded]
    longest = most_of(rows_of(backbone.encoder, backbone.image_token_id, samples))
    assert (longest.tokens, longest.of_pictures) == (max(len(row["input_ids"]) for row in encoded), seen[1])
    assert longest.prompt == max(len(backbone.encoder(one, for_generation=True)["input_ids"]) for one in samples)
    card = Machine(24 * GiB, "float32", True)
    load = load_of(backbone, longest, card, grpo=False)
    assert (load.row, load.answer, load.itemsize, load.on_cpu) == (longest.tokens, longest.new_tokens, 4, False)
    answers = load_of(backbone, longest, card, grpo=True)  # eight behind a prompt that is read once
    assert (answers.row, answers.answer) == (longest.prompt + 8 * load.answer, 8 * load.answer)
    recurrent = HFBackbone(str(make_folder("qwen3_5", tmp_path / "recurrent")))  # it reads the prompt eight times
    assert load_of(recurrent, longest, card, grpo=True).row == 8 * (longest.prompt + load.answer)


def test_of_several_turns_new_tokens_are_for_one_answer_and_all_have_a_loss(tmp_path: Path) -> None:
    backbone = HFBackbone(str(make_folder("qwen3_vl", tmp_path)))
    one = question("understanding")
    two = replace(one, turns=[*one.turns, Turn("user", "And the moon?"), Turn("assistant", "far")])
    (alone,), (both,) = (rows_of(backbone.encoder, backbone.image_token_id, [asked]) for asked in (one, two))
    assert (both.answer, both.new_tokens) == (alone.answer, alone.new_tokens)
    assert both.prompt == len(backbone.encoder(two, for_generation=True)["input_ids"])
    assert both.answers == alone.answers + both.tokens - both.prompt
    many = both._replace(answers=3 * both.new_tokens)
    assert load_of(backbone, many, Machine(24 * GiB, "float32", True), grpo=False).answer == many.answers


def test_a_machine_without_a_gpu_is_planned_for_as_such(tmp_path: Path) -> None:
    backbone = HFBackbone(str(make_folder("qwen3_vl", tmp_path / "vlm")))
    longest, seen = Row(100, 80, 50, 20, 20), geometry(tmp_path, FULL["Qwen2.5-VL-7B"])
    here, card = (load_of(backbone, longest, Machine(64 * GiB, "float32", gpu), grpo=False) for gpu in (False, True))
    assert here == replace(card, on_cpu=True)
    assert plan(seen, Form("twist"), here).peak < plan(seen, Form("twist"), card).peak  # AdamW makes no copies


def test_pictures_of_rows_that_fit_stay_as_they_are(tmp_path: Path) -> None:
    backbone = HFBackbone(str(make_folder("qwen2_vl", tmp_path)))
    shown, told = question("grounding", 1, (112, 84)), question("understanding", 1, (112, 84))
    shown.turns[0].text += " Look well." * 40  # one has a long question, the other a long answer
    told.turns[1].text *= 20
    rows = rows_of(backbone.encoder, backbone.image_token_id, [shown, told])
    bound = max(row.needs(most_of(rows).new_tokens) for row in rows)
    backbone.encoder.max_length = bound
    assert pixels_that_fit(backbone, [shown, told]) is None
    backbone.encoder.max_length = bound - 1
    assert pixels_that_fit(backbone, [shown, told]) == (rows[0].of_pictures - 1) * 28**2


def test_pictures_are_reduced_until_those_of_a_question_fit_into_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder("qwen2_vl", tmp_path / "vlm")
    path = folder / "preprocessor_config.json"
    bounds = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384}}
    path.write_text(json.dumps(json.loads(path.read_text()) | bounds))
    many = [question("grounding", 3, (4032, 3024)), question("grounding", 1, (80, 60))]
    for number, one in enumerate(many):
        one.id = one.key = f"{number}"
        write_shards([one], tmp_path / "tars", ("train", "val")[number])
    words = ["init", "--vlm", str(folder), "--data", str(tmp_path / "tars"), "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    written = yaml.safe_load((tmp_path / "run/fit.yaml").read_text())["model"]["init_args"]
    most = written["vlm"]["init_args"]["backbone"]["init_args"]["max_pixels"]
    assert f"pictures: of {most} pixels at most" in capsys.readouterr().out
    reduced = HFBackbone(str(folder), max_pixels=most)
    (row,) = rows_of(reduced.encoder, reduced.image_token_id, many[:1])
    assert 0.9 * 8192 < row.needs(row.new_tokens) <= 8192
    with pytest.raises(ValueError, match="expected at most 8192"):
        HFBackbone(str(folder)).encoder(many[0])


@pytest.mark.parametrize("method", ["twist", "lora", "full", "grpo"])
def test_without_a_model_it_is_the_tiny_base(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = coco(tmp_path / "data"), tmp_path / "run"
    assert cli.main(["init", "--data", str(data), "--out", str(out), "--method", method]) == 0
    assert "model: the tiny base, 6 decoder layers, boxes as scout" in capsys.readouterr().out
    short = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--data.init_args.global_batch_size", "1"]
    assert cli.main(["fit", "-c", f"{out}/fit.yaml", *short, "--data.init_args.micro_batch_size", "1"]) == 0
    assert (out / "checkpoints/last.ckpt").is_file()


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


def test_shards_with_their_own_validation_are_taken_as_they_are_and_polygons_in_a_notation_that_has_them(
    tmp_path: Path,
) -> None:
    polygons = []
    for number in range(4):
        made = sample(number)
        made.regions[0] = SampleRegion(phrase="it", polygon=[(0.1, 0.1), (0.5, 0.1), (0.5, 0.9)])
        polygons.append(made)
    write_shards(polygons[:3], tmp_path / "tars", "train")
    write_shards(polygons[3:], tmp_path / "tars", "val")
    vlm, out = make_folder("qwen3_vl", tmp_path / "vlm"), tmp_path / "run"
    words = ["init", "--vlm", str(vlm), "--data", str(tmp_path / "tars"), "--out", str(out), "--method", "grpo"]
    assert cli.main(words) == 0
    written = yaml.safe_load((out / "fit.yaml").read_text())
    assert written["trainer"]["max_steps"] % written["trainer"]["val_check_interval"] == 0  # the last step is scored
    assert not (out / "shards").exists()
    assert written["data"]["init_args"]["train"]["shards"] == f"{tmp_path}/tars/train-*.tar"
    vlm_args = written["model"]["init_args"]["vlm"]
    assert vlm_args["class_path"].endswith("LoRAVLM")
    assert vlm_args["init_args"]["backbone"]["init_args"]["codec"] == "chatspot"


def test_options_that_the_data_has_no_use_for_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards([sample(0)], tmp_path / "tars", "train")
    words = ["init", "--data", str(tmp_path / "tars"), "--out", str(tmp_path / "run")]
    for more, expected in (
        (["--frame", "original"], "frame: seen 'original' alone, expected --codec"),
        (["--images", str(tmp_path)], f"images: seen {tmp_path} for shards"),
    ):
        assert cli.main([*words, *more]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
