"""One answer on its way to a client, whichever replicas it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from parallm_openai.api.error_shapes import ANTHROPIC_PATH, shaped
from parallm_openai.api.errors import ApiError
from parallm_openai.replicas.calls import REPLICA_HEADER, ReplicaLost
from parallm_openai.replicas.replay import Diverged, Frames, Kind, Replay

STREAMS: dict[str, Kind] = {"text/event-stream": "events", "application/x-ndjson": "lines"}
RESPONSES_PATH = "/v1/responses"
UNAVAILABLE = 503


class Delivery:
    """Sends an answer on: a stream frame by frame, any other once it is whole.

    `begin` comes before each attempt. An attempt after the first leaves out what the client has already.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._sent: list[bytes] = []
        self._stream: Kind | None = None
        # The replica that answers, and the id of the response if it makes one.
        self.replica = ""
        self.response_id = ""
        # Whether the client has the head of the answer, and whether it has all of it.
        self.started = False
        self.ended = False

    def begin(self) -> None:
        self._head: Message | None = None
        self._kind: Kind | None = None
        self._body: list[bytes] = []
        self._replay = Replay(self._sent)
        self.ended = False

    async def take(self, messages: Sequence[Message]) -> None:
        """Send what these messages bring. Raises ReplicaLost, and Diverged."""
        frames: list[bytes] = []
        for message in messages:
            if message["type"] == "http.response.start":
                self._take_head(message)
            elif message["type"] == "http.response.body":
                self.ended = not message.get("more_body", False)
                frames += self._frames_of(message.get("body", b""))
        if self._kind is None:
            if self.ended:
                await self._send_on(b"".join(self._body))
            return
        if self.ended and not self._replay.complete:
            raise Diverged
        if frames or self.ended:
            self._sent += frames
            await self._send_on(b"".join(frames))

    def _take_head(self, message: Message) -> None:
        headers = Headers(raw=message["headers"])
        if message["status"] == UNAVAILABLE or (self.started and message["status"] != 200):
            # It is shutting down, or too busy to go on with a stream.
            raise ReplicaLost(headers.get(REPLICA_HEADER, ""))
        self._head = message
        self.replica = headers.get(REPLICA_HEADER, "")
        self._kind = (
            STREAMS.get(headers.get("content-type", "").partition(";")[0]) if message["status"] == 200 else None
        )
        if self._kind is not None:
            self._splitter = Frames(self._kind)

    def _frames_of(self, data: bytes) -> list[bytes]:
        if self._kind is None:
            self._body.append(data)
            return []
        return [out for frame in self._splitter.feed(data) for out in self._replay.feed(frame)]

    async def _send_on(self, data: bytes) -> None:
        if not self.started:
            assert self._head is not None
            self.started = True
            self._stream = self._kind
            self.response_id = _response_id(data) if self._scope["path"] == RESPONSES_PATH else ""
            await self._send(self._head)
        await self._send({"type": "http.response.body", "body": data, "more_body": not self.ended})

    async def fail(self, error: ApiError) -> None:
        """End the answer with the error: as a status if nothing has been sent, else as the last of the stream."""
        if self.ended and self.started and self._replay.complete:
            return
        if not self.started:
            self.started = self.ended = True
            await error.response(self._scope)(self._scope, _nothing, self._send)
            return
        self.ended = True
        await self._send({"type": "http.response.body", "body": self._last_frames(error), "more_body": False})

    def _last_frames(self, error: ApiError) -> bytes:
        body = json.dumps(shaped(error, self._scope), separators=(",", ":"))
        path: str = self._scope["path"]
        if self._stream == "lines":
            return f"{body}\n".encode()
        if path.startswith(ANTHROPIC_PATH):
            return f"event: error\ndata: {body}\n\n".encode()
        if path.startswith(RESPONSES_PATH):
            said = {"type": "error", "sequence_number": len(self._sent), "code": error.code, "message": error.message}
            return f"event: error\ndata: {json.dumps({**said, 'param': None})}\n\n".encode()
        return f"data: {body}\n\ndata: [DONE]\n\n".encode()


def _response_id(beginning: bytes) -> str:
    """The id of a response whose answer begins so."""
    found = re.search(rb'"id": ?"(resp_[0-9a-f]+)"', beginning)
    return "" if found is None else found[1].decode()


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
