"""Sending one request and reading its answer, whatever happens on the way, within a bound of time."""

from __future__ import annotations

import http.client
import socket
import time
from dataclasses import dataclass, field
from email.message import Message

from fuzz.case import Case

READ_AT_A_TIME = 65_536


@dataclass(frozen=True)
class Exchange:
    """`status` is None where no answer came: then `failure` says why, and `late` whether it was for the time."""

    case: Case
    began: float
    took: float
    status: int | None = None
    headers: Message = field(default_factory=Message)
    body: bytes = b""
    failure: str = ""
    late: bool = False

    @property
    def content_type(self) -> str:
        return str(self.headers.get("content-type", "")).partition(";")[0].strip()


def exchanged(port: int, case: Case, patience: float) -> Exchange:
    """The whole answer to `case`, or what kept it from coming within `patience` seconds."""
    began = time.monotonic()
    deadline = began + patience
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    status, headers, body = None, Message(), b""
    try:
        _send(connection, case)
        answer = connection.getresponse()
        headers = answer.headers
        pieces: list[bytes] = []
        while piece := _read(connection, answer, deadline):
            pieces.append(piece)
        status, body = answer.status, b"".join(pieces)
        return Exchange(case, began, time.monotonic() - began, status, headers, body)
    except TimeoutError:
        return Exchange(case, began, time.monotonic() - began, failure="no answer in time", late=True)
    except (OSError, http.client.HTTPException) as error:
        failure = f"{type(error).__name__}: {error}"
        return Exchange(case, began, time.monotonic() - began, None, headers, body, failure)
    finally:
        connection.close()


def _send(connection: http.client.HTTPConnection, case: Case) -> None:
    connection.putrequest(case.method, case.path, skip_accept_encoding=True)
    for name, value in case.headers:
        connection.putheader(name, value)
    if case.body or case.method == "POST":
        connection.putheader("Content-Length", str(len(case.body)))
    try:
        connection.endheaders(case.body or None)
    except (BrokenPipeError, ConnectionResetError):
        # An answer may come before all of the body has gone: too large, for one.
        if connection.sock is None:
            raise


def _read(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock: socket.socket | None = connection.sock
    if sock is not None:
        sock.settimeout(left)
    return answer.read1(READ_AT_A_TIME)
