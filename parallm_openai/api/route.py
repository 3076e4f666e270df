"""Runs every route that takes a body: it checks the body first, sets a deadline, and stops if the client leaves."""

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

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def run(request: Request) -> Response:
            timeout: float = request.app.state.shared.settings.request_timeout
            wanted = BodyRequest(request.scope, request.receive)
            # A stream that continues after its route has returned has the same deadline.
            wanted.state.deadline = asyncio.get_running_loop().time() + timeout
            with request.app.state.bodies.share() as share:
                try:
                    async with asyncio.timeout_at(wanted.state.deadline):
                        await _read(wanted, share)
                        return await _unless_gone(wanted, handler(wanted))
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


def body_router(**options: Any) -> APIRouter:
    """A router of routes that take a body."""
    return APIRouter(route_class=BodyRoute, **options)
