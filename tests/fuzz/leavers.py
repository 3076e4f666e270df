"""Clients that leave: in the middle of their headers, of their body, of the answer, politely or not."""

from __future__ import annotations

import socket
import struct

from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.hazards import Hazards
from fuzz.requests import ROUTES
from fuzz.session import Plan, Session

# Rows that nobody has stopped would still run when the run is over.
LONG = 7000
GENERATING = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/generate", "/v1/generate_batch"]


def draw(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    path = data.draw(st.sampled_from(GENERATING))
    value = data.draw(ROUTES[path](session.model))
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    value = {**value, limit: LONG, "ignore_eos": True}
    if path != "/v1/generate_batch":
        value["stream"] = data.draw(st.booleans())
    case = Case.of("leavers", path, value)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(case.body)}\r\n\r\n".encode() + case.body
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + f"{len(case.body):x}\r\n".encode() + case.body
    sent = data.draw(
        st.one_of(
            st.just(whole),
            st.integers(1, len(whole) - 1).map(lambda place: whole[:place]),
            st.sampled_from(
                [chunked, chunked + b"\r\n", chunked + b"\r\nzz\r\n", b"\x16\x03\x01\x02", b"GET / HTTP/9.9\r\n\r\n"]
            ),
        )
    )
    reads, rudely = data.draw(st.integers(0, 3)), data.draw(st.booleans())

    def carried_out(session: Session) -> None:
        _leave(session.server.port, sent, reads, rudely)
        session.totals.requests["leavers", "left"] += 1
        session.check(case)

    return carried_out


def _leave(port: int, sent: bytes, reads: int, rudely: bool) -> None:
    """Send this, read a little, and go; rudely is by a reset."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(sent)
            connection.settimeout(0.15)
            for _ in range(reads):
                try:
                    connection.recv(200)
                except TimeoutError:
                    break
            if rudely:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return
