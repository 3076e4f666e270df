"""A stream with nothing to say keeps its connection open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest
from starlette.types import Message

from parallm_openai.api.sse import Chunk, EventSource, json_chunk
from parallm_openai.settings import ServerSettings

PING = json_chunk({"type": "ping"}, "ping")


async def sent(ping: Chunk | None) -> str:
    """What a stream sends whose first chunk comes only after something else has been sent."""
    kept_open = asyncio.Event()
    parts: list[bytes] = []

    async def chunks() -> AsyncIterator[Chunk]:
        await kept_open.wait()
        yield json_chunk({"text": "Hi"})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            parts.append(message["body"])
            kept_open.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    source: Any = EventSource(chunks(), ServerSettings(), nullcontext(), ping)
    await source({"type": "http", "method": "POST"}, receive, send)
    return b"".join(parts).decode()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventSource, "DEFAULT_PING_INTERVAL", 0.05)


async def test_a_comment_is_sent_while_a_prompt_is_read() -> None:
    first, *_, last = (await sent(None)).removesuffix("\n\n").split("\n\n")
    assert first.startswith(": ping")
    assert last == 'data: {"text":"Hi"}'


async def test_anthropics_clients_get_an_event_instead() -> None:
    first, *_, last = (await sent(PING)).removesuffix("\n\n").split("\n\n")
    assert first == 'event: ping\ndata: {"type":"ping"}'
    assert last == 'data: {"text":"Hi"}'
