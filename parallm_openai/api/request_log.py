"""What is noted of each request, in a line of the log and in metrics: how it was answered and what it cost.

Never what it said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from parallm_openai.api.metrics import Metrics
    from parallm_openai.api.running import RunningResponse

log = logging.getLogger(__name__)

# Keys of the state of an ASGI scope.
ERROR, RUNNING = "error", "running"
LONGEST_ERROR = 300


def note_error(scope: Scope, message: str) -> None:
    """Have the request's line say why it failed."""
    scope.setdefault("state", {})[ERROR] = message


def note_running(scope: Scope, running: RunningResponse) -> None:
    """Have the request's line tell of these sequences."""
    scope.setdefault("state", {})[RUNNING] = running


class RequestLog:
    """Logs each request once it is answered; one that only reads, and succeeds, at the level `debug`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        # If no answer is sent, the client has gone: nginx's status for that.
        status = 499

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            if (running := scope.get("state", {}).get(RUNNING)) is not None:
                self.metrics.observe(running, began)
            reads = status < 400 and scope["method"] in ("GET", "HEAD", "OPTIONS")
            level = logging.DEBUG if reads else logging.WARNING if status >= 500 else logging.INFO
            if log.isEnabledFor(level):
                seconds = time.perf_counter() - began
                log.log(level, "%s", " ".join([_asked(scope), f"{status} {seconds:.3f}s", *_facts(scope, began)]))


def _asked(scope: Scope) -> str:
    # As it was sent, so that no path writes a line of its own.
    return f"{scope['method']} {scope['raw_path'].decode('latin-1')[:200]}"


def _facts(scope: Scope, began: float) -> Iterator[str]:
    state: dict[str, Any] = scope.get("state", {})
    running: RunningResponse | None = state.get(RUNNING)
    error = state.get(ERROR)
    if running is not None:
        yield from _costs(running, began)
        error = error or running.failure
    if error is not None:
        shown = "".join(each if each.isprintable() else "?" for each in error[:LONGEST_ERROR])
        yield f'error="{shown}"'


def _costs(running: RunningResponse, began: float) -> Iterator[str]:
    """Tokens, times and reasons; those of several choices together."""
    generations = running.generations
    counts = [each.counts for each in generations]
    tokens, drafted = sum(each.completion for each in counts), sum(each.drafted for each in counts)
    yield f"choices={len(generations)}"
    yield f"prompt={sum(len(each.prompt_tokens) for each in generations)}"
    yield f"cached={sum(each.cached_prompt for each in counts)}"
    yield f"output={tokens}"
    first = min((each.first_token_at for each in generations if each.first_token_at is not None), default=None)
    if first is not None:
        yield f"ttft={first - began:.3f}s"
        if (seconds := time.perf_counter() - first) > 0:
            yield f"tokens/s={tokens / seconds:.1f}"
    if drafted:
        yield f"accepted={sum(each.accepted for each in counts) / drafted:.2f}"
    reasons = {"cut off" if each.finish_reason is None else each.finish_reason.value for each in generations}
    yield f"end={','.join(sorted(reasons))}"
