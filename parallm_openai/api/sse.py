"""Server-sent events: how their data is written, and streams of them that keep to a deadline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from parallm_openai.settings import ServerSettings

T = TypeVar("T")

Chunk = dict[str, str]
"""One event: its `data`, and perhaps the name of the `event`."""


DONE: Chunk = {"data": "[DONE]"}
# Server-sent events do not end a line at these characters, but some clients do.
LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}

# For the OpenAPI document: the answer of a route that may stream.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or with `stream` its pieces", "content": {"text/event-stream": {}}}
}


def json_chunk(body: dict[str, Any], event: str | None = None) -> Chunk:
    data = {"data": json.dumps(body, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS)}
    return data if event is None else {"event": event, **data}


class EventSource(EventSourceResponse):  # type: ignore[misc]  # sse-starlette has no types
    """A response of chunks, sent within its `owner`: that context is left once the response ends or is cut off.

    While there is nothing to send, a comment keeps the connection open, or the event `ping`.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Chunk],
        settings: ServerSettings,
        owner: AbstractAsyncContextManager[object],
        ping: Chunk | None = None,
    ) -> None:
        super().__init__(
            chunks,
            sep="\n",
            # Our own connections are cut off before; those of other servers are not.
            send_timeout=2 * settings.send_timeout,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            ping_message_factory=None if ping is None else lambda: ServerSentEvent(**ping, sep="\n"),
        )
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._owner:
            await super().__call__(scope, receive, send)


async def until(deadline: float, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same items up to the deadline, by the loop's clock. Then raises TimeoutError, even between two items."""
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                item = await anext(items)
        except StopAsyncIteration:
            return
        yield item
