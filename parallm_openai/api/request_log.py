"""What is noted of each request, in a line of the log and in metrics: how it was answered and what it cost.

Never what it said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai.logs import FIELDS

if TYPE_CHECKING:
    from parallm_openai.api.metrics import Metrics
    from parallm_openai.api.running import RunningResponse
    from parallm_openai.api.tracing.spans import RequestTrace

log = logging.getLogger(__name__)

# Keys of the state of an ASGI scope.
EMBEDDED, ERROR, RUNNING, REQUEST_ID, TRACE, TRACE_ID = (
    "embedded",
    "error",
    "running",
    "request_id",
    "trace",
    "trace_id",
)
LONGEST_ERROR = 300
# If no answer is sent, the client has gone: nginx's status for that.
CLIENT_GONE = 499


def note_error(scope: Scope, message: str) -> None:
    """Have the request's line say why it failed."""
    scope.setdefault("state", {})[ERROR] = message


def note_running(scope: Scope, running: RunningResponse) -> None:
    """Have the request's line, and its trace, tell of these sequences."""
    scope.setdefault("state", {})[RUNNING] = running
    if (trace := trace_of(scope)) is not None:
        trace.started(running.generations)


def note_embedded(scope: Scope, inputs: int, tokens: int) -> None:
    """Have the request's line, and its trace, tell of inputs that were embedded."""
    scope.setdefault("state", {})[EMBEDDED] = {"inputs": inputs, "prompt": tokens}


def embedded_of(scope: Scope) -> dict[str, int]:
    """What was noted of inputs that were embedded, if there were some."""
    found: dict[str, int] = scope.get("state", {}).get(EMBEDDED, {})
    return found


def trace_of(scope: Scope) -> RequestTrace | None:
    """The trace of the request, if it has one."""
    trace: RequestTrace | None = scope.get("state", {}).get(TRACE)
    return trace


def running_of(scope: Scope) -> RunningResponse | None:
    """The sequences of the request, if it has started some."""
    running: RunningResponse | None = scope.get("state", {}).get(RUNNING)
    return running


def error_of(scope: Scope) -> str | None:
    """Why the request has failed, if it has, in printable characters."""
    running = running_of(scope)
    error: str | None = scope.get("state", {}).get(ERROR) or (running.failure if running is not None else None)
    return None if error is None else "".join(each if each.isprintable() else "?" for each in error[:LONGEST_ERROR])


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
        status = CLIENT_GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self.metrics.answered(status)
            if (running := running_of(scope)) is not None:
                self.metrics.observe(running, began)
            log_answer(scope, status, began)


def asked(scope: Mapping[str, Any]) -> tuple[str, str]:
    """The method and the path of a request, the path as it was sent: so none writes a line of the log of its own."""
    return scope["method"], scope["raw_path"].decode("latin-1")[:200]


def log_answer(scope: Scope, status: int, began: float) -> None:
    """Log a request of the time `began`, by `time.perf_counter`, that has been answered."""
    reads = status < 400 and scope["method"] in ("GET", "HEAD", "OPTIONS")
    level = logging.DEBUG if reads else logging.WARNING if status >= 500 else logging.INFO
    if not log.isEnabledFor(level):
        return
    seconds = time.perf_counter() - began
    method, path = asked(scope)
    facts = dict(_facts(scope, began))
    words = [method, path, str(status), _text(seconds), *_words(facts)]
    request = {"message": f"{method} {path} {status}", "method": method, "path": path}
    answer = {"status": status, "seconds": round(seconds, 6), **facts, **_ids(scope)}
    log.log(level, "%s", " ".join(words), extra={FIELDS: request | answer})


def _words(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts as text."""
    for name, value in facts.items():
        match name:
            case "ttft":
                yield f"ttft={_text(value)}"
            case "tokens_per_second":
                yield f"tokens/s={value:.1f}"
            case "accepted":
                yield f"accepted={value:.2f}"
            case "error":
                yield f'error="{value}"'
            case _:
                yield f"{name}={value}"


def _text(seconds: float) -> str:
    return f"{seconds:.3f}s"


def _ids(scope: Scope) -> dict[str, str]:
    state = scope.get("state", {})
    return {name: state[name] for name in (REQUEST_ID, TRACE_ID) if name in state}


def _facts(scope: Scope, began: float) -> Iterator[tuple[str, Any]]:
    running = running_of(scope)
    if running is not None:
        yield from _costs(running, began)
    yield from embedded_of(scope).items()
    if (error := error_of(scope)) is not None:
        yield "error", error


def _costs(running: RunningResponse, began: float) -> Iterator[tuple[str, Any]]:
    """Tokens, times and reasons; those of several choices together."""
    generations = running.generations
    counts = [each.counts for each in generations]
    tokens, drafted = sum(each.completion for each in counts), sum(each.drafted for each in counts)
    yield "choices", len(generations)
    yield "prompt", sum(len(each.prompt_tokens) for each in generations)
    yield "cached", sum(each.cached_prompt for each in counts)
    yield "output", tokens
    first = min((each.first_token_at for each in generations if each.first_token_at is not None), default=None)
    if first is not None:
        yield "ttft", round(first - began, 6)
        if (seconds := time.perf_counter() - first) > 0:
            yield "tokens_per_second", round(tokens / seconds, 3)
    if drafted:
        yield "accepted", round(sum(each.accepted for each in counts) / drafted, 4)
    reasons = {"cut off" if each.finish_reason is None else each.finish_reason.value for each in generations}
    yield "end", ",".join(sorted(reasons))
