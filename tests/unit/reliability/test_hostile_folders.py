"""Model folders of a stranger: their own code, pickles and templates are refused, or come to nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ts_lightning.models.backbones.hub_layout import load_tokenizer, small_tokenizer
from ts_lightning.pipelines.llm_client import LocalChat

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 2060}
QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def hit(tmp_path: Path) -> Iterator[Path]:
    """The file that the stranger's code would write; it must not be there at the end."""
    yield tmp_path / "HIT"
    assert not (tmp_path / "HIT").exists()


@pytest.fixture
def folder(tmp_path: Path, hit: Path) -> Path:
    """A whole text model, with a module beside it that writes a file when it is imported."""
    place = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(place)
    small_tokenizer().save_pretrained(place)
    (place / "evil.py").write_text(f"import os\nos.system('touch {hit}')\nclass Evil: pass\n")
    return place


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_folder_answers(folder: Path) -> None:
    assert isinstance(LocalChat(str(folder), max_tokens=2, device="cpu").chat(QUESTION), str)


def test_code_that_a_configuration_names_is_not_imported(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    LocalChat(str(folder), max_tokens=2, device="cpu").chat(QUESTION)  # a known kind: ours is taken
    change(folder / "config.json", model_type="evil")
    with pytest.raises((ValueError, OSError, KeyError)):
        LocalChat(str(folder), device="cpu")


def test_code_that_a_tokenizer_names_is_refused(folder: Path) -> None:
    change(
        folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    )
    with pytest.raises(ValueError, match="custom code"):
        load_tokenizer(folder, "<image>", "</s>")
    with pytest.raises(ValueError, match="custom code"):
        LocalChat(str(folder), device="cpu")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        LocalChat(str(folder), device="cpu")


def test_a_name_that_is_no_folder_is_not_fetched() -> None:
    with pytest.raises(ValueError, match="nobody/no-such-model: seen no such folder"):
        LocalChat("nobody/no-such-model", device="cpu")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch HIT') }}",
        "{{ messages.append({'role': 'system'}) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(
    template: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change(folder / "tokenizer_config.json", chat_template=template)
    (folder / "chat_template.jinja").write_text(template)
    chat = LocalChat(str(folder), max_tokens=2, device="cpu")
    with pytest.raises(Exception, match=r"unsafe|undefined|too big|not safely"):
        chat.chat(QUESTION)
