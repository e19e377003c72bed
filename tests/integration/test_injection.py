"""Captions, names and answers that try to act: in reports, pages, tables and cards, in parsers and a browser."""

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.generation_samples import detection
from tests.unit.hostile_texts import TEXTS, markdown_structure, structure
from ts_lightning.data.sample import Turn
from ts_lightning.metrics.record import Record, Truth
from ts_lightning.metrics.submission import write_submission
from ts_lightning.models import VLM, PlainVLM, lora, package
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines import generate, quality
from ts_lightning.reports.suite_report import write_suite_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "JPEG")
    return buffer.getvalue()


def suite_report(folder: Path, text: str) -> tuple[str, str]:
    """report.html and report.md in which every word is `text`."""
    figures = {text: 0.5, "warning": text, "by_task": {text: {text: 0.5}}, "by_category": {text: 0.5}}
    one = {"protocol": text, "questions": 1, "main": text, "score": 0.5, "interval": (0.1, 0.2)}
    one |= {"paper": {text: [(1, text)], "other": [(1, text)]}, "figures": figures, "convention": {text: text}}
    one |= {"subtasks": {text: {text: 1}}, "not_scored": 1, "reading": text, "suite": text}
    page = write_suite_report({text: one}, [], folder, title=text)
    return page.read_text(), (folder / "report.md").read_text()


def quality_page(text: str) -> str:
    sample = detection(0)
    sample.key = sample.subtask = sample.id = text
    sample.turns = [Turn("user", text), Turn("assistant", text)]
    figures, shown = quality.report([sample], {}, {text: 1})
    return quality.page(figures, [(one, [text]) for one, _ in shown], lambda _: picture())


def cards(folder: Path, text: str) -> Iterator[str]:
    base = {"class": text, "name": text, "sha256": text}
    codec = {"name": text, "grid": text, "frame": text}
    yield package._card({"base": base, "codec": codec, "package": text, "options": {text: text}}, {text: 0.5}, 7)
    yield lora._card({"base": base, "options": {text: text}}, {text: 0.5})
    note = {"samples": 1, "scenes": 1, "shards": [text], "dropped": {text: 1}}
    note |= {"settings": {"generator": {"questions": text}, "templates": text, "seed": 0, "input": text}}
    original = generate.notes
    generate.notes = lambda out, prefix: [note]
    try:
        generate.write_card(folder, "scout")
    finally:
        generate.notes = original
    yield (folder / "README.md").read_text()


def test_pages_and_cards_have_the_parts_of_harmless_ones(tmp_path: Path) -> None:
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    plain_page, plain_report = suite_report(tmp_path, "plain")
    plain_quality = structure(quality_page("plain"))
    plain_cards = [markdown_structure(card) for card in cards(tmp_path, "plain")]
    for text in TEXTS:
        page, report = suite_report(tmp_path, text)
        assert structure(page) == structure(plain_page), text
        assert markdown_structure(report) == markdown_structure(plain_report), text
        assert structure(quality_page(text)) == plain_quality, text
        assert [markdown_structure(card) for card in cards(tmp_path, text)] == plain_cards, text
        if "{" in text:  # what a template would have filled in
            assert text.replace("'", "&#x27;") in page


