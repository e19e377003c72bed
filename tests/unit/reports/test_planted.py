"""The certificate against our own server, and with faults planted in what its preprocessing does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")
from starlette.testclient import TestClient

from tests.unit.models.test_backbones import qwen_config
from tests.unit.reports.planted import Change, bgr, changed, halved, nearest
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.shards import grounding_samples
from ts_lightning.reports import parity
from ts_lightning.rl.vllm_server import Refused, VLLMServer
from ts_lightning.serve.server import make_app

HERE = "http://127.0.0.1:7860"
QUESTIONS = list(grounding_samples("val", 6, ("localization", "rec")))


class Through(VLLMServer):
    """Our own server, with what a fault makes of the pictures on the way."""

    def __init__(self, client: TestClient, change: Change | None) -> None:
        super().__init__(HERE)
        self.client, self.change = client, change

    def call(self, path: str, body: Any = None, patience: float | None = None) -> Any:
        if body is None:
            return self.client.get(path).json()
        reply = self.client.post(path, json=body if self.change is None else changed(body, self.change))
        if reply.status_code >= 400:
            raise Refused(reply.status_code, reply.text)
        return reply.json()


@pytest.fixture(scope="module", params=["tiny", "qwen"])
def vlm(request: pytest.FixtureRequest) -> PlainVLM:
    made: Any = TinyBackbone() if request.param == "tiny" else QwenVLBackbone(config=qwen_config())
    return PlainVLM(made, train=[]).eval()


@pytest.fixture(scope="module")
def client(vlm: PlainVLM) -> Iterator[TestClient]:
    with TestClient(make_app(vlm, "planted"), base_url=HERE) as made:
        yield made


def certificate(
    vlm: PlainVLM, client: TestClient, change: Change | None, work: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setattr(parity, "VLLMServer", lambda url: Through(client, change))
    return parity.certify_against(vlm, HERE, QUESTIONS, 12, 1e-4, 0.999, work)


def test_our_own_server_is_certified(
    vlm: PlainVLM, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = certificate(vlm, client, None, tmp_path, monkeypatch)
    assert found["passed"]
    assert (found["equal_answers"], found["differing"]) == (1.0, [])
    assert found["max_logp_difference"] < 1e-4
    assert found["tokens"] >= 6


def test_channels_in_the_other_order_fail_and_are_named(
    vlm: PlainVLM, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = certificate(vlm, client, bgr, tmp_path, monkeypatch)
    assert not found["passed"]
    assert found["why"].startswith("pictures: channels in the other order (BGR)")


def test_another_filter_fails_and_is_named(
    vlm: PlainVLM, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = certificate(vlm, client, nearest(vlm.encoder.resized), tmp_path, monkeypatch)
    assert not found["passed"]
    assert found["why"].startswith("pictures: another resize: with pixels of the trainer's size")


@pytest.mark.parametrize("vlm", ["qwen"], indirect=True)
def test_another_size_fails_and_is_named(
    vlm: PlainVLM, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that tells no tokens of its prompt tells how many they are."""
    found = certificate(vlm, client, halved, tmp_path, monkeypatch)
    assert not found["passed"]
    assert found["why"].startswith("pictures: another resize: ")
    assert found["why"].endswith("and as many without pictures")
