"""Which classes a configuration may name, and what in it counts as code."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonargparse import Namespace
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from ts_lightning.runs import allowed_classes
from ts_lightning.runs.allowed_classes import class_names, refuse_code
from ts_lightning.runs.class_paths import MOVED, renamed


class Takes:
    def __init__(
        self,
        optimizer: OptimizerCallable,
        schedule: LRSchedulerCallable | None = None,
        encode: Callable[..., dict] | None = None,
        each: list[Callable] | None = None,
        size: int = 3,
    ) -> None: ...


class Passes(Takes):
    def __init__(self, *args: object, other: int = 1, **kwargs: object) -> None: ...


def spec(cls: type, **arguments: object) -> Namespace:
    return Namespace(class_path=f"{cls.__module__}.{cls.__qualname__}", init_args=Namespace(arguments))


def test_a_class_is_known_by_both_of_its_names() -> None:
    assert {"torch.optim.AdamW", "torch.optim.adamw.AdamW"} <= set(class_names())
    assert not [name for name in class_names() if name in ("lightning.pytorch", "ts_lightning", "torch.optim")]


def test_what_docs_and_configurations_name_is_allowed() -> None:
    """As a class path, or as the whole of a text in backticks, which docs say is a callback, a strategy, a logger."""
    root = Path(__file__).parents[3]
    files = [root / "README.md", *root.glob("docs/*.md"), *root.glob("configs/**/*.yaml")]
    text = "\n".join(path.read_text() for path in files)
    named = {*re.findall(r"class_path['\": ]+([\w.]+)", text)}
    named |= {*re.findall(r"`(ts_lightning\.(?:training|runs|rl|data)\.[A-Z]\w+)`", text)}
    assert {"ts_lightning.training.CastOnce", "ts_lightning.runs.SaveCheckpoints"} <= named
    assert named - set(class_names()) == {"my_package.Focal"}  # with --allow_classes


@pytest.mark.parametrize("cls", [Takes, Passes])
def test_only_factories_may_be_given_to_what_is_called(cls: type) -> None:
    adam = Namespace(class_path="torch.optim.AdamW", init_args=Namespace(lr=0.1))
    refuse_code({"model": spec(cls, optimizer=adam, schedule=None, encode=None, size=5)})
    for name in ("encode", "each"):
        with pytest.raises(ValueError, match=rf"^model\.init_args\.{name}: seen .* expected none: it would be called"):
            refuse_code({"model": spec(cls, **{name: adam})})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (print, "x: seen the function"),
        ([functools.partial(int, base=2)], r"x\[0\]: seen the function"),
        ({"class_path": "os.path.join"}, "x: seen 'os.path.join', expected a class"),
        ({"class_path": "no_such_module.X"}, "x: seen 'no_such_module.X', expected a class"),
        ({"class_path": "builtins.int", "dict_kwargs": {"a": 1}}, "x.dict_kwargs: seen some"),
    ],
)
def test_code_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        refuse_code({"x": value})


def test_a_logger_says_what_is_logged_and_not_where_it_goes() -> None:
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "log_model": False}}
    refuse_code({"logger": logger})
    logger["init_args"] = {"entity": "somebody"}
    with pytest.raises(ValueError, match=r"^logger\.init_args\.entity: seen 'somebody', expected one of .*environment"):
        refuse_code({"logger": logger})
    for name, listed in allowed_classes.LISTED_ARGUMENTS.items():
        assert not {"settings", "base_url", "dict_kwargs", "entity", "experiment"} & listed, name


def test_names_that_have_moved_are_found() -> None:
    old = {"callbacks": [{"class_path": "ts_lightning.training.SaveCheckpoints", "init_args": {"keep": 2}}]}
    assert renamed(old)["callbacks"][0]["class_path"] == "ts_lightning.runs.SaveCheckpoints"
    assert set(MOVED.values()) <= set(class_names())
    old = {"class_path": "ts_lightning.training.GRPO", "init_args": {"loss_type": "paper", "kl_coeff": 0.1}}
    assert renamed(old)["init_args"] == {"kl_coeff": 0.1}
