"""The tiny backbone: its layout on disk, its lessons, its training's checkpoints.

Bitwise: weights that are copied, and the same steps in the same order.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.models.hf_families import make_folder
from tools.experiments.tiny_base.curriculum import lesson
from tools.experiments.tiny_base.lessons import lesson_batch, lesson_logits, lesson_loss, lesson_row
from tools.experiments.tiny_base.patches import LABELS, RANGE_CLASSES
from tools.experiments.tiny_base.training import make_optimizer, restore, train_lessons
from tools.experiments.tiny_base.vision import PatchHeads
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import SHIPPED, TinyBackbone

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "vision_layers": 1, "num_heads": 2}


def heads_of(model: TinyBackbone) -> PatchHeads:
    torch.manual_seed(0)
    words = [model.encoder.token_ids([f" {word}" for word in words]) for words in LABELS.values()]
    return PatchHeads(model.embedding, words, RANGE_CLASSES)


def backbone(seed: int = 0) -> TinyBackbone:
    return TinyBackbone(pretrained=None, seed=seed, **SIZES)


def test_saved_in_moe_llavas_layout_and_loaded_again(tmp_path: Path) -> None:
    one = backbone()
    one.save(tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    layer = "model.language_model.layers.2.mlp.deepspeed_moe"
    assert f"{layer}.gate.wg.weight" in keys
    assert f"{layer}.experts.deepspeed_experts.3.fc1.weight" in keys
    assert "model.language_model.layers.1.mlp.fc1.weight" in keys
    two = TinyBackbone(pretrained=str(tmp_path))
    state = two.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(state[name], tensor.bfloat16().float()), name
    two.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_identity_names_the_weights() -> None:
    assert backbone(0).identity() == backbone(0).identity()
    assert backbone(0).identity()["sha256"] != backbone(1).identity()["sha256"]


def test_a_missing_base_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrained: no model.safetensors in .*nowhere"):
        TinyBackbone(pretrained=str(tmp_path / "nowhere"))


@torch.no_grad()
def test_another_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seen model_type 'llava' in .*HFBackbone"):
        TinyBackbone(pretrained=str(make_folder("llava", tmp_path / "model")))


def test_packed_questions_get_the_logits_of_questions_asked_alone() -> None:
    model = backbone().eval()
    made = next(m for m in map(lesson, range(0, 400, 8)) if len(m.images) == 1)
    pad = model.encoder.tokenizer.pad_token_id
    packed = lesson_batch([lesson_row(model.encoder, *made, most=1000)], pad)
    alone = lesson_batch([lesson_row(model.encoder, made.images, [p], made.labels, 1000) for p in made.pairs], pad)
    together, apart = (lesson_logits(model, batch)[0] for batch in (packed, alone))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_going_on_from_a_checkpoint_equals_one_run(tmp_path: Path) -> None:
    def run(out: Path, until: int) -> dict[str, torch.Tensor]:
        model = backbone().requires_grad_(True).train()
        heads = heads_of(model)
        optimizer = make_optimizer(model, heads, 1e-3)
        first = restore(model, heads, optimizer, out / "last.pt") or 0
        rows = [lesson_row(model.encoder, *lesson(i), most=150) for i in range(first, until)]
        batches = [lesson_batch([row], model.encoder.tokenizer.pad_token_id) for row in rows]
        train_lessons(model, heads, optimizer, batches, out, first, until, decay=1, lr=1e-3, save_every=2)
        return model.model.state_dict()

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run(tmp_path / "a", 2)
    split, whole = run(tmp_path / "a", 4), run(tmp_path / "b", 4)
    assert all(torch.equal(split[name], whole[name]) for name in whole)


def test_lesson_loss_trains_everything() -> None:
    model = backbone().requires_grad_(True).train()
    heads = heads_of(model)
    rows = [lesson_row(model.encoder, *lesson(i), most=200) for i in range(4)]
    loss, correct = lesson_loss(model, heads, lesson_batch(rows, 1), 0.01)
    loss.backward()
    assert 0 <= correct.item() <= 1
    without = [n for n, p in model.model.named_parameters() if p.grad is None]
    assert all("post_layernorm" in name for name in without)  # pools the class token, which nobody reads


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="no base is shipped yet")
def test_shipped_base() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size <= 8 * 2**20
    assert PlainVLM(TinyBackbone()).identity()["name"] == "tiny"
