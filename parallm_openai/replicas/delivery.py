"""One answer on its way to a client, whichever replicas it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from parallm_openai.api.error_shapes import ANTHROPIC_PATH, shaped
from parallm_openai.api.errors import ApiError
from parallm_openai.replicas.calls import REPLICA_HEADER, ReplicaLost, TooManyWaiting
from parallm_openai.replicas.replay import ENDS, Diverged, Frames, Kind, Replay

STREAMS: dict[str, Kind] = {"text/event-stream": "events", "application/x-ndjson": "lines"}
RESPONSES_PATH = "/v1/responses"
BUSY, UNAVAILABLE = 429, 503


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

    def begin(self, *, again: bool = False) -> None:
        """Expect an answer. `again` says that a replica has had the request before."""
        self._again = again
        self.replica = ""
        self._head: Message | None = None
        self._kind: Kind | None = None
        self._body: list[bytes] = []
        self._replay = Replay(self._sent)
        self.ended = False

    async def take(self, messages: Sequence[Message]) -> None:
        """Send what these messages bring. Raises ReplicaLost, TooManyWaiting and Diverged."""
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
        if self._again and message["status"] == BUSY:
            raise TooManyWaiting
        if message["status"] == UNAVAILABLE or (self.started and message["status"] != 200):
            # It is shutting down, or cannot go on with a stream.
            raise ReplicaLost(headers.get(REPLICA_HEADER, ""))
        self._head = message
        self.replica = headers.get(REPLICA_HEADER, "")
        self._kind = kind_of(message)
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
        last = last_frames(error, self._scope, self._stream, len(self._sent))
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


def kind_of(head: Message) -> Kind | None:
    """The kind of stream that an answer with this head is, if it is one."""
    if head["status"] != 200:
        return None
    return STREAMS.get(Headers(raw=head["headers"]).get("content-type", "").partition(";")[0])


def last_frames(error: ApiError, scope: Scope, kind: Kind | None, sent: int) -> bytes:
    """How a stream ends that has brought so many frames before this error."""
    path: str = scope["path"]
    if path.startswith(RESPONSES_PATH):
        said = {"type": "error", "sequence_number": sent, "code": error.code, "message": error.message, "param": None}
        return b"event: error\ndata: " + _json(said) + ENDS["events"]
    if kind == "lines":
        return _json(shaped(error, scope)) + ENDS["lines"]
    if path.startswith(ANTHROPIC_PATH):
        return b"event: error\ndata: " + _json(shaped(error, scope)) + ENDS["events"]
    return b"data: " + _json(error.body) + b"\n\ndata: [DONE]\n\n"


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _response_id(beginning: bytes) -> str:
    """The id of a response whose answer begins so."""
    found = re.search(rb'"id": ?"(resp_[0-9a-f]+)"', beginning)
    return "" if found is None else found[1].decode()


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
