"""Who may talk to the page, how much, and how slowly."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ts_lightning.serve.openai import error_of

LOCAL = ("127.0.0.1", "localhost", "::1")
PROTOCOL = "/v1/"  # OpenAI's: paths below it answer with errors in its shape
JSON = "application/json"
BODY_TYPES = {"/api/ask": JSON, "/api/image": "application/octet-stream", "/v1/chat/completions": JSON}  # by no form
HEADERS_S, PAUSE_S, BODY_S = 10, 10, 60
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that ends with a status, a line, and the end of its connection."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def response(self, path: str) -> JSONResponse:
        return refusal(path, self.status, str(self), {"Connection": "close"})


def refusal(path: str, status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as the page, or a client of OpenAI's protocol, reads it."""
    return JSONResponse(error_of(status, line) if path.startswith(PROTOCOL) else {"error": line}, status, headers)


class Guard:
    """Refuses requests that another page or another name for this machine (DNS rebinding) may have sent."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self.app, self.hosts = app, {*LOCAL, *map(str.lower, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE)
            await send(message)

        try:
            self.check(Headers(scope=scope), scope["method"], scope["path"])
        except Refused as refused:
            return await refused.response(scope["path"])(scope, receive, send_safe)
        return await self.app(scope, receive, send_safe)

    def check(self, headers: Headers, method: str, path: str) -> None:
        """Refused for a foreign Host or Origin, and for a body of another type than the page sends."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name(host) not in self.hosts:
            raise Refused(403, f"Host: seen {host[:80]!r}, expected one of {', '.join(sorted(self.hosts))}")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise Refused(403, f"Origin: seen {origin[:80]!r}, expected {host[:80]!r}")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != BODY_TYPES.get(path, kind):
            raise Refused(415, f"Content-Type: seen {kind[:80]!r}, expected {BODY_TYPES[path]}")


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def read_body(request: Request, most: int) -> bytes:
    """The body, counted while it comes; Refused above `most` bytes, and where it comes too slowly."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise Refused(413, f"body: seen {int(declared) / 2**20:.1f} MB, expected at most {most / 2**20:g} MB")
    body, loop = bytearray(), asyncio.get_running_loop()
    end = loop.time() + BODY_S
    try:
        async with asyncio.timeout(PAUSE_S) as limit:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise Refused(413, f"body: seen more than {most / 2**20:g} MB, expected at most that")
                limit.reschedule(min(end, loop.time() + PAUSE_S))
    except TimeoutError:
        raise Refused(408, f"body: seen {len(body)} bytes and then nothing in time, expected all of it") from None
    return bytes(body)


class TimedProtocol(H11Protocol):
    """HTTP whose request line and headers have to come within `HEADERS_S`; uvicorn itself waits for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()  # part of a request, or what is left of a refused body
        else:
            self._stop()

    def send_400_response(self, msg: str) -> None:
        """A body that is no HTTP, behind good headers: the application is told that nobody listens any more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        with suppress(LocalProtocolError):  # an answer has begun
            super().send_400_response(msg)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self._close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self.transport.close()


def run(app: Any, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, which leave answers two seconds."""
    import uvicorn

    uvicorn.run(
        app,
        host=host,
        port=port,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_level="error",  # a warning for each malformed request would fill the log
        limit_concurrency=800,  # below the usual limit of 1,024 open files
        timeout_graceful_shutdown=2,
        server_header=False,
    )
