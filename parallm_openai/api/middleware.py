"""Pure ASGI middleware: `@app.middleware("http")` would hide disconnects from the handlers."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai.api import errors, page
from parallm_openai.api.error_shapes import is_anthropic
from parallm_openai.api.errors import ApiError
from parallm_openai.api.request_log import asked

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/", "/docs", "/openapi.json"})
# The static files of `/` and `/docs`, which ask for a key themselves.
OPEN_FOLDER = f"{page.PREFIX}/"
# Routes that change the server for everybody.
ADMIN_PATHS = frozenset({"/v1/configure"})

# Each answer of this server has it.
PROCESSING = "openai-processing-ms"
# Bytes a second. A body that arrives faster may take longer than the time-out.
SLOWEST_BODY = 8192


class RequestHeaders:
    """Gives each answer an `x-request-id` (the client's own if it sent one) and `openai-processing-ms`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _own_id(scope) or f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic(scope):
                    headers["request-id"] = request_id
                headers[PROCESSING] = str(round((time.perf_counter() - began) * 1000))
            await send(message)

        await self.app(scope, receive, with_headers)


def _own_id(scope: Scope) -> str:
    """The client's own id of the request, if it has sent one that a log can hold."""
    own = Headers(scope=scope).get("x-request-id", "")[:200]
    return own if re.fullmatch(r"[\x21-\x7e]+", own) else ""


class Keys:
    """Asks for an API key or an admin key, in `Authorization: Bearer` or `x-api-key`.

    `/health`, the page, the documentation and CORS preflights need no key. If any key is set, routes that change the
    server for everybody need an admin key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], admin_keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]
        self.admin_keys = [key.encode() for key in admin_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]) and scope["method"] != "OPTIONS":
            problem = self._problem(Headers(scope=scope), admin=scope["path"] in ADMIN_PATHS)
            if problem is not None:
                await problem.response(scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _problem(self, headers: Headers, *, admin: bool) -> ApiError | None:
        if not self.keys and not (admin and self.admin_keys):
            return None
        given = given_keys(headers)
        if _matches(given, self.admin_keys):
            return None
        if _matches(given, self.keys):
            return _admin_needed(bool(self.admin_keys)) if admin else None
        if not given:
            message = "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
        else:
            message = "Incorrect API key provided."
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def given_keys(headers: Headers) -> list[bytes]:
    """The keys that a request carries."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    tokens = [token if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    return [token.strip().encode() for token in tokens if token.strip()]


def _matches(given: Sequence[bytes], keys: Sequence[bytes]) -> bool:
    # Every key is compared in constant time, so that timing reveals nothing about any of them.
    found = [hmac.compare_digest(each, key) for each in given for key in keys]
    return any(found)


def _admin_needed(settable: bool) -> ApiError:
    how = "" if settable else " Start the server with --admin-key to have one."
    return ApiError(403, f"This route needs an admin key.{how}", code="admin_key_required")


class Body:
    """Refuses a body over `limit` bytes with 413, declared or not, and one that comes too slowly with 408."""

    def __init__(self, app: ASGIApp, limit: int, timeout: float) -> None:
        self.app = app
        self.limit = limit
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = f"The body is larger than this server's limit of {self.limit} bytes."
        if self._declared(scope) > self.limit:
            await ApiError(413, too_large, code="request_too_large").response(scope)(scope, receive, send)
            return
        began = asyncio.get_running_loop().time()
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            # FastAPI turns every exception that reading the body raises into a 400, except HTTPException.
            try:
                async with asyncio.timeout_at(began + self.timeout + received / SLOWEST_BODY):
                    part = await receive()
            except TimeoutError:
                message = f"The body did not arrive within {self.timeout:g} seconds."
                raise HTTPException(408, message, {"Connection": "close"}) from None
            received += len(part.get("body", b""))
            complete = not part.get("more_body", False)
            if received > self.limit:
                raise HTTPException(413, too_large)
            return part

        await self.app(scope, bounded, send)

    @staticmethod
    def _declared(scope: Scope) -> float:
        length = Headers(scope=scope).get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return 0
        # A number with too many digits to read is too large in any case.
        return int(length) if len(length) < 20 else float("inf")


class Failures:
    """Answers exceptions that no handler has caught with a 500.

    Starlette has a middleware for that, but as the outermost one: its answers have no CORS headers, so that pages
    cannot read them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except SendTimeoutError:
            log.info("a client left its stream unread and was cut off")
        except Exception:
            if started:
                raise
            log.exception("%s %s failed", *asked(scope))
            await errors.internal().response(scope)(scope, receive, send)
