"""The page's server: one folder of static files, pictures in memory, answers as JSON lines."""

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from ts_lightning.grounding.regions import Region
from ts_lightning.models.pixels import image_size, load_pixels
from ts_lightning.models.vlm import VLM
from ts_lightning.serve.conversation import Conversation, answer, task_by_instruction

STATIC = Path(__file__).parent / "static"
FILES = {"": "page.html", "page.js": "page.js", "regions.js": "regions.js", "page.css": "page.css"}
MAX_BYTES = 20 * 2**20
MAX_SIDE, MAX_PIXELS = 12_000, 40_000_000
MAX_PICTURES = 64
MAX_QUESTION = 4_000
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:"


class Pictures:
    """Uploaded pictures by the hash of their bytes; the oldest are forgotten."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def add(self, data: bytes) -> dict[str, Any]:
        """Check and keep a picture; ValueError in one line for a wrong or huge one."""
        if len(data) > MAX_BYTES:
            raise ValueError(f"image: seen {len(data) / 2**20:.0f} MB, expected at most {MAX_BYTES // 2**20} MB")
        width, height = image_size(data)
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise ValueError(
                f"image: seen {width} x {height} pixels, expected at most {MAX_SIDE} a side and {MAX_PIXELS:,} in all"
            )
        load_pixels(data, 32)  # a cut file has a good header
        name = hashlib.sha256(data).hexdigest()[:24]
        self._kept[name] = data
        self._kept.move_to_end(name)
        while len(self._kept) > MAX_PICTURES:
            self._kept.popitem(last=False)
        return {"id": name, "width": width, "height": height}

    def get(self, name: str) -> bytes:
        if name not in self._kept:
            raise ValueError("image: the server no longer has this picture, add it again")
        return self._kept[name]


def make_app(vlm: VLM, title: str, task_of: Callable[[str], str] = task_by_instruction) -> FastAPI:
    """The web application over one vlm; answers are made one at a time."""
    app, pictures, turn = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), Pictures(), threading.Lock()

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/api/model")
    def model() -> dict[str, Any]:
        codec = vlm.codec
        return {"title": title, "codec": codec.name, "kinds": codec.kinds, "example": codec.space.grid}

    @app.post("/api/image")
    async def image(request: Request) -> Response:
        try:
            data = b""
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BYTES:
                    break
            return JSONResponse(await asyncio.to_thread(pictures.add, data))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    @app.post("/api/ask")
    async def ask(request: Request) -> Response:
        try:
            asked = await request.json()
            conversation, task = _conversation(asked, pictures)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"request: seen a malformed one ({error!r})"
            return JSONResponse({"error": reason}, 400)

        def lines() -> Iterator[str]:
            with turn:
                try:
                    for event in answer(vlm, conversation, task, task_of):
                        yield json.dumps(event) + "\n"
                    yield json.dumps({"done": True}) + "\n"
                except Exception as error:  # whatever it is, the page gets a line and the server lives on
                    yield json.dumps({"error": " ".join(str(error).split()) or type(error).__name__}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.get("/{name:path}")
    def static(name: str) -> Response:
        if name not in FILES:
            return JSONResponse({"error": f"seen /{name}, expected the page"}, 404)
        return FileResponse(STATIC / FILES[name])

    return app


def _conversation(asked: dict[str, Any], pictures: Pictures) -> tuple[Conversation, str]:
    """The request {"images": [id], "regions": [{image, points}], "texts": [...], "task"}, checked."""
    texts = [str(text) for text in asked["texts"]]
    if len(texts) % 2 == 0 or not texts[-1].strip():
        raise ValueError("question: seen nothing, expected a question")
    if len(texts[-1]) > MAX_QUESTION:
        raise ValueError(f"question: seen {len(texts[-1])} characters, expected at most {MAX_QUESTION}")
    regions = []
    for region in asked["regions"]:
        points = tuple((min(max(float(x), 0.0), 1.0), min(max(float(y), 0.0), 1.0)) for x, y in region["points"])
        regions.append((int(region["image"]), Region(points)))
    return Conversation([pictures.get(str(name)) for name in asked["images"]], regions, texts), str(asked["task"])
