"""Pure ASGI middleware: `@app.middleware("http")` would hide disconnects from the handlers."""

from __future__ import annotations

import hmac
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai.api.errors import ApiError

OPEN_PATHS = frozenset({"/health"})


class RequestHeaders:
    """Gives each answer an `x-request-id` (the client's own where it sent one) and `openai-processing-ms`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = Headers(scope=scope).get("x-request-id", "")[:200] or f"req_{uuid.uuid4().hex}"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
            await send(message)

        await self.app(scope, receive, with_headers)


class ApiKeys:
    """Asks for one of the keys as a bearer token, except for `/health` and CORS preflights."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and not self._free(scope):
            problem = self._problem(Headers(scope=scope).get("authorization", ""))
            if problem is not None:
                error = ApiError(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    @staticmethod
    def _free(scope: Scope) -> bool:
        return scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS"

    def _problem(self, header: str) -> str | None:
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer" or not given:
            return "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
        # Every key is compared, in constant time: timing tells nothing of any of them.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self.keys]
        return None if any(matches) else "Incorrect API key provided."


class BodyLimit:
    """Refuses a body over `limit` bytes with 413, declared or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"The body is larger than this server's limit of {self.limit} bytes."
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self.limit:
            await ApiError(413, message, code="request_too_large").response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            part = await receive()
            received += len(part.get("body", b""))
            if received > self.limit:
                # FastAPI turns any other exception out of the body into a 400.
                raise HTTPException(413, message)
            return part

        await self.app(scope, counted, send)
