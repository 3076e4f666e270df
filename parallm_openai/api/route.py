"""Runs every route that takes a body: it checks the body first, sets a deadline, and stops if the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from parallm_openai.api import errors
from parallm_openai.api.body import parse
from parallm_openai.api.errors import ApiError
from parallm_openai.api.leniency import HEADER, MAX_PASSES, Ignored
from parallm_openai.settings import ServerSettings

log = logging.getLogger(__name__)

# A larger body is parsed on a thread.
INLINE_BYTES = 64 * 1024
# As many bodies of the largest size may be in memory at the same time.
BODIES_HELD = 16

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ClientGone(Exception):
    """The client has closed its connection, so that nobody waits for an answer."""


class BodyRequest(Request):
    """A request whose JSON has been read and checked already."""

    raw: bytes = b""
    parsed: Any = None

    async def body(self) -> bytes:
        return self.raw

    async def json(self) -> Any:
        return self.parsed


class Bodies:
    """Counts the bytes of all bodies, and refuses more above a limit: many large ones must not fill the memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """The share of one request, which ends with this context."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.bytes


@dataclass
class Share:
    bodies: Bodies
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count bytes that the request has sent. Raises ApiError if all requests together have sent too much."""
        self.bytes += size
        self.bodies.held += size
        if self.bodies.held > self.bodies.limit:
            raise errors.overloaded("The server is busy with other large requests. Please try again.")


class BodyRoute(APIRoute):
    """Reads and checks the body, then runs the route until it answers, its time is up or its client leaves."""

    def read_scope(self, scope: Scope) -> Scope:
        """The scope under which the body is read."""
        return scope

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def run(request: Request) -> Response:
            settings: ServerSettings = request.app.state.shared.settings
            timeout = settings.request_timeout
            wanted = BodyRequest(self.read_scope(request.scope), request.receive)
            wanted.state.ignored = Ignored(strict=settings.strict)
            # A stream that continues after its route has returned has the same deadline.
            wanted.state.deadline = asyncio.get_running_loop().time() + timeout
            with request.app.state.bodies.share() as share:
                try:
                    async with asyncio.timeout_at(wanted.state.deadline):
                        await _read(wanted, share)
                        return await _unless_gone(wanted, _leniently(wanted, handler))
                except TimeoutError as error:
                    raise errors.timed_out(timeout) from error

        return run


async def _read(request: BodyRequest, share: Share) -> None:
    """Read the body, and parse it if its content type is JSON. Raises ApiError."""
    parts: list[bytes] = []
    try:
        async for part in request.stream():
            share.add(len(part))
            parts.append(part)
    except ClientDisconnect as error:
        raise ClientGone from error
    raw = request.raw = b"".join(parts)
    if raw and _is_json(request.headers.get("content-type")):
        request.parsed = await asyncio.to_thread(parse, raw) if len(raw) > INLINE_BYTES else parse(raw)


def _is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or ""
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


async def _leniently(request: BodyRequest, handler: Handler) -> Response:
    """Answer without the fields that no schema knows. A header of the answer, or of its error, names them."""
    ignored: Ignored = request.state.ignored
    try:
        answer = await _without_unknown(request, handler)
    except ApiError as error:
        error.headers |= _told(request, ignored)
        raise
    answer.headers.update(_told(request, ignored))
    return answer


async def _without_unknown(request: BodyRequest, handler: Handler) -> Response:
    ignored: Ignored = request.state.ignored
    for _ in range(MAX_PASSES):
        try:
            return await handler(request)
        except RequestValidationError as error:
            found = error.errors()
            if not ignored.add_unknown(request.parsed, found):
                if ignored:
                    raise errors.from_validation(found) from error
                raise
    return await handler(request)


def _told(request: BodyRequest, ignored: Ignored) -> dict[str, str]:
    """The header that names what is ignored, if anything is; the log says so too."""
    if not ignored:
        return {}
    names = ignored.header()
    log.info("%s ignores %s", request.url.path, names)
    return {HEADER: names}


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Wait for `work` as long as the client stays: Starlette does not cancel a handler whose client has left."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class JsonRoute(BodyRoute):
    """Takes every body for JSON, whatever its type is said to be: `curl -d` alone says that it is a form."""

    def read_scope(self, scope: Scope) -> Scope:
        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        return {**scope, "headers": [*others, (b"content-type", b"application/json")]}


def body_router(*, any_content_type: bool = False, **options: Any) -> APIRouter:
    """A router of routes that take a body of JSON, perhaps under any content type."""
    return APIRouter(route_class=JsonRoute if any_content_type else BodyRoute, **options)
