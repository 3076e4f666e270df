"""What stands before Ray Serve's proxy, so that clients meet one server whatever Ray does behind it.

Ray's proxy loads `middlewares` if its variable `VARIABLE` is `IMPORT_PATH`. Nothing here knows Ray otherwise.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http import auto

from parallm_openai.api import errors
from parallm_openai.api.connections import Connection
from parallm_openai.api.middleware import PROCESSING, RequestHeaders
from parallm_openai.api.request_log import asked
from parallm_openai.replicas.delivery import kind_of, last_frames
from parallm_openai.replicas.replay import ENDS, Kind
from parallm_openai.settings import ServerSettings

log = logging.getLogger(__name__)

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT_PATH = f"{__name__}.middlewares"
# What Ray's proxy itself answers, for monitors of the cluster.
RAYS_PATHS = "/-/"
# With these, a client could have Ray's proxy cut its request off, or go on with it when nobody waits any longer; or
# choose a replica. Hyphens and underscores are the same to Ray.
RAYS_HEADERS = frozenset(
    ("x_request_timeout_seconds", "x_request_disconnect_disabled", "x_session_id", "serve_multiplexed_model_id")
)
RAYS_PREFIX = "x_serve_"
# Of the limits that connections have, none can be set.
LIMITS = ServerSettings()
LOOK_SECONDS = 1.0
NOT_READY = "The server is starting or shutting down. Please try again."
BROKEN_OFF = "The answer broke off because a part of the server has ended. Please try again."


def middlewares() -> list[Middleware]:
    """What Ray's proxy is to run before its own, the outermost last; it calls this before it listens."""
    # Ray leaves the choice to uvicorn, which would take headers of any length, and wait for them for any time.
    auto.AutoHTTPProtocol = Limited
    return [Middleware(Front), Middleware(RequestHeaders)]


class Limited(Connection):
    """A connection that sees by itself to it that its client is not too slow."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()

    def _look(self) -> None:
        self.end_if_late(LIMITS)
        self._next = self.loop.call_later(LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next.cancel()
        super().connection_lost(exc)


class Front:
    """Takes Ray's own headers from requests, and gives what Ray answers, or leaves unanswered, the surface's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(errors.no_websockets().response())
            return
        if scope["type"] != "http" or scope["path"].startswith(RAYS_PATHS):
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self._app({**scope, "headers": _forwarded(scope)}, receive, answer.send)
        except Exception:
            log.exception("%s %s failed in Ray Serve's proxy", *asked(scope))
        await answer.end()


class _Answer:
    """An answer on its way through: it is the ingress's, or else an error that clients try again on."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._kind: Kind | None = None
        self._frames = 0
        self._started = False
        self._ended = False

    async def send(self, message: Message) -> None:
        if self._ended:
            return
        if message["type"] == "http.response.start":
            if PROCESSING not in Headers(raw=message["headers"]):
                # Ray has no ingress for it: it starts, ends, or is lost.
                await self._refuse()
                return
            self._started, self._kind = True, kind_of(message)
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
            if self._kind is not None:
                self._frames += message.get("body", b"").count(ENDS[self._kind])
        await self._send(message)

    async def end(self) -> None:
        """Finish what has been left unfinished. A plain answer cannot be: its connection breaks."""
        if not self._started and not self._ended:
            await self._refuse()
        elif self._kind is not None and not self._ended:
            self._ended = True
            last = last_frames(errors.unavailable(BROKEN_OFF), self._scope, self._kind, self._frames)
            await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def _refuse(self) -> None:
        self._ended = True
        await errors.unavailable(NOT_READY).response(self._scope)(self._scope, _nothing, self._send)


def _forwarded(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers without Ray's own, and with the id that the answer will have."""
    kept = [(name, value) for name, value in scope["headers"] if not _is_rays(name)]
    return [*kept, (b"x-request-id", scope["state"]["request_id"].encode())]


def _is_rays(name: bytes) -> bool:
    plain = name.decode("latin-1").lower().replace("-", "_")
    return plain in RAYS_HEADERS or plain.startswith(RAYS_PREFIX) or plain == "x_request_id" or not name.isascii()


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