def test_no_cell_of_a_submission_is_a_formula(tmp_path: Path) -> None:
    records = [
        Record("mmbench", text, text, Truth(), choices=(text, text), meta={"index": text}, question=f"{text}\nA. x")
        for text in TEXTS
    ]
    known = Record("mmbench", "a", "A", Truth(), choices=("cat", "dog"), meta={"index": 241}, question="Which?")
    records += [known]
    assert write_submission(records, tmp_path / "out.tsv") == len(TEXTS) + 1
    with (tmp_path / "out.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert {len(row) for row in rows} == {7}
    starts = (*"=+-@", "\uff1d", "\t", "\r", "\n")
    assert not [cell for row in rows for cell in row if cell.startswith(starts) or cell.strip().startswith(starts)]
    assert rows[-1] == ["241", "Which?", "cat", "dog", "", "", "A"]  # what the benchmark reads is untouched
    expected = [f"'{text}" if text.strip().startswith(starts) else text for text in TEXTS]
    assert [row[-1] for row in rows[1:-1]] == expected


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Any]]:
    """Opens an address in headless Chromium; the page, and whether anything of a stranger ran or was fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(url: str, before: Callable[[Any], None] = lambda page: None) -> list[str]:
            page, outside = browser.new_page(), list[str]()
            page.route("**/*", lambda route: route.continue_() if "evil" not in route.request.url else route.abort())
            page.on("request", lambda request: outside.append(request.url) if "evil" in request.url else None)
            page.on("dialog", lambda dialog: dialog.dismiss())
            page.goto(url)
            before(page)
            page.mouse.move(200, 200)
            page.wait_for_timeout(100)
            assert page.evaluate("window.owned") is None
            found = page.evaluate(
                "[...document.querySelectorAll('[onload],[onerror],[onmouseover]')].map(e => e.tagName)"
            )
            page.close()
            return outside + found

        yield open_page
        browser.close()


@pytest.mark.slow
def test_the_browser_would_tell(opened: Callable[..., list[str]], tmp_path: Path) -> None:
    for text in TEXTS[:3]:
        (tmp_path / "raw.html").write_text(f"<!doctype html><table><td>{text}")
        with pytest.raises(AssertionError):
            opened((tmp_path / "raw.html").as_uri())


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_report(opened: Callable[..., list[str]], tmp_path: Path) -> None:
    pages = [page.replace("<!doctype html>", "") for text in TEXTS for page in (suite_report(tmp_path, text)[0],)]
    (tmp_path / "reports.html").write_text("<!doctype html>" + "".join(pages))
    (tmp_path / "quality.html").write_text("<!doctype html>" + "".join(quality_page(text) for text in TEXTS))
    for name in ("reports", "quality"):
        assert opened((tmp_path / f"{name}.html").as_uri()) == []


@pytest.mark.slow
def test_a_browser_runs_nothing_of_an_answer(
    opened: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.integration.test_demo_page import serve
    from ts_lightning.serve.conversation import Conversation, begin
    from ts_lightning.serve.line import Begun

    every = "\n".join(TEXTS)
    answers = [*TEXTS, every]

    def boxes(vlm: object, text: str, sizes: object) -> list[dict[str, Any]]:
        return [{"image": 0, "step": 0, "start": 0, "end": len(text), "points": [[0, 0], [1, 1]]}]

    def begun(vlm: VLM, talk: Conversation, *_: object, **__: object) -> Begun:
        return begin(vlm, Conversation(talk.images, [], ["What color?"]), max_new_tokens=1)

    monkeypatch.setattr("ts_lightning.serve.server.found_boxes", boxes)
    monkeypatch.setattr("ts_lightning.serve.server.begin", begun)
    address, server = serve(PlainVLM(TinyBackbone(), train=[]).eval(), title=every)

    def talk(page: Any) -> None:
        name = "<img src=x onerror=window.owned=1>.png"
        page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": b"no picture"})
        page.wait_for_selector("#message:has-text('<img src=x')")
        page.locator("#file").set_input_files({"name": name, "mimeType": "image/jpeg", "buffer": picture()})
        page.wait_for_selector("#canvas:visible")
        for number, text in enumerate(answers, 1):
            monkeypatch.setattr("ts_lightning.serve.server.said", lambda vlm, tokens, text=text: text)
            page.fill("#question", f"{text} asked"[:3_000])
            page.press("#question", "Enter")
            page.locator("#turns .badge").nth(number - 1).wait_for()
            page.wait_for_selector("#send:not([disabled])")
        assert page.locator("#turns mark").last.inner_text().startswith("<script>")

    try:
        assert opened(address, talk) == []
    finally:
        server.should_exit = True
