"""The page in a real browser: headless Chromium against a real server, nothing fetched from outside."""

import io
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.new_objects import FIRST_SEED, KINDS, sample_new_scene
from ts_lightning.pipelines.toy_world.render import render
from ts_lightning.pipelines.toy_world.scene import Scene, sample_scene
from ts_lightning.runs.load import load
from ts_lightning.serve.line import Begun

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]
SHOTS = os.environ.get("TS_LIGHTNING_SCREENSHOTS")  # a folder: the pictures of docs/demo.md are made by these tests


def serve(vlm: PlainVLM | TwinExpertVLM, title: str = "test model") -> tuple[str, "uvicorn.Server"]:
    from ts_lightning.serve.server import make_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(make_app(vlm, title), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{port}", server


def tuned(name: str) -> Path | None:
    """A checkpoint that knows its toy world, for the screenshots: chatspot.ckpt or twist.ckpt in that folder."""
    folder = os.environ.get("TS_LIGHTNING_SCREENSHOT_CKPTS")
    return Path(folder) / f"{name}.ckpt" if folder else None


@pytest.fixture(scope="module", params=["chatspot", "twist"])
def url(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    vlm: PlainVLM | TwinExpertVLM
    if checkpoint := tuned(request.param):
        vlm = load(checkpoint).vlm
    elif request.param == "chatspot":
        vlm = PlainVLM(TinyBackbone(codec="chatspot", codec_grid="100"), train=[])
    else:
        vlm = TwinExpertVLM(TinyBackbone())
    address, server = serve(vlm.eval())
    yield request.param, address
    server.should_exit = True


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: "playwright.Browser", url: tuple[str, str]) -> Iterator["playwright.Page"]:
    """The open page; a request to anywhere else is aborted and fails the test, and so does an error of a script."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    outside, errors = [], []

    def guard(route: "playwright.Route") -> None:
        if route.request.url.startswith((url[1], "blob:", "data:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    page.route("**/*", guard)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url[1])
    yield page
    page.close()
    assert outside == []
    assert errors == []


def picture(seed: int = 11, scene: Scene | None = None) -> dict:
    buffer = io.BytesIO()
    render(scene or sample_scene(seed)).save(buffer, "PNG")
    return {"name": f"scene{seed}.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def shoot(page: "playwright.Page", name: str) -> None:
    if SHOTS:
        image = Image.open(io.BytesIO(page.screenshot()))
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(
            Path(SHOTS) / f"demo_{name}.png", optimize=True
        )


def drag(page: "playwright.Page", x1: float, y1: float, x2: float, y2: float) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + x1 * box["width"], box["y"] + y1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + x2 * box["width"], box["y"] + y2 * box["height"], steps=4)
    page.mouse.up()


def click(page: "playwright.Page", x: float, y: float, count: int = 1) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"], click_count=count)


def add(page: "playwright.Page", *files: dict) -> None:
    page.locator("#file").set_input_files(list(files))
    page.wait_for_selector("#canvas:visible")


def ask(page: "playwright.Page", question: str, turns: int = 1) -> str:
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#send:not([disabled])")
    page.wait_for_function(f"document.querySelectorAll('#turns .badge').length === {turns}")
    return page.locator("#turns li.model").last.inner_text()


def test_point_drag_polygon_and_ask(page: "playwright.Page", url: tuple[str, str]) -> None:
    if url[0] != "chatspot":
        pytest.skip("this model can't be asked about clicks")
    add(page, picture())
    scene = sample_scene(11)
    star, triangle, orange = scene.things[:3]
    page.click("#tools button[data-kind=click]")
    click(page, *scene.center(star))
    page.click("#tools button[data-kind=box]")
    drag(page, *scene.box(triangle))
    page.click("#tools button[data-kind=polygon]")
    x1, y1, x2, y2 = scene.box(orange)
    for x, y in ((x1, y1), (x2, y1 + 0.01), (x2 + 0.02, y2)):
        click(page, x, y)
    click(page, x1 - 0.03, y2 + 0.02, count=2)
    chips = page.locator("#regions .chip")
    assert [chip.split("\n")[0] for chip in chips.all_inner_texts()] == ["#1 click", "#2 box", "#3 polygon"]
    page.fill("#question", "What color is in ")
    chips.nth(1).locator("button").first.click()
    assert page.input_value("#question") == "What color is in #2"
    assert "understanding (automatic)" in ask(page, "What color is in #2? In short.")
    assert "understanding (automatic)" in ask(page, "What shape is in #1? In short.", turns=2)
    assert "understanding (automatic)" in ask(page, "What is in #3? In detail.", turns=3)
    shoot(page, "regions")
    page.keyboard.press("Escape")
    assert chips.count() == 2
    ask_refused = page.locator("#message")
    page.fill("#question", "What is in #3?")
    page.press("#question", "Enter")
    page.wait_for_selector("#message:visible")
    assert "seen #3, which was removed" in ask_refused.inner_text()
    assert page.input_value("#question") == "What is in #3?"  # nothing typed is lost
    page.click("#clear")
    assert page.locator("#turns li.model").count() == 0
    assert page.locator("#drop").is_visible()


def test_boxes_are_drawn_in_the_colors_of_their_steps(
    page: "playwright.Page", url: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    text = "Step 1: Find the star [[10,10,40,40]]. Step 2: It is left of the ring [[60,50,90,90]]."

    monkeypatch.setattr("ts_lightning.serve.server.said", lambda vlm, tokens: text)
    add(page, picture())
    corners = [[0.1, 0.25], [0.6, 0.7]]  # on the left edge of either box
    pixel = """([x, y]) => {
        const canvas = document.getElementById("canvas");
        const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
        return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
    }"""
    before = [page.evaluate(pixel, corner) for corner in corners]
    assert text in ask(page, "Where is the star?")
    marks = page.locator("#turns mark")
    assert marks.all_inner_texts() == ["[[10,10,40,40]]", "[[60,50,90,90]]"]
    colors = [mark.evaluate("e => getComputedStyle(e).borderBottomColor") for mark in marks.all()]
    assert colors == ["rgb(230, 25, 75)", "rgb(10, 108, 255)"]
    after = [page.evaluate(pixel, corner) for corner in corners]
    assert after != before
    assert [f"rgb({r}, {g}, {b})" for r, g, b in after] == colors


def test_steps_are_numbered_by_their_place(
    page: "playwright.Page", url: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    texts = [
        "[[10,10,40,40]]",
        "Step 1: The star [[10,10,40,40]]. Step 1: The ring [[60,50,90,90]]. Step 1: The star [[10,10,40,40]].",
        "Step 3: The cup [[10,10,40,40]]. Step 4: The hat [[60,50,90,90]].",
    ]
    page.evaluate(
        """() => {
            window.written = [];
            const write = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
                window.written.push(text);
                return write.call(this, text, ...place);
            };
        }"""
    )
    add(page, picture())
    for turn, labels in enumerate([[], ["1, 3", "2", "1, 3"], ["1", "2"]], 1):
        monkeypatch.setattr("ts_lightning.serve.server.said", lambda vlm, tokens, text=texts[turn - 1]: text)
        page.evaluate("window.written = []")
        ask(page, "Where is it?", turns=turn)
        written = page.evaluate("window.written")
        assert written[-len(labels) :] == labels if labels else written == []


def test_the_badge_names_the_path(page: "playwright.Page", url: tuple[str, str]) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    add(page, picture(), picture(12))
    assert page.locator("#thumbs button").count() == 2
    page.click("#clear")
    scene = sample_new_scene(FIRST_SEED["test"] + int(os.environ.get("TS_LIGHTNING_SCREENSHOT_SCENE", "12")))
    add(page, picture(scene=scene))
    name = next(thing.shape for thing in scene.things if thing.shape in KINDS)
    assert "grounding (automatic)" in ask(page, f"Find the {name} and answer with its box.")
    shoot(page, "box")
    assert "understanding (automatic)" in ask(page, f"What color is the {name}?", turns=2)
    page.click("#clear")
    add(page, picture(scene=scene))
    page.select_option("#task", "grounding")
    assert "grounding (forced)" in ask(page, f"What color is the {name}? Answer step by step with boxes.")
    shoot(page, "steps")


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float, tokens: int = 256) -> None:
    """The server says one word again and again, a token in so many seconds."""
    from ts_lightning.serve import server

    begin = server.begin

    def begun(*given: object, **how: object) -> Begun:
        made = begin(*given, **how)
        made.writing.sampler = lambda logits_BV, rows_B: time.sleep(seconds) or torch.tensor([100])
        made.writing.max_new_tokens = tokens
        return made

    monkeypatch.setattr(server, "begin", begun)


def test_a_removed_region_keeps_its_number(page: "playwright.Page", url: tuple[str, str]) -> None:
    add(page, picture())
    drag(page, 0.1, 0.1, 0.4, 0.4)
    page.keyboard.press("Escape")  # no question has had it: its number is free
    drag(page, 0.1, 0.1, 0.4, 0.4)
    drag(page, 0.5, 0.5, 0.9, 0.9)
    chips = page.locator("#regions .chip")
    ask(page, "What is in #2?")
    chips.first.locator("button").last.click()
    assert page.evaluate("document.activeElement.id") == "question"
    with page.expect_request("**/api/ask") as sent:
        ask(page, "And its color?", turns=2)
    assert [region["points"][0][0] for region in sent.value.post_data_json["regions"]] == pytest.approx(
        [0.1, 0.5], abs=0.01
    )
    assert page.locator("#message").is_hidden()
    drag(page, 0.2, 0.6, 0.4, 0.8)
    assert [chip.split("\n")[0] for chip in chips.all_inner_texts()] == ["#2 box", "#3 box"]
    page.fill("#question", "What is in #1?")
    page.press("#question", "Enter")
    assert "seen #1, which was removed" in page.locator("#message").inner_text()
    assert page.locator("#turns li.user").count() == 2


def test_a_refused_question_gives_its_numbers_back_and_is_not_lost(
    page: "playwright.Page", url: tuple[str, str]
) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    add(page, picture())
    drag(page, 0.1, 0.1, 0.4, 0.4)
    waiting: list[playwright.Route] = []
    page.route("**/api/ask", lambda route: waiting.append(route))

    def refused(question: str, meanwhile: str = "") -> str:
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector("#send[disabled]")
        while not waiting:
            page.wait_for_timeout(20)
        page.fill("#question", meanwhile)
        waiting.pop().fulfill(status=400, json={"error": "too long"})
        page.wait_for_selector("#send:not([disabled])")
        return page.locator("#message").inner_text()

    assert refused("What is #1?") == "too long"
    assert page.input_value("#question") == "What is #1?"
    assert refused("What is #1?", "typed meanwhile") == "too long (not answered: What is #1?)"
    assert page.input_value("#question") == "typed meanwhile"
    page.locator("#regions .chip button").last.click()
    drag(page, 0.2, 0.6, 0.4, 0.8)  # no question has had number 1
    assert [chip.split("\n")[0] for chip in page.locator("#regions .chip").all_inner_texts()] == ["#1 box"]


def test_a_new_conversation_ends_the_answer(
    page: "playwright.Page", url: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    add(page, picture())
    with monkeypatch.context() as slow:
        slowly(slow, 0.05)
        page.fill("#question", "What color is it?")
        page.press("#question", "Enter")
        page.locator("#turns li.model", has_text=re.compile(".{40}")).wait_for()
    page.click("#clear")
    assert page.locator("#turns li.empty").is_visible()
    page.fill("#question", "typed meanwhile")
    page.wait_for_timeout(500)
    assert page.input_value("#question") == "typed meanwhile"
    assert page.locator("#turns li:not(.empty)").count() == 0
    assert page.locator("#message").is_hidden()
    with page.expect_request("**/api/ask") as sent:
        ask(page, "How many objects are there?")
    assert (sent.value.post_data_json["texts"], sent.value.post_data_json["images"]) == (
        ["How many objects are there?"],
        [],
    )
    assert page.locator("#turns li:not(.empty)").count() == 2


def test_what_has_the_focus_keeps_it_while_an_answer_comes(
    page: "playwright.Page", url: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    add(page, picture(), picture(12))
    page.wait_for_selector("#thumbs button:nth-child(2)")
    slowly(monkeypatch, 0.02, 40)
    page.fill("#question", "What color is it?")
    page.press("#question", "Enter")
    page.locator("#thumbs button").first.click()
    assert page.locator("#turns").get_attribute("aria-busy") == "true"
    page.wait_for_selector("#turns .cut:has-text('cut off')")
    assert page.locator("#turns").get_attribute("aria-busy") == "false"
    assert page.evaluate("document.activeElement.title") == "picture 1"
    assert page.locator("#thumbs button").first.get_attribute("aria-pressed") == "true"


def test_marks_stand_behind_letters_of_two_units_and_nothing_is_said_so(
    page: "playwright.Page", url: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if url[0] != "twist":
        pytest.skip("one model is enough")
    add(page, picture())
    monkeypatch.setattr("ts_lightning.serve.server.said", lambda *_: "\U0001f600\U0001f600 star [[10,10,40,40]].")
    ask(page, "Where is the star?")
    assert page.locator("#turns mark").inner_text() == "[[10,10,40,40]]"
    monkeypatch.setattr("ts_lightning.serve.server.said", lambda *_: "")
    assert "(no answer)" in ask(page, "And now?", turns=2)


def test_keys_of_an_input_method_neither_ask_nor_remove(page: "playwright.Page", url: tuple[str, str]) -> None:
    add(page, picture())
    drag(page, 0.1, 0.1, 0.4, 0.4)
    page.fill("#question", "What is it?")
    for key in ("Enter", "Escape"):
        event = f"new KeyboardEvent('keydown', {{ key: '{key}', isComposing: true, bubbles: true }})"
        page.evaluate(f"document.getElementById('question').dispatchEvent({event})")
    assert page.locator("#turns li.user").count() == 0
    assert page.locator("#regions .chip").count() == 1


def test_the_packages_of_a_model_can_be_chosen(browser: "playwright.Browser") -> None:
    address, server = serve(TwinExpertVLM(TinyBackbone(), package="counting").eval())
    page = browser.new_page()
    page.goto(address)
    page.select_option("#task", "counting")
    assert page.locator("#task option").all_inner_texts() == ["automatic", "understanding", "counting"]
    assert "counting (forced)" in ask(page, "How many stars are there?")
    page.close()
    server.should_exit = True


def test_the_tool_at_hand_is_one_that_the_model_can_say(browser: "playwright.Browser") -> None:
    address, server = serve(PlainVLM(TinyBackbone(codec="molmo"), train=[]).eval())
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#tools button[data-kind=box]:not(:visible)", state="attached")
    add(page, picture())
    click(page, 0.5, 0.5)
    assert page.locator("#regions .chip").inner_text().startswith("#1 click")
    page.close()
    server.should_exit = True


def test_a_drag_that_the_device_cancels_is_no_box(page: "playwright.Page", url: tuple[str, str]) -> None:
    add(page, picture())
    page.evaluate("document.getElementById('canvas').setPointerCapture = () => {}")  # it has no real pointer
    for kind, x in (("down", 100), ("move", 200), ("cancel", 200), ("move", 300), ("up", 300)):
        x, y = (x + page.locator("#canvas").bounding_box()[side] for side in "xy")
        event = f"new PointerEvent('pointer{kind}', {{clientX: {x}, clientY: {y}}})"
        page.evaluate(f"document.getElementById('canvas').dispatchEvent({event})")
    assert page.locator("#regions .chip").count() == 0


@pytest.mark.parametrize(
    ("question", "sent"),
    [
        ("Where is the star?", "Where is the star? Answer with a box."),
        ("What is in the blue box?", "What is in the blue box? Answer with a box."),
        ("Give the box of the star.", "Give the box of the star."),
    ],
)
def test_a_box_is_asked_for_and_finished(
    page: "playwright.Page", url: tuple[str, str], question: str, sent: str
) -> None:
    add(page, picture())
    page.check("#constrain")
    page.fill("#question", question)
    with page.expect_request("**/api/ask") as request:
        page.click("#box")
    asked = request.value.post_data_json
    assert (asked["texts"], asked["constrain"]) == ([sent], True)
    page.wait_for_selector("#send:not([disabled])")
    assert "(automatic)" in page.locator("#turns .badge").inner_text()


def test_bad_files_and_empty_questions_get_a_message(page: "playwright.Page", url: tuple[str, str]) -> None:
    page.press("#question", "Enter")
    assert "Write a question first" in page.locator("#message").inner_text()
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("#message:has-text('a.png: image: seen 10 bytes')")
    bad = [{"name": name, "mimeType": "image/png", "buffer": b"no"} for name in ("b.png", "c.png")]
    page.locator("#file").set_input_files(bad)
    page.wait_for_selector("#message:has-text('c.png')")
    assert "b.png: image: seen 2 bytes" in page.locator("#message").inner_text()
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    page.locator("#file").set_input_files({"name": "bomb.png", "mimeType": "image/png", "buffer": bomb.getvalue()})
    page.wait_for_selector("#message:has-text('bomb.png: image: seen')")
    shoot(page, f"bad_file_{url[0]}")
    add(page, picture())
    page.evaluate("document.getElementById('question').value = 'long '.repeat(790)")
    page.press("#question", "Enter")
    page.wait_for_selector("#message:has-text('tokens, expected')", timeout=60_000)
    assert "understanding" in ask(page, "How many objects are there?")  # the server lives on


def test_text_of_data_and_model_is_only_text(page: "playwright.Page", url: tuple[str, str]) -> None:
    add(page, picture())
    ask(page, "<img src=x onerror='document.title=\"owned\"'> <image> {region:0} </s>")
    assert page.title() == "ts_lightning"
    assert page.locator("#turns img").count() == 0


def test_a_narrow_window_keeps_everything_in_reach(page: "playwright.Page", url: tuple[str, str]) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    add(page, picture())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    drag(page, 0.2, 0.2, 0.7, 0.7)
    assert page.locator("#regions .chip").count() == 1
    shoot(page, f"narrow_{url[0]}")
