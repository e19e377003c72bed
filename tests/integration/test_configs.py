"""Every shipped configuration is parsed, and run with fast_dev_run where a CPU can."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.cli.configurations import read_configuration
from ts_lightning.models.backbones.tiny import SHIPPED

CONFIGS = Path(__file__).parents[2] / "configs"
EVERY_FIT = sorted(CONFIGS.glob("fit/*.yaml"))
FIT = [path for path in EVERY_FIT if read_configuration(str(path))["trainer"]["accelerator"] == "cpu"]
OVERLAYS = sorted(CONFIGS.glob("trainer/*.yaml"))
MISSING = {f"{name}.yaml" for name in ("tensorboard", "mlflow", "trackio") if find_spec(name) is None}
MORE_THAN_ONE_PROCESS = {"ddp.yaml", "fsdp.yaml", "deepspeed_zero2.yaml"}  # they have tests of their own


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Small data in place of what a configuration names."""
    folder = tmp_path_factory.mktemp("configs")
    shards = tiny.write(folder, tiny.MIXED * 4)
    few = tiny.write(folder, tiny.MIXED, "val")
    args = ["--data.init_args.train.shards", shards, "--data.init_args.val", json.dumps({"toy": {"shards": few}})]
    args += ["--model.init_args.max_new_tokens", "4", "--trainer.enable_progress_bar", "false"]
    if not (SHIPPED / "model.safetensors").is_file():
        args += ["--model.init_args.vlm.init_args.backbone.init_args.pretrained", "null"]
    return args


def test_there_are_configurations() -> None:
    assert {"toy_twist", "toy_full", "coco_localization"} <= {path.stem for path in FIT}
    assert {"twist_moe_llava_phi2", "full_ft_joint", "chatspot_stage2"} <= {path.stem for path in EVERY_FIT}
    assert {"cpu", "ddp", "wandb", "bf16"} <= {path.stem for path in OVERLAYS}


@pytest.mark.parametrize("path", FIT, ids=lambda path: path.stem)
def test_fit(path: Path, overrides: list[str], tmp_path: Path) -> None:
    more = ["--trainer.default_root_dir", str(tmp_path)]
    if "include_tags" in path.read_text():  # of the toy world's records
        more += ["--data.init_args.train.include_tags", "[]"]
    assert main(["fit", "-c", str(path), *overrides, *more, "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.parametrize("path", [path for path in EVERY_FIT if path not in FIT], ids=lambda path: path.stem)
def test_what_needs_a_gpu_is_parsed(path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(path), "--print_config"])
    assert stop.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert "ts_lightning.models.backbones" in str(parsed["model"]["init_args"]["vlm"])
    read = read_configuration(str(path))["data"]["init_args"]  # what the tools believe that a command trains on
    for sources in ("mix", "val"):
        assert (parsed["data"]["init_args"][sources] or {}).keys() == (read.get(sources) or {}).keys(), sources


def test_tuning_on_both_trains_on_both() -> None:
    """The mixture of Table 5's "both": grounding's sources, whole, and LLaVA's."""
    mix = read_configuration("fit/full_ft_joint.yaml")["data"]["init_args"]["mix"]
    alone = read_configuration("fit/full_ft_moe_llava.yaml")["data"]["init_args"]["mix"]
    assert mix.keys() == {*alone, "llava"}
    assert {name: mix[name] for name in alone} == alone


def test_a_longer_run_warms_up_for_the_same_share_of_its_steps() -> None:
    runs = ("full_ft_moe_llava", "full_ft_joint", "full_ft_vqa_rad", "twist_vqa_rad", "twist_vg_and_scout")
    for name in (f"fit/{run}.yaml" for run in runs):
        read = read_configuration(name)
        warmup = read["model"]["init_args"]["lr_scheduler"]["init_args"]["warmup_steps"]
        assert warmup == pytest.approx(0.03 * read["trainer"]["max_steps"], abs=1), name


@pytest.mark.parametrize("path", EVERY_FIT, ids=lambda path: path.stem)
def test_the_last_step_is_validated(path: Path) -> None:
    """Lightning validates at multiples of the interval alone; an interval by epoch may never come in a short run."""
    read = read_configuration(str(path))
    trainer = read["trainer"]
    if "max_steps" in trainer and "val" in read["data"]["init_args"]:
        assert trainer["check_val_every_n_epoch"] is None
        assert trainer["max_steps"] % trainer["val_check_interval"] == 0


@pytest.mark.parametrize("path", EVERY_FIT, ids=lambda path: path.stem)
def test_mig_bench_is_scored_as_by_its_overlay(path: Path) -> None:
    suites = read_configuration(str(path))["data"]["init_args"].get("val", {})
    if "mig_bench" in suites:
        overlay = read_configuration("eval/mig_bench.yaml")["data"]["init_args"]["val"]["mig_bench"]
        assert suites["mig_bench"].get("protocol") == overlay["protocol"] == "mig"


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_trainer_overlay(path: Path, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if path.name == "adamw_8bit.yaml":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes, of the extra quantization, is missing")
    args = ["fit", "-c", str(CONFIGS / "fit/toy_twist.yaml"), "-c", str(path), *overrides]
    if path.name not in MORE_THAN_ONE_PROCESS | MISSING:
        assert main([*args, "--trainer.default_root_dir", str(tmp_path), "--trainer.fast_dev_run", "true"]) == 0
        return
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    assert stop.value.code == 0
    assert "TwinExpertVLM" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("eval/*.yaml")), ids=lambda path: path.stem)
def test_eval_overlay_is_parsed(path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["validate", "-c", str(CONFIGS / "fit/toy_twist.yaml"), "-c", str(path), "--print_config"])
    assert stop.value.code == 0
    suites = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["val"]
    assert suites.keys() >= yaml.safe_load(path.read_text())["data"]["init_args"]["val"].keys()


def test_eval_overlay(overrides: list[str], tmp_path: Path) -> None:
    overlay = str(CONFIGS / "eval/toy.yaml")
    args = ["-c", str(CONFIGS / "fit/toy_twist.yaml"), "-c", overlay, *overrides]
    assert main(["validate", *args, "--trainer.default_root_dir", str(tmp_path), "--trainer.fast_dev_run", "true"]) == 0


def test_toy_configurations_name_shards_as_they_are_rendered() -> None:
    for path in [*CONFIGS.glob("fit/toy_*.yaml"), *CONFIGS.glob("eval/toy*.yaml")]:
        for pattern in re.findall(r"shards: (\S+?)}", path.read_text()):
            small = pattern.replace("data_shards/toy_world/", "data_shards/toy/")  # the committed part
            assert list(CONFIGS.parent.glob(small)), f"{path}: {pattern}"


def test_every_configuration_says_how_to_run_it() -> None:
    for path in CONFIGS.glob("*/*.yaml"):
        head = path.read_text().splitlines()[:6]
        assert any(line.startswith("#   ts-lightning ") and path.name in line for line in head), path
