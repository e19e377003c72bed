"""The server: the page with its pictures, OpenAI's protocol, and metrics, before one line and one running batch."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.models.continuous import FAULT, ROWS, Batch
from ts_lightning.models.lora import LoRAVLM
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.vllm_server import VLLMServer
from ts_lightning.serve.asked import read_asked
from ts_lightning.serve.conversation import Conversation, begin, found_boxes, said, task_by_instruction
from ts_lightning.serve.guard import PROTOCOL, Guard, Refused, read_body, refusal
from ts_lightning.serve.line import AWAY, Begun, Line, LineFull, Question, answer_together
from ts_lightning.serve.metrics import Counted, Metrics
from ts_lightning.serve.openai import Chat, Reply, UnknownModel, error_of, models_of, read_chat
from ts_lightning.serve.pictures import MAX_BYTES, Picture, Pictures, check_picture, check_shown
from ts_lightning.serve.vllm import VLLMBatch

STATIC = Path(__file__).parent / "static"
FILES = {"": "page.html", "page.js": "page.js", "regions.js": "regions.js", "page.css": "page.css"}
MAX_ASKED_BYTES = 512 * 2**10
MAX_CHAT_BYTES = 32 * 2**20  # a picture of MAX_BYTES as base64, and some
BASE = "base"
UPLOADS, WAITING_UPLOADS = 3, 64  # received at once; the others' bytes stay with their senders


def make_app(
    vlm: VLM,
    title: str,
    task_of: Callable[[str], str] = task_by_instruction,
    hosts: Collection[str] = (),
    rows: int = ROWS,
    server: VLLMServer | None = None,
) -> Starlette:
    """The web application over one vlm, for visitors who call it 127.0.0.1, localhost or one of `hosts`.

    rows: answers that are written together. server: the vLLM server that writes them, in place of our own loop.
    """
    pictures, metrics, uploads, waiting = Pictures(), Metrics(), asyncio.Semaphore(UPLOADS), 0
    models, thread = served(vlm), ThreadPoolExecutor(1, "answers")
    own: Batch | VLLMBatch = Batch(vlm, rows) if server is None else VLLMBatch(vlm, server, rows)
    batches = {"": own}
    if isinstance(vlm, LoRAVLM) and server is not None:
        del models[BASE]  # an engine's answers to an adapter's rows are the adapter's
    elif isinstance(vlm, LoRAVLM):
        batches[BASE] = Batch(vlm, rows, vlm.without_adapter)
    lines = {name: Line(thread=thread) for name in batches}

    def enter(question: Question, name: str = "") -> Line:
        line = lines[name if name in lines else ""]
        try:
            line.enter(question)
        except LineFull:
            raise Refused(503, f"{len(line)} questions wait already, try again") from None
        return line

    async def received(request: Request, most: int) -> bytes:
        """A large body, when it is its turn."""
        nonlocal waiting
        if waiting >= WAITING_UPLOADS + UPLOADS:
            raise Refused(503, "the server receives too many pictures at the moment, try again")
        waiting += 1
        try:
            async with uploads:
                return await read_body(request, most)
        finally:
            waiting -= 1

    async def model(request: Request) -> Response:
        codec = vlm.codec
        return JSONResponse(
            {"title": title, "codec": codec.name, "kinds": [*codec.kinds], "example": codec.space.grid}
            | {"max_bytes": MAX_BYTES, "models": [*models], "skills": vlm.encoder.skills}
        )

    async def image(request: Request) -> Response:
        data = await received(request, MAX_BYTES)
        width, height = await lines[""].in_thread(check_shown, data)
        name = pictures.add(_visitor(request), Picture(data, (width, height)))
        return JSONResponse({"id": name, "width": width, "height": height})

    async def ask(request: Request) -> Response:
        body, visitor = await read_body(request, MAX_ASKED_BYTES), _visitor(request)
        asked = read_asked(body, ("auto", UNDERSTANDING, *vlm.encoder.skills))

        def talk() -> Conversation:
            images = [pictures.get(visitor, name) for name in asked.images]
            sizes = [image.size for image in images]
            return Conversation([image.data for image in images], asked.regions, asked.texts, sizes)

        sizes = talk().sizes  # its errors come now; a question in the line holds names alone: bytes are counted once

        def prepare() -> Begun:
            return begin(vlm, talk(), asked.task, task_of, constrain=asked.constrain)

        question = Question(prepare)
        return Answer(enter(question), question, page_events(vlm, question, sizes), "application/x-ndjson")

    async def chat(request: Request) -> Response:
        declared = request.headers.get("content-length", "")
        small = declared.isdecimal() and int(declared) <= MAX_ASKED_BYTES
        # no name for the body: it would be kept until the answer has ended
        asked = read_chat(
            await (read_body(request, MAX_ASKED_BYTES) if small else received(request, MAX_CHAT_BYTES)), models
        )
        sizes: list[tuple[int, int]] = []

        def prepare() -> Begun:
            sizes.extend(map(check_picture, asked.images))
            talk = Conversation(asked.images, (), asked.texts, sizes)
            how = {"sampler": asked.sampler, "top": asked.top}
            begun = begin(vlm, talk, models[asked.model], task_of, asked.max_tokens, asked.constrain, **how)
            asked.images.clear()  # the model has its own of them
            return begun

        question = Question(prepare, sum(map(len, asked.images)))
        line = enter(question, asked.model)
        gone = asyncio.create_task(_when_gone(request, line, question))
        try:
            while not question.ended and not (asked.stream and question.begun):
                await question.news()
        finally:
            gone.cancel()
        if question.begun is None or (question.error and not asked.stream):
            return JSONResponse(error_of(status := _status(question), question.error), status)
        reply = Reply(vlm, asked.model, sizes, question.begun)
        if asked.stream:
            return Answer(line, question, chat_events(reply, question, asked), "text/event-stream")
        return JSONResponse(reply.whole())

    async def list_models(request: Request) -> Response:
        return JSONResponse(models_of(models))

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        found = [one for one in models_of(models)["data"] if one["id"] == name]
        return JSONResponse(found[0] if found else error_of(404, f"model: seen {name[:80]!r}"), 200 if found else 404)

    async def count(request: Request) -> Response:
        running = sum(len(batch.active) for batch in batches.values())
        text = metrics.text(sum(map(len, lines.values())), running)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(STATIC / FILES[name]) if name in FILES else await _nothing(request)

    @asynccontextmanager
    async def working(app: Starlette) -> AsyncIterator[None]:
        workers = [asyncio.create_task(answer_together(lines[name], batches[name], metrics.done)) for name in lines]
        yield
        for worker in workers:
            worker.cancel()
        thread.shutdown(wait=False, cancel_futures=True)

    routes = [
        Route("/api/model", model),
        Route("/api/image", image, methods=["POST"]),
        Route("/api/ask", ask, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", one_model),
        Route(f"{PROTOCOL}{{name:path}}", _nothing, methods=["GET", "POST", "DELETE"]),
        Route("/metrics", count),
        Route("/{name:path}", static),
    ]
    handlers: dict[Any, Any] = {ValueError: _bad, Refused: _refused, ClientDisconnect: _gone, HTTPException: _wrong}
    counted = Middleware(Counted, metrics=metrics, paths=["/", *(route.path for route in routes[:-1])])
    middleware = [counted, Middleware(Guard, hosts=hosts)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=working)


def served(vlm: VLM) -> dict[str, str]:
    """The names of `/v1/models` and the task of each: the base, and its packages or adapter; "auto" is the router's."""
    if isinstance(vlm, LoRAVLM):
        return {"adapter": "auto", BASE: "auto"}
    if not vlm.encoder.skills:
        return {BASE: "auto"}
    return {"auto": "auto", BASE: UNDERSTANDING, **{skill: skill for skill in vlm.encoder.skills}}


