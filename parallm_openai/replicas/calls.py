"""What the ingress and the replicas say to each other."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from starlette.types import Message, Scope

from parallm_openai.replicas.prefixes import Hints

# Each answer says in it which replica has made it.
REPLICA_HEADER = "x-parallm-replica"
# What an app needs to know of a connection; the rest cannot leave the process.
OF_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "headers",
    "client",
    "server",
)
# These bodies take no row, and neither does what has none.
QUICK_POSTS = frozenset(
    (
        "/tokenize",
        "/detokenize",
        "/api/show",
        "/v1/configure",
        "/v1/chat/completions/render",
        "/v1/messages/count_tokens",
        "/v1/responses/input_tokens",
    )
)


@dataclass(frozen=True)
class Call:
    """One request as it is forwarded.

    All attempts at it have one `key` and time, from which the answer's ids and its seed follow. `avoid` are the
    replicas that have failed it. `sender` is the Ray actor that waits for the answer, if it is one.
    """

    scope: Mapping[str, Any]
    body: bytes
    hints: Hints = field(default_factory=Hints)
    avoid: frozenset[str] = frozenset()
    sender: str = ""
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, scope: Scope, body: bytes, hints: Hints) -> Call:
        kept = {name: scope[name] for name in OF_SCOPE if name in scope}
        request_id = scope.get("state", {}).get("request_id")
        if request_id is not None:
            others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
            kept["headers"] = [*others, (b"x-request-id", request_id.encode())]
        return cls(kept, body, hints)

    @property
    def is_quick(self) -> bool:
        """Whether a replica answers it at once, however many requests generate there."""
        path: str = self.scope["path"]
        return self.scope["method"] != "POST" or path in QUICK_POSTS

    def avoiding(self, replica: str) -> Call:
        return replace(self, avoid=self.avoid | {replica})


@dataclass(frozen=True)
class Whole:
    """A replica's answer in one piece."""

    replica: str
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class ReplicaLost(Exception):
    """The replica that was to answer is gone, or its engine has failed. Its name is empty if nobody knows it."""

    def __init__(self, replica: str = "") -> None:
        super().__init__(replica)
        self.replica = replica


class TooManyWaiting(Exception):
    """The queue before the replicas is full."""


class Replicas(Protocol):
    """All replicas of the engine, as the ingress reaches them."""

    def answer(self, call: Call) -> AsyncGenerator[Sequence[Message]]:
        """The ASGI messages of the answer of one replica. Raises ReplicaLost or TooManyWaiting."""

    async def answers_of_all(self, call: Call) -> Sequence[Whole]:
        """The answers of those replicas that answer, at least one. Raises ReplicaLost."""

    async def keep_settings(self, changes: Mapping[str, str]) -> None:
        """Have replicas that start later take over these settings of `/v1/configure`."""
