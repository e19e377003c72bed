"""lmms-eval's model, behind a stand-in for the two files of lmms-eval 0.7 that it imports."""

import abc
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.render import render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.runs.ask import ask

QUESTIONS = ["Where is the circle? Answer with a box.", "What color is the circle?"]
PICTURES = [render(sample_scene(i)) for i in (3, 4)]


class Lmms(abc.ABC):
    """`lmms_eval.api.model.lmms`, what it asks of a model and what it gives."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass(frozen=True)
class ModelManifest:
    """`lmms_eval.models.registry_v2.ModelManifest`."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class Instance:
    """`lmms_eval.api.instance.Instance`, which has its arguments under `args`."""

    args: tuple[Any, ...]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class that the manifest names, loaded as the registry does it."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Lmms  # type: ignore[attr-defined]
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "ts_lightning.serve.lmms_eval", raising=False)
    (point,) = entry_points(group="lmms_eval.models", name="ts_lightning")
    manifest = point.load()()
    assert manifest.model_id == "ts_lightning"
    module, name = manifest.simple_class_path.rsplit(".", 1)
    yield getattr(importlib.import_module(module), name)
    sys.modules.pop("ts_lightning.serve.lmms_eval", None)


def requests(made: Any, settings: list[dict[str, Any]]) -> list[Instance]:
    """Two questions of one task, as lmms-eval builds them."""
    made.task_dict = {"toy": {"val": [{"picture": picture} for picture in PICTURES]}}

    def pictures(doc: dict[str, Any]) -> list[Image.Image]:
        return [doc["picture"]]

    return [Instance((QUESTIONS[i], settings[i], pictures, i, "toy", "val")) for i in range(2)]


def test_requests_with_pictures_are_answered_as_by_ask(model: Any, tmp_path: Path) -> None:
    vlm = TwinExpertVLM(TinyBackbone()).eval()
    vlm.save_pretrained(tmp_path / "package")
    made = model(ckpt=str(tmp_path / "package"), task="understanding", batch_size=1, device="cpu")
    assert isinstance(made, Lmms)
    assert made.is_simple
    limits = [24, 5]
    whole = [
        ask(vlm, PICTURES[i], QUESTIONS[i], "understanding", max_new_tokens=limits[i]).text.strip() for i in range(2)
    ]
    assert all(whole)
    settings: list[dict[str, Any]] = [{"max_new_tokens": limit, "until": ["\n\n"]} for limit in limits]
    assert made.generate_until(requests(made, settings)) == whole
    end = whole[0][len(whole[0]) // 2]
    settings[0]["until"] = end
    assert made.generate_until(requests(made, settings)) == [whole[0].split(end)[0].strip(), whole[1]]


def test_a_blank_line_ends_no_answer(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval 0.7.3 gives a task that says no `until` a blank line."""
    thought = "<think>The second picture has it.\n\nIt lies left.</think>\n\n<answer>[[10,10,50,50]]</answer>"
    made = model(base_url="http://127.0.0.1:9/v1")
    monkeypatch.setattr(made, "_served", lambda pictures, question, limit: thought)
    untils: list[Any] = [["\n\n"], ["\n\n", "lies"]]
    answers = made.generate_until(requests(made, [{"until": until} for until in untils]))
    assert answers == [thought, "<think>The second picture has it.\n\nIt"]


def test_what_is_not_answered_says_so(model: Any) -> None:
    for given in ({}, {"ckpt": "a", "base_url": "b"}):
        with pytest.raises(ValueError, match="model_args: seen ckpt and base_url both or neither"):
            model(**given)
    made = model(base_url="http://127.0.0.1:9/v1")
    for method in (made.loglikelihood, made.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="answers tasks of output_type generate_until"):
            method([])
