"""Batches lie where the model does."""

from types import SimpleNamespace

import torch

from ts_lightning.runs.batch import batch_for, moved


def test_a_batch_lies_on_its_models_device():
    embedding = SimpleNamespace(weight=torch.empty(1, device="meta"))
    vlm = SimpleNamespace(pad_id=7, backbone=SimpleNamespace(embedding=embedding))
    row = {"input_ids": torch.tensor([1, 2]), "step_ids": torch.tensor([-1, 0]), "task": 0, "sample": None}
    row |= {"pixel_values": torch.zeros(0, 3, 2, 2, dtype=torch.uint8)}
    found = batch_for(vlm, [row, {**row, "input_ids": torch.tensor([3]), "step_ids": torch.tensor([0])}])
    places = {name: value.device.type for name, value in found.items() if torch.is_tensor(value)}
    assert set(places.values()) == {"meta"}
    assert found["input_ids"].shape == (2, 2)


def test_tensors_inside_of_lists_and_dicts_move():
    there = moved({"pictures": [{"pixels": torch.zeros(2)}, "text"], "n": 3}, torch.device("meta"))
    assert there["pictures"][0]["pixels"].device.type == "meta"
    assert (there["pictures"][1], there["n"]) == ("text", 3)
