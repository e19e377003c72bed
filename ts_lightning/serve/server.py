"""The page's server: one folder of static files, pictures in memory, answers as JSON lines."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ts_lightning.models.vlm import VLM
from ts_lightning.serve.asked import Asked, read_asked
from ts_lightning.serve.conversation import Conversation, answer, task_by_instruction
from ts_lightning.serve.guard import Guard, Refused, read_body
from ts_lightning.serve.line import Event, Line, LineFull, Question, answer_one_by_one
from ts_lightning.serve.pictures import MAX_BYTES, Pictures, check_picture

STATIC = Path(__file__).parent / "static"
FILES = {"": "page.html", "page.js": "page.js", "regions.js": "regions.js", "page.css": "page.css"}
MAX_ASKED_BYTES = 512 * 2**10
UPLOADS, WAITING_UPLOADS = 3, 64  # received at once; the others' bytes stay with their senders


def make_app(
    vlm: VLM, title: str, task_of: Callable[[str], str] = task_by_instruction, hosts: Collection[str] = ()
) -> Starlette:
    """The web application over one vlm, for visitors who call it 127.0.0.1, localhost or one of `hosts`."""
    pictures, line, uploads, waiting = Pictures(), Line(), asyncio.Semaphore(UPLOADS), 0

    def events(asked: Asked, visitor: str) -> Generator[Event]:
        images = [pictures.get(visitor, name) for name in asked.images]
        yield from answer(vlm, Conversation(images, asked.regions, asked.texts), asked.task, task_of)

    async def model(request: Request) -> Response:
        codec = vlm.codec
        return JSONResponse(
            {"title": title, "codec": codec.name, "kinds": [*codec.kinds], "example": codec.space.grid}
            | {"max_bytes": MAX_BYTES}
        )

    async def image(request: Request) -> Response:
        nonlocal waiting
        if waiting >= WAITING_UPLOADS + UPLOADS:
            raise Refused(503, "the server receives too many pictures at the moment, try again")
        waiting += 1
        try:
            async with uploads:
                data = await read_body(request, MAX_BYTES)
                width, height = await line.in_thread(check_picture, data)
                name = pictures.add(_visitor(request), data)
        finally:
            waiting -= 1
        return JSONResponse({"id": name, "width": width, "height": height})

    async def ask(request: Request) -> Response:
        asked, visitor = read_asked(await read_body(request, MAX_ASKED_BYTES)), _visitor(request)
        images = [pictures.get(visitor, name) for name in asked.images]  # here for its errors: a question in the
        Conversation(images, asked.regions, asked.texts)  # line holds names alone, so that bytes are counted once
        question = Question(lambda: events(asked, visitor))
        try:
            line.enter(question)
        except LineFull:
            raise Refused(503, f"{line.places} questions wait already, try again") from None
        return Answer(line, question)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return JSONResponse({"error": f"seen /{name[:80]}, expected the page"}, 404)
        return FileResponse(STATIC / FILES[name])

    @asynccontextmanager
    async def working(app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(answer_one_by_one(line))
        yield
        worker.cancel()
        line.close()

    routes = [
        Route("/api/model", model),
        Route("/api/image", image, methods=["POST"]),
        Route("/api/ask", ask, methods=["POST"]),
        Route("/{name:path}", static),
    ]
    handlers: dict[Any, Any] = {ValueError: _bad, Refused: _refused, ClientDisconnect: _gone}
    guard = Middleware(Guard, hosts=hosts)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=working)


class Answer(StreamingResponse):
    """The events of a question as JSON lines; when the client goes, so does the question."""

    def __init__(self, line: Line, question: Question) -> None:
        super().__init__(self._lines(question), media_type="application/x-ndjson")
        self._leave = lambda: line.leave(question)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()

    @staticmethod
    async def _lines(question: Question) -> AsyncIterator[str]:
        while (event := await question.events.get()) is not None:
            yield json.dumps(event) + "\n"


def _visitor(request: Request) -> str:
    return request.client.host if request.client else ""


async def _bad(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, 400)


async def _refused(request: Request, error: Refused) -> Response:
    return error.response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it
