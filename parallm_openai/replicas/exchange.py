"""One call on an ASGI app: its messages as an iterator, and its end if nobody wants them any longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Scope

from parallm_openai.replicas.calls import REPLICA_HEADER, Call, Whole
from parallm_openai.text import draws


class Exchange:
    """A call while it is answered. Leaving this context tells the app that the client has gone."""

    def __init__(self, app: ASGIApp, call: Call, replica: str) -> None:
        self.sender = call.sender
        self._app = app
        self._call = call
        self._replica = replica
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._read = False

    async def __aenter__(self) -> Exchange:
        call = self._call
        scope: Scope = {**call.scope, "headers": list(call.scope["headers"]), "state": {}}
        with draws.repeatable(call.key, call.created):
            # The task keeps the context in which it was made.
            self._task: asyncio.Task[None] = asyncio.create_task(self._run(scope))
        self._task.add_done_callback(lambda _: self._messages.put_nowait(None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
        await asyncio.gather(self._task, return_exceptions=True)

    def abandon(self) -> None:
        """End the answer: nobody waits for it any longer."""
        self._gone.set()
        self._task.cancel()

    async def _run(self, scope: Scope) -> None:
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._call.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers[REPLICA_HEADER] = self._replica
            # The ingress says it of every answer.
            del headers["vary"]
        self._messages.put_nowait(message)

    async def messages(self) -> AsyncIterator[list[Message]]:
        """All messages, as many at a time as there are. Raises what the app raises."""
        while True:
            found = [await self._messages.get()]
            while not self._messages.empty():
                found.append(self._messages.get_nowait())
            whole = [each for each in found if each is not None]
            if whole:
                yield whole
            if found[-1] is None:
                if not self._task.cancelled():
                    self._task.result()
                return

    async def whole(self) -> Whole:
        head: Message = {"status": 500, "headers": []}
        body = b""
        async for messages in self.messages():
            for each in messages:
                if each["type"] == "http.response.start":
                    head = each
                else:
                    body += each.get("body", b"")
        return Whole(self._replica, head["status"], list(head["headers"]), body)
