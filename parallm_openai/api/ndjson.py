"""Answers that stream as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

# For the OpenAPI document: the answer of a route that streams unless told not to.
STREAMED_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or its pieces line by line", "content": {"application/x-ndjson": {}}}
}


def json_line(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n"


class LineSource(StreamingResponse):
    """A response of lines, sent within its `owner`: that context is left once the response ends or is cut off."""

    def __init__(self, lines: AsyncIterator[str], owner: AbstractAsyncContextManager[object]) -> None:
        super().__init__(lines, media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._owner:
            await super().__call__(scope, receive, send)
