"""How every route that takes a body runs: the body checked first, within a deadline, and for a client that is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from parallm_openai.api import errors
from parallm_openai.api.body import parse

# A larger body is parsed on a thread.
INLINE_BYTES = 64 * 1024


class ClientGone(Exception):
    """The client has closed its connection; there is nobody to answer."""


class BodyRequest(Request):
    """A request whose JSON has been read and checked already."""

    raw: bytes = b""
    parsed: Any = None

    async def body(self) -> bytes:
        return self.raw

    async def json(self) -> Any:
        return self.parsed


class Bodies:
    """The bytes of all bodies that are being worked on, within a limit: many large ones must not fill the memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One request's share, given back at the end."""
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
        """Count what the request has sent. Raises ApiError if all together is too much."""
        self.bytes += size
        self.bodies.held += size
        if self.bodies.held > self.bodies.limit:
            raise errors.overloaded("The server is busy with other large requests. Please try again.")


class BodyRoute(APIRoute):
    """Reads and checks the body, then runs the route until its answer, its deadline or its client's leaving."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def run(request: Request) -> Response:
            timeout: float = request.app.state.server.settings.request_timeout
            wanted = BodyRequest(request.scope, request.receive)
            with request.app.state.bodies.share() as share:
                try:
                    async with asyncio.timeout(timeout):
                        await _read(wanted, share)
                        return await _unless_gone(wanted, handler(wanted))
                except TimeoutError as error:
                    raise errors.timed_out(timeout) from error

        return run


async def _read(request: BodyRequest, share: Share) -> None:
    """Read the body, and parse it if it calls itself JSON. Raises ApiError."""
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


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Wait for `work` while the client is there: Starlette does not cancel a handler whose client has left."""
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


def body_router(**options: Any) -> APIRouter:
    """A router of routes that take a body."""
    return APIRouter(route_class=BodyRoute, **options)
