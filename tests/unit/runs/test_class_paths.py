import functools
import os
import sys

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse._common import parsing_settings
from torch import nn

from ts_lightning.models.recorded import Recorded
from ts_lightning.runs.class_paths import EXTRA_VARIABLE, allowing, plain, restrict_class_paths, take_flag
from ts_lightning.training.schedule import WarmupCosine


class Part(Recorded, nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()


class Whole(Recorded, nn.Module):
    def __init__(self, part: Part, names: tuple[str, ...] = (), scale: float = 1.0) -> None:
        super().__init__()
        self.part = part


class Special(Whole):
    """Without a constructor of its own."""


def test_modules_are_named_with_their_arguments() -> None:
    here = __name__
    part = {"class_path": f"{here}.Part", "init_args": {"width": 8}}
    expected = {"class_path": f"{here}.Special", "init_args": {"part": part, "names": ["a"]}}
    assert plain(Special(Part(width=8), names=("a",)), "vlm") == expected


def test_callables() -> None:
    sgd = {"class_path": "torch.optim.sgd.SGD", "init_args": {"lr": 0.1}}
    assert plain(functools.partial(torch.optim.SGD, lr=0.1), "optimizer") == sgd
    schedule = {"class_path": "ts_lightning.training.schedule.WarmupCosine", "init_args": {}}
    assert plain(WarmupCosine, "lr_scheduler") == schedule


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (nn.Linear(1, 1), "Linear"),
        (torch.float32, "dtype"),
        (torch.zeros(1), "Tensor"),
        ({1, 2}, "set"),
        (lambda p: p, "function"),
        (functools.partial(print, end=""), "partial"),
    ],
)
def test_what_is_not_plain_is_refused(value: object, seen: str) -> None:
    with pytest.raises(ValueError, match=rf"^vlm\.x\[1\]: seen {seen} .*expected a plain value") as error:
        plain({"x": [0, value]}, "vlm")
    assert "\n" not in str(error.value)


def test_local_classes_are_refused() -> None:
    class Local(Part):
        pass

    with pytest.raises(ValueError, match="local class"):
        plain(Local(), "vlm")


@pytest.mark.parametrize(
    ("name", "extra", "allowed"),
    [
        ("torch.optim.AdamW", "", True),
        ("os.system", "", False),
        ("builtins.eval", "", False),
        ("antigravity.webbrowser", "", False),
        ("torch.load", "", False),
        ("torch.os.system", "", False),
        ("string.Template", "", False),
        ("string.Template", "string", True),
    ],
)
def test_only_allowed_names_are_imported(name: str, extra: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXTRA_VARIABLE, extra)
    for setting in ("import_path_verdicts", "import_paths_enforced", "instantiate_subclass_spec_in_any"):
        monkeypatch.setitem(parsing_settings, setting, parsing_settings[setting])
    restrict_class_paths()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=type)
    if allowed:
        assert parser.parse_args(["--it", name]).it.__name__ == name.split(".")[-1]
    else:
        with pytest.raises(ArgumentError, match="not allowed"):
            parser.parse_args(["--it", name])
        assert "antigravity" not in sys.modules


def test_the_flag_is_taken_out_of_the_arguments() -> None:
    args = ["fit", "--allow_classes", "a.b,c", "-c", "x.yaml", "--allow_classes=d"]
    assert take_flag(args) == (["fit", "-c", "x.yaml"], ["a.b", "c", "d"])
    assert take_flag(["fit", "--allow_classes_x"]) == (["fit", "--allow_classes_x"], [])


@pytest.mark.parametrize("args", [["--allow_classes"], ["--allow_classes="], ["--allow_classes", "*"]])
def test_a_flag_without_a_package_is_refused(args: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--allow_classes: seen .*expected .* package"):
        take_flag(args)


def test_names_are_allowed_beside_those_of_the_environment_and_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("import_path_verdicts", "import_paths_enforced", "instantiate_subclass_spec_in_any"):
        monkeypatch.setitem(parsing_settings, setting, parsing_settings[setting])
    monkeypatch.setenv(EXTRA_VARIABLE, "string")
    with allowing(["fractions", "torch.optim.AdamW"]):
        assert os.environ[EXTRA_VARIABLE] == "string,fractions,torch.optim.AdamW"
        assert parsing_settings["import_path_verdicts"]["fractions"]
    assert os.environ[EXTRA_VARIABLE] == "string"
    verdicts = parsing_settings["import_path_verdicts"]
    assert [verdicts[name] for name in ("fractions", "string", "torch.optim.AdamW")] == [False, True, True]
    monkeypatch.delenv(EXTRA_VARIABLE)
    with allowing([]):
        assert EXTRA_VARIABLE not in os.environ
