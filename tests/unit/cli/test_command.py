"""The one command: verbs by name, options by signature, mistakes answered with what was meant."""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Literal

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors import SafetensorError

from ts_lightning.cli import COMMON, LIGHTNING, OPTIONS, VERBS, main
from ts_lightning.cli.parsing import build, documented, read
from ts_lightning.cli.short_help import OPTIONS as SHOWN


@dataclass(frozen=True)
class Told:
    """Shared options.

    Args:
        seed: of everything
    """

    seed: int = 3


def verb(
    kind: Literal["a", "b"],
    /,
    *shards: str,
    told: Told,
    out: Path,
    names: list[str] = (),  # type: ignore[assignment]
    share: float | None = None,
    strict: bool = False,
    overrides: list[str] = (),  # type: ignore[assignment]
) -> int:
    """What it does.

        an example

    Args:
        kind: of it
        shards: some, 50% of
            them
        told: shared
        out: a folder
        names: several
        share: of something
        strict: or not
        overrides: of fit
    """
    return 0


def test_a_signature_is_what_the_command_line_takes() -> None:
    words = ["a", "x.tar", "y.tar", "--out", "here", "--names", "m", "n", "--names=o", "--seed=4", "--strict"]
    arguments, keywords = read(verb, [*words, "--trainer.max_steps", "3", "--data.x=[1]"], "v")
    assert arguments == ["a", "x.tar", "y.tar"]
    assert keywords == {
        "told": Told(4),
        "out": Path("here"),
        "names": ["m", "n", "o"],
        "share": None,
        "strict": True,
        "overrides": ["--trainer.max_steps", "3", "--data.x=[1]"],
    }
    assert read(verb, ["b", "x", "--out", "o", "--share", "0.5"], "v")[1]["share"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "x", "--out", "o", "--shard", "3"], "--shard: seen an option that `v` does not have, expected --share"),
        (["c", "x", "--out", "o"], "kind"),
        (["a", "x"], "the following arguments are required: out"),
        (["a", "x", "--out", "o", "--share", "much"], 'Parser key "share"'),
        (["a", "--out", "o"], "the following arguments are required: shards"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        read(verb, words, "v")
    assert message in str(error.value)


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Safetensors tells of it in an error of its own."""

    def full(words: list[str]) -> int:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ts_lightning.cli.run", full)
    assert main(["assemble"]) == 2
    assert capsys.readouterr().err.startswith("ts-lightning: error: Error while serializing: I/O error: No space left")


def test_the_help_has_a_sentence_for_each_option() -> None:
    about, sentences = documented(verb)
    assert about == "What it does.\n\n    an example"
    assert sentences["shards"] == "some, 50%% of them"  # as argparse takes it
    text = build(verb, "v")[0].format_help()
    assert "    an example\n" in text
    assert "of everything (default: 3)" in text


@pytest.mark.parametrize("name", [name for name in VERBS if name not in LIGHTNING])
def test_every_verb_has_its_options_and_an_example(name: str, capsys: pytest.CaptureFixture) -> None:
    module = import_module("ts_lightning.cli." + ".".join(name.replace("-", "_").split()[:2]))
    function = getattr(module, name.split()[-1].replace("-", "_"))
    parameters = signature(function).parameters
    if list(parameters) != ["words"]:
        assert parameters.keys() == documented(function)[1].keys()
    with pytest.raises(SystemExit) if list(parameters) != ["words"] else _nothing():
        main([*name.split(), "--help"])
    assert f"    ts-lightning {name} " in capsys.readouterr().out.replace("\n\n", " \n\n")


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certfy"], "seen 'certfy', expected certify"),
        (["init", "--method", "sft"], "--method: seen 'sft', expected one of twist, lora, full, grpo"),
        (["data", "cnvert"], "seen 'data cnvert', expected convert"),
        (["data", "convert", "refcocoo"], "seen the data set 'refcocoo', expected refcoco"),
        (["fit", "-c", "fit/toy_twst.yaml"], "seen 'fit/toy_twst.yaml', which is no file, expected fit/toy_twist.yaml"),
        (["fit", "--trainr.max_steps", "3"], "--trainr: seen an unknown option of fit, expected --trainer"),
        (["fit", "-c", "fit/toy_twist.yaml", "--trainer.max_stps=3"], "expected --trainer.max_steps"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ts-lightning: error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("name", LIGHTNING)
def test_the_options_that_are_known_before_lightning_is_imported_are_its_own(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help=all"])
    text = capsys.readouterr().out
    assert f"\n    ts-lightning {name} -" in text
    assert "eval/rec.yaml" in text or "fit/toy_twist.yaml" in text
    own = set(re.findall(r"^  (?:-\w(?: \w+)?, )?--(\w+)", text, re.MULTILINE))
    assert own >= {"config", "trainer", "model", "data"}
    assert own <= {*COMMON, *OPTIONS[name]} <= own | {"optimizer", "lr_scheduler"}


@pytest.mark.parametrize("name", LIGHTNING)
def test_the_short_help_is_short_and_its_options_are_there(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main([name, "--help"]) == main([name, "-c", "fit/toy_twist.yaml", "-h"]) == 0
    text = capsys.readouterr().out.split("usage: ")[1]
    assert text.startswith(f"ts-lightning {name} ")
    assert f"\n    ts-lightning {name} -" in text
    assert text.count("\n") < 45
    values = {"accelerator": "cpu", "precision": "32-true", "resume": "false"}
    values |= dict.fromkeys(("val", "test"), "{a: {shards: b}}")
    own = {"-c", "--ckpt_path", "--allow_classes", "--print_config", "--model.help", "--help=all"}
    words = [name, "-c", "fit/toy_twist.yaml"]
    for option in [option.split()[0] for option in SHOWN[name] if option.split()[0] not in own]:
        words += [option, values.get(option.split(".")[-1].removeprefix("--"), "1")]
    with pytest.raises(SystemExit) as left:
        main([*words, "--print_config"])
    assert left.value.code in (None, 0)


def test_the_option_that_names_a_model_keeps_the_configurations_class_and_dtype(capsys: pytest.CaptureFixture) -> None:
    option = next(one.split()[0] for one in SHOWN["fit"] if one.startswith("--model.vlm.backbone"))
    with pytest.raises(SystemExit) as left:
        main(["fit", "-c", "fit/coco_qwen3_vl.yaml", option, "checkpoints/mine", "--print_config"])
    assert left.value.code in (None, 0)
    backbone = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["vlm"]["init_args"]["backbone"]
    assert backbone["class_path"] == "ts_lightning.models.backbones.hf.HFBackbone"
    assert (backbone["init_args"]["pretrained"], backbone["init_args"]["dtype"]) == ("checkpoints/mine", "bfloat16")


def test_help_and_version_import_nothing_heavy() -> None:
    code = "import sys; from ts_lightning.cli import main; main(['--help']); main(['--version']); main(['ftt'])\n"
    code += "print(sorted({'torch', 'lightning', 'transformers', 'yaml', 'jsonargparse'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "  certify " in done.stdout


def test_figures_are_printed_by_whole_names_and_once() -> None:
    from ts_lightning.cli.lightning import figures

    metrics = {"val/a/miou": 0.5, "val/a/only/miou": 0.5, "val/b/miou": 0.25, "val/b/x/miou": 1, "val/b/y/miou": 0}
    assert figures(metrics) == [
        "val/a/miou    0.5000", "val/b/miou    0.2500", "val/b/x/miou  1.0000", "val/b/y/miou  0.0000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "where"), [("fit", "the first step, nothing was saved"), ("validate", "the end"), ("predict", "the end")]
)
def test_a_command_that_sigterm_ended_says_so(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise SIGTERMException

    monkeypatch.setattr("ts_lightning.cli.lightning.TSLightningCLI.__init__", stop)
    assert main([name, "--trainer.devices", "1"]) == 143
    assert capsys.readouterr().out == f"SIGTERM: stopped before {where}\n"
