"""To whom a load goes: what the benchmark needs of whatever answers it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from parallm_openai.bench.load import Request
    from parallm_openai.bench.samples import Sample

Way = Literal["streamed", "whole", "in-process"]
"""How answers come: over HTTP as they grow, over HTTP when they are complete, or as they grow without HTTP."""


class BenchError(Exception):
    """A server that cannot be measured, with the reason."""


class RequestFailed(Exception):
    """One request that got no answer, or only a part of one, with the reason."""


class Client(Protocol):
    """What sends the requests of one run, many at a time."""

    @property
    def streams(self) -> bool:
        """Whether text comes before the whole answer is there."""

    async def answer(self, request: Request, sample: Sample) -> None:
        """Have the request answered and note in `sample` what comes, and when. Raises RequestFailed."""


class Target(Protocol):
    """What a load can be put on: a server, or the engine in this process.

    If it `shares_process`, the processor time of this process is also the target's.
    """

    @property
    def name(self) -> str: ...

    @property
    def way(self) -> Way: ...

    @property
    def shares_process(self) -> bool: ...

    def prepare(self) -> None:
        """Put the target's settings into force. Raises BenchError."""

    def drafted(self) -> tuple[int, int]:
        """Tokens drafted and accepted since the start; zeros for a server that does not say."""

    def client(self) -> AbstractAsyncContextManager[Client]:
        """A client for one run."""
