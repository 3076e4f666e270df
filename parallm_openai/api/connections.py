"""Ends connections whose client sends its request or reads its answer too slowly. uvicorn itself does neither."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from parallm_openai.api.errors import ApiError, no_websockets
from parallm_openai.settings import ServerSettings

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """uvicorn's connection on h11, which limits the size of headers. It also notes how long it has waited.

    Somebody must call `end_if_late` every now and then.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self._begun = True
        self._unread_since: float | None = None

    def data_received(self, data: bytes) -> None:
        # uvicorn's own time-out of idle connections ends with the first byte.
        if self.idle and not self._begun:
            self._begun, self.since = True, self.loop.time()
        super().data_received(data)
        if not self.idle:
            self._begun = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        unread = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if self.idle and unread and not self.transport.is_closing():
            # The rest of this body is still to come, or the next request has begun before this one's answer.
            self._begun, self.since = True, self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    @property
    def idle(self) -> bool:
        """Whether there is no request, or none whose headers are complete."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def half_open(self) -> bool:
        """Whether it waits for its client and no work would be lost with it."""
        return self.idle or (self.cycle.more_body and not self.cycle.response_started)

    @property
    def answering(self) -> bool:
        return not self.idle and self.cycle.response_started

    def end_if_late(self, settings: ServerSettings) -> None:
        """Close it if its client has taken too long to send the headers of a request or to read an answer."""
        now = self.loop.time()
        if self.transport.is_closing() and self._unread_since is None:
            self._unread_since = now
        if self._unread_since is not None:
            if now - self._unread_since > settings.send_timeout:
                log.info("a client left its answer unread for %g seconds and was cut off", settings.send_timeout)
                self.transport.abort()
        elif self.idle and self._begun and now - self.since > settings.header_timeout:
            message = f"The request's headers did not arrive within {settings.header_timeout:g} seconds."
            self._refuse(ApiError(408, message, code="request_timeout"))

    def drop(self) -> None:
        """Cut it off at once and do not count it any more."""
        self.connections.discard(self)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answer something that is no complete request, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if self.cycle is not None:
                # The handler that reads the body of this request must not answer it as well.
                self.cycle.disconnected = True
            self.transport.write(_bytes_of(error, self.conn))
        self.transport.close()


def _bytes_of(error: ApiError, connection: h11.Connection) -> bytes:
    body = json.dumps(error.body).encode()
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    events = (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)


class NoWebSockets(asyncio.Protocol):
    """Refuses the handshakes of WebSockets, which uvicorn hands to this protocol."""

    def __init__(self, **_: Any) -> None:
        pass

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        connection = h11.Connection(h11.SERVER)
        transport.write(_bytes_of(no_websockets(), connection))
        transport.close()
