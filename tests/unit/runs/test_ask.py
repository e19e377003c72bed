"""One question about pictures: every kind of picture, batches, what is read from the answer, the command."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ts_lightning
from tests.unit.data_samples import picture
from tests.unit.models.hf_families import make_folder
from ts_lightning import cli
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.ask import ask, encoded


@pytest.fixture(scope="module")
def vlm() -> PlainVLM:
    return PlainVLM(TinyBackbone(), train=[]).eval()


def test_any_kind_of_picture_gives_one_answer(vlm: PlainVLM, tmp_path: Path) -> None:
    data = picture(3, (60, 40), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    kinds = [data, tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)]
    replies = [ask(vlm, one, "What color is the square?", max_new_tokens=8) for one in kinds]
    assert all(reply == replies[0] for reply in replies)
    assert replies[0].text
    assert replies[0].sizes == ((60, 40),)
    assert replies[0].task == "understanding"  # without packages there is one path


def test_a_batch_has_the_answers_of_its_questions(vlm: PlainVLM) -> None:
    asked = [(picture(n, (40 + n, 50)), f"What is in picture {n}?") for n in range(9)]
    together = ask(vlm, [image for image, _ in asked], [question for _, question in asked], max_new_tokens=6)
    assert [reply.sizes for reply in together] == [((40 + n, 50),) for n in range(9)]
    for (image, question), reply in zip(asked[::4], together[::4], strict=True):
        assert ask(vlm, image, question, max_new_tokens=6).text == reply.text
    with pytest.raises(ValueError, match="seen 1 pictures for 2 questions"):
        ask(vlm, [picture()], ["a", "b"])


def test_boxes_are_read_in_pixels_of_their_picture(vlm: PlainVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "generate", lambda batch, n: ["Image 2: [[10,20,50,100]]"] * len(batch["task"]))
    reply = ask(vlm, [picture(0, (100, 100)), picture(1, (200, 50))], "Where is it?")
    assert reply.boxes == ((0.1, 0.2, 0.5, 1.0),)
    assert reply.pictures == (1,)
    assert reply.pixels == (pytest.approx((20, 10, 100, 50)),)


def test_without_a_picture_there_are_no_boxes(vlm: PlainVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "generate", lambda batch, n: ["At [[10,20,50,100]]"])
    reply = ask(vlm, [], "Where is it?")
    assert (reply.text, reply.boxes, reply.pixels) == ("At [[10,20,50,100]]", (), ())


def test_what_is_asked_goes_to_the_models_device(vlm: PlainVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(TinyBackbone, "embedding", SimpleNamespace(weight=torch.empty(1, device="meta")))
    monkeypatch.setattr(vlm, "generate", lambda batch, n: [str(seen.extend(v for v in batch.values()))])
    ask(vlm, picture(), "Where is it?")
    assert {value.device.type for value in seen if torch.is_tensor(value)} == {"meta"}


def test_the_router_decides_where_there_is_a_package() -> None:
    vlm = TwinExpertVLM(TinyBackbone()).eval()
    replies = ask(
        vlm, [picture()] * 2, ["Where is the cat? Answer with a box.", "What color is the cat?"], max_new_tokens=2
    )
    assert [reply.task for reply in replies] == ["grounding", "understanding"]
    assert ask(vlm, picture(), "What color is it?", "grounding", 2).task == "grounding"
    with pytest.raises(ValueError, match="seen task 'singing'"):
        ask(vlm, picture(), "Sing", "singing")


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (Path("no/such.jpg"), "no/such.jpg: No such file"),
        (np.zeros((4, 4, 3)), "seen an array float64"),
        (np.zeros((4, 4, 4), np.uint8), r"seen an array uint8 \[4, 4, 4\]"),
        (3, "seen a int, expected a path"),
        (b"nothing", "seen 7 bytes"),
    ],
)
def test_what_is_no_picture_is_named(vlm: PlainVLM, wrong: object, seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        ask(vlm, wrong, "Where?")
    with pytest.raises(ValueError, match="expected a question"):
        ask(vlm, picture(), " ")


def test_pictures_of_other_modes_are_encoded() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "1"):
        assert Image.open(io.BytesIO(encoded(Image.new(mode, (5, 4))))).size == (5, 4)


def test_a_plain_folder_is_asked_by_load_and_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder("internvl", tmp_path / "model")
    (tmp_path / "a.png").write_bytes(picture(1, (60, 40), "PNG"))
    reply = ts_lightning.load(folder).ask(tmp_path / "a.png", "Where is the star?", max_new_tokens=3)
    assert reply.text
    assert reply.task == "understanding"
    said = "<ref>a star</ref><box>[[100, 200, 500, 1000]]</box>"
    monkeypatch.setattr(PlainVLM, "generate", lambda self, batch, n: [said])
    out = tmp_path / "drawn" / "out.png"
    words = ["ask", "--ckpt", str(folder), "--image", str(tmp_path / "a.png"), "Where is it?", "--draw", str(out)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4:-1] == [
        said,
        "path: understanding",
        "box: 6.0, 8.0, 30.0, 40.0 pixels; 0.100, 0.200, 0.500, 1.000 (a star)",
    ]
    assert Image.open(out).width == 640
    assert cli.main(["ask", "--image", str(tmp_path / "no.png"), "Where?"]) == 2
    assert "no.png: No such file" in capsys.readouterr().err


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seen none of our folders, expected a run with checkpoints"):
        ts_lightning.load(tmp_path)
