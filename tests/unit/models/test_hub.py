"""Folders by way of a hub: a local server that speaks its routes, huggingface_hub as the client.

Bitwise: weights that are copied.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
import torch

from ts_lightning.cli.export import export
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.hub import on_disk
from ts_lightning.models.package import file_sha256
from ts_lightning.reports.card_scores import own_scores
from ts_lightning.reports.certificate import certify_checkpoint
from ts_lightning.runs.load import load

NAME, SHA = "me/mugs", "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """The routes of a hub that uploading a folder and fetching a snapshot take; files stay in `files`."""

    files: dict[str, bytes]

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/{NAME}", "name": NAME, "id": NAME})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{NAME}/preupload/main":
            how = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": file["path"], **how} for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif self.path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/{NAME}/commit/{SHA}"
            self.answer({"commitUrl": address, "commitOid": SHA, "success": True})
        else:
            self.answer({"error": "no such route"}, 404)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        listed = [{"rfilename": name} for name in sorted(self.files)]
        if path.startswith(f"/api/models/{NAME}/revision/") or path == f"/api/models/{NAME}":
            self.answer({"id": NAME, "modelId": NAME, "sha": SHA, "siblings": listed, "private": False})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            about = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.answer(about)
        elif path.startswith(f"/{NAME}/resolve/") and (name := path.split("/", 5)[5]) in self.files:
            data = self.files[name]
            self.answer(data, 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA})
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Tests stay quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    handler = type("Own", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler.files  # type: ignore[attr-defined]
    server.shutdown()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    vlm = TwinExpertVLM(TinyBackbone(), expert_rank=1, every=4)
    with torch.no_grad():
        for parameter in vlm.trainable_state_dict().values():
            parameter.add_(0.01)
    vlm.save_pretrained(tmp_path / "package", {"val/toy/miou": 0.5})
    return tmp_path / "package"


def test_an_exported_package_is_pushed_and_opened_by_its_name(
    hub: dict[str, bytes], package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = {
        "passed": True, "logits": {"bitwise_equal": True, "positions": 7}, "tensors_compared": 3, "differing": [],
        "checkpoint": {"sha256": file_sha256(package / "package.safetensors")},
    }  # fmt: skip
    (tmp_path / "certificate.json").write_text(json.dumps(certificate))
    (tmp_path / "scores.json").write_text('{"miou": 0.25}')
    export(
        ckpt=package, to="package", out=tmp_path / "out", scores=tmp_path / "scores.json", push=NAME,
        certificate=tmp_path / "certificate.json",
    )  # fmt: skip
    assert "pushed: " in capsys.readouterr().out
    card = hub["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ts-lightning\n")
    assert "miou: 0.2500" in card
    assert "Passed: understanding logits bitwise equal to the base's at 7 positions" in card
    opened = load(f"hub:{NAME}").vlm
    expected = load(package).vlm.trainable_state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in opened.trainable_state_dict().items())
    init = TwinExpertVLM(TinyBackbone(), expert_rank=1, every=4, init_from=f"hub:{NAME}")
    assert all(torch.equal(value, expected[name]) for name, value in init.trainable_state_dict().items())


def test_the_card_of_a_folder_goes_on_to_the_next(package: Path, tmp_path: Path) -> None:
    """Exported once more, to be pushed with a certificate, it kept the weights and lost the figures."""
    names = {"val/toy/miou": 0.5, "of <b> _all_ [1] & `2`": -0.25}
    load(package).vlm.save_pretrained(package, names)
    export(ckpt=package, to="package", out=package)
    assert own_scores(package) == names
    export(ckpt=package, to="package", out=tmp_path / "full", rank=0)
    assert "None were given" in (tmp_path / "full/README.md").read_text()


def test_a_certificate_goes_on_with_its_weights(package: Path, tmp_path: Path) -> None:
    """`certify --out PACKAGE/certificate.json` was deleted when the package was exported once more."""
    there = package / "certificate.json"
    found = {
        "passed": True, "logits": {"bitwise_equal": True, "positions": 7}, "tensors_compared": 3, "differing": [],
        "checkpoint": {"sha256": file_sha256(package / "package.safetensors")},
    }  # fmt: skip
    there.write_text(json.dumps(found))
    for folder in (package, tmp_path / "next"):
        export(ckpt=package, to="package", out=folder)
        assert json.loads((folder / "certificate.json").read_text()) == found
        assert "Passed" in (folder / "README.md").read_text()
    export(ckpt=package, to="package", out=tmp_path / "full", rank=0)
    there.write_text(json.dumps(found | {"checkpoint": {"sha256": "ab" * 32}}))  # of the checkpoint it came from
    export(ckpt=package, to="package", out=package)
    for folder in (package, tmp_path / "full"):
        assert not (folder / "certificate.json").exists()
        assert "Passed" not in (folder / "README.md").read_text()


def test_a_checkpoint_and_the_package_made_of_it_have_one_certificate(package: Path, tmp_path: Path) -> None:
    ckpt, shards = tmp_path / "last.ckpt", "data_shards/toy/val_understanding-*.tar"
    export(ckpt=package, to="checkpoint", out=ckpt)
    for one, other in ((ckpt, package), (package, ckpt)):
        made = tmp_path / f"of_{one.name}.json"
        made.write_text(json.dumps(certify_checkpoint(one, shards, max_samples=1, max_new_tokens=1)))
        out = tmp_path / f"out_{other.name}"
        export(ckpt=other, to="package", out=out, certificate=made)
        export(ckpt=out, to="package", out=tmp_path / f"again_{other.name}")
        assert "Passed" in (tmp_path / f"again_{other.name}/README.md").read_text()
    changed = load(package)
    with torch.no_grad():
        next(iter(changed.vlm.trainable_state_dict().values())).add_(0.01)
    changed.vlm.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match=r"--certificate .*: seen one of weights with sha256"):
        export(ckpt=tmp_path / "changed", to="package", out=tmp_path / "bad", certificate=made)


def test_a_certificate_is_of_what_is_exported(package: Path, tmp_path: Path) -> None:
    """Nothing is written with the verdict on other weights, or on none."""
    path = tmp_path / "certificate.json"
    found = {"passed": True, "logits": {}, "tensors_compared": 3, "differing": [], "checkpoint": {"sha256": "ab" * 32}}
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"--certificate .*: seen one of weights with sha256 abababababab, expected "):
        export(ckpt=package, to="package", out=tmp_path / "out", certificate=path)
    path.write_text("{}")
    with pytest.raises(
        ValueError, match=r"--certificate .*: seen none \(other fields\), expected what `certify` writes"
    ):
        export(ckpt=package, to="package", out=tmp_path / "out", certificate=path)
    with pytest.raises(ValueError, match="--certificate: seen with --rank, which makes other weights"):
        export(ckpt=package, to="package", out=tmp_path / "out", certificate=path, rank=0)
    for option in ("certificate", "scores"):
        with pytest.raises(ValueError, match=f"--{option} .*: seen --to checkpoint, expected package"):
            export(ckpt=package, to="checkpoint", out=tmp_path / "out", **{option: path})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_what_cant_be_had_is_one_line(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hub:you/none: can't be had .*expected a network, OWNER/NAME") as caught:
        on_disk("hub:you/none")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hub:me/mugs: can't be had") as caught:
        on_disk("hub:me/mugs")
    assert "\n" not in str(caught.value)
    assert on_disk(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="seen --to checkpoint, expected package"):
        export(ckpt=tmp_path, to="checkpoint", out=tmp_path / "x", push=NAME)