async def page_events(vlm: VLM, question: Question, sizes: Sequence[tuple[int, int]]) -> AsyncIterator[str]:
    """The answer for the page as JSON lines.

    {"task", "automatic"} first, then {"text", "boxes"} (all of the text so far), and at the end {"done", "cut"} (cut:
    it could have no more tokens) or {"error"}.
    """
    told, ended = -1, False
    while not ended:
        await question.news()
        begun, ended = question.begun, question.ended
        if begun is not None and told < 0:
            told = 0
            yield json.dumps({"task": begun.task, "automatic": begun.automatic}) + "\n"
        if begun is not None and (written := len(begun.writing.tokens)) > told:
            told, text = written, said(vlm, begun.writing.tokens[:written])
            yield json.dumps({"text": text, "boxes": found_boxes(vlm, text, sizes)}) + "\n"
    cut = question.begun is not None and question.begun.writing.ended == "length"
    yield json.dumps({"error": question.error} if question.error else {"done": True, "cut": cut}) + "\n"


async def chat_events(reply: Reply, question: Question, asked: Chat) -> AsyncIterator[str]:
    """The answer for OpenAI's protocol as server-sent events."""
    while True:
        ended = question.ended
        if ended and question.error:
            yield f"data: {json.dumps(error_of(_status(question), question.error))}\n\n"
            return
        for chunk in reply.chunks(ended, asked.usage):
            yield f"data: {json.dumps(chunk)}\n\n"
        if ended:
            yield "data: [DONE]\n\n"
            return
        await question.news()


class Answer(StreamingResponse):
    """The events of a question; when the client goes, so does the question."""

    def __init__(self, line: Line, question: Question, events: AsyncIterator[str], media_type: str) -> None:
        super().__init__(events, media_type=media_type)
        self._leave = lambda: line.leave(question)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _when_gone(request: Request, line: Line, question: Question) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    line.leave(question)


def _visitor(request: Request) -> str:
    return request.client.host if request.client else ""


def _status(question: Question) -> int:
    return {AWAY: 503, FAULT: 500}.get(question.error.partition(" (")[0], 400)


async def _bad(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, UnknownModel) else 400
    return refusal(request.url.path, status, " ".join(str(error).split()))


async def _nothing(request: Request) -> Response:
    path = request.url.path
    return refusal(path, 404, f"seen {request.method} {path[:80]}, expected a route of this server")


async def _wrong(request: Request, error: HTTPException) -> Response:
    line = f"seen {request.method} {request.url.path[:80]}, expected another method"
    return refusal(request.url.path, error.status_code, line, dict(error.headers or {}))


async def _refused(request: Request, error: Refused) -> Response:
    return error.response(request.url.path)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it
