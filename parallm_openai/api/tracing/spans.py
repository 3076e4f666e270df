"""A span for each request to generate, by OpenTelemetry's conventions for generative AI.

The names: https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id, set_span_in_context
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai import __version__
from parallm_openai.api.request_log import CLIENT_GONE, TRACE, TRACE_ID, embedded_of, error_of, running_of
from parallm_openai.api.tracing.messages import input_messages, output_messages

if TYPE_CHECKING:
    from parallm_openai.text.description import ChatDescription, Options, TextDescription
    from parallm_openai.text.generation import Generation

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/v1/generate": "text_completion",
    "/v1/generate_batch": "text_completion",
    "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
STREAMS = ("text/event-stream", "application/x-ndjson")
PROVIDER = "parallm_openai"
# Seconds that the last spans may take to be sent at the end of the server.
SENDING = 5.0


class Traces:
    """Makes spans. Prompts and answers are part of them only with `content`."""

    def __init__(self, provider: TracerProvider, *, content: bool = False) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("parallm_openai", __version__)
        self._content = content

    def begin(self, scope: Scope, operation: str, model: str) -> RequestTrace:
        """The span of a request, below that of its client if its headers name one."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        address, port = (scope.get("server") or (None, None))[:2]
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "http.request.method": scope["method"],
            "http.route": scope["path"],
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "server.address": address,
            "server.port": port,
        }
        span = self._tracer.start_span(
            f"{operation} {model}", propagate.extract(headers), SpanKind.SERVER, _known(attributes)
        )
        return RequestTrace(self, span, operation, model)

    def child(self, parent: Span, name: str, began: int, ended: int) -> None:
        """A span inside another one; both times in nanoseconds since the epoch."""
        self._tracer.start_span(name, set_span_in_context(parent), start_time=began).end(ended)

    @property
    def content(self) -> bool:
        return self._content

    async def close(self) -> None:
        """Send what has not been sent, if that is soon done."""
        sending = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({sending}, timeout=SENDING)


class RequestTrace:
    """The span of one request, and what it is told until the request ends."""

    def __init__(self, traces: Traces, span: Span, operation: str, model: str) -> None:
        self._traces = traces
        self._span = span
        self._operation = operation
        self._model = model
        self._description: ChatDescription | TextDescription | None = None
        self._choices = 1
        self._streams = False
        # The same moment on the clock of `Generation` and in nanoseconds since the epoch.
        self._began, self._epoch = time.perf_counter(), time.time_ns()

    @property
    def id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def described(self, description: ChatDescription | TextDescription, model: object) -> None:
        """What the request asks for. `model` is the name that it gives the model, if it gives one."""
        if not self._span.is_recording():
            return
        self._choices = description.n
        attributes = _asked(description)
        if isinstance(model, str):
            attributes["gen_ai.request.model"] = model
            self._span.update_name(f"{self._operation} {model}")
        self._span.set_attributes(_known(attributes))
        # Its messages are not checked yet.
        self._description = description if self._traces.content else None

    def started(self, generations: Sequence[Generation]) -> None:
        """It is well-formed, and these are its sequences."""
        if self._description is None:
            return
        self._span.set_attribute("gen_ai.input.messages", input_messages(self._description))
        self._description = None
        for generation in generations:
            generation.kept = []

    def answering(self, message: Message) -> None:
        """The answer begins with this message of ASGI."""
        kinds = [value.decode("latin-1") for name, value in message["headers"] if name.lower() == b"content-type"]
        self._streams = any(kind.startswith(STREAMS) for kind in kinds)

    def end(self, scope: Scope, status: int, failure: BaseException | None) -> None:
        """The request has ended, perhaps because sending its answer failed."""
        if self._span.is_recording():
            self._span.set_attributes(_known({"http.response.status_code": status} if status != CLIENT_GONE else {}))
            if embedded := embedded_of(scope):
                self._span.set_attribute("gen_ai.usage.input_tokens", embedded["prompt"])
            running = running_of(scope)
            if running is not None and running.generations:
                self._span.set_attributes(_known(self._costs(running.generations)))
                self._phases(running.generations)
            self._note_failure(scope, status, failure)
        self._span.end()

    def _note_failure(self, scope: Scope, status: int, failure: BaseException | None) -> None:
        running = running_of(scope)
        if running is not None and running.failure is not None:
            self._span.set_attribute("error.type", "stream_failed")
        elif status == CLIENT_GONE:
            self._span.set_attribute("error.type", "client_gone")
        elif failure is not None:
            self._span.set_attribute("error.type", type(failure).__qualname__)
        elif status >= 400:
            self._span.set_attribute("error.type", str(status))
        else:
            return
        # By the conventions for HTTP, a request that the server was right to refuse is no error of its own.
        if not 400 <= status < 500:
            self._span.set_status(StatusCode.ERROR, error_of(scope))

    def _costs(self, generations: Sequence[Generation]) -> dict[str, Any]:
        counts, prompts = [each.counts for each in generations], generations[:: self._choices]
        first = _earliest(each.first_token_at for each in generations)
        attributes: dict[str, Any] = {
            "gen_ai.response.model": self._model,
            "gen_ai.response.finish_reasons": [
                "cancelled" if each.finish_reason is None else each.finish_reason.value for each in generations
            ],
            "gen_ai.usage.input_tokens": sum(len(each.prompt_tokens) for each in prompts),
            "gen_ai.usage.cache_read.input_tokens": sum(each.counts.cached_prompt for each in prompts),
            "gen_ai.usage.output_tokens": sum(each.completion for each in counts),
            "gen_ai.usage.reasoning.output_tokens": sum(each.reasoning for each in counts) or None,
            "parallm.drafted_tokens": sum(each.drafted for each in counts),
            "parallm.accepted_tokens": sum(each.accepted for each in counts),
        }
        if self._streams:
            attributes["gen_ai.request.stream"] = True
            attributes["gen_ai.response.time_to_first_chunk"] = None if first is None else first - self._began
        if kept := [each.kept for each in generations if each.kept is not None]:
            attributes["gen_ai.output.messages"] = output_messages(kept)
        return attributes

    def _phases(self, generations: Sequence[Generation]) -> None:
        """A span each for the queue, prefill and decode; of several sequences, that of the first ones to get there."""
        admitted = _earliest(each.admitted_at for each in generations)
        first = _earliest(each.first_token_at for each in generations)
        if admitted is None or first is None:
            return
        times = [min(each.queued_at for each in generations), admitted, first, time.perf_counter()]
        moments = [self._epoch + round((each - self._began) * 1e9) for each in times]
        for name, began, ended in zip(("queue", "prefill", "decode"), moments, moments[1:], strict=False):
            self._traces.child(self._span, name, began, ended)


def _asked(options: Options) -> dict[str, Any]:
    """What a request says of its answers. What it leaves open is no attribute."""
    sampling = options.sampling
    defaultable = [name for name in ("temperature", "top_p", "top_k") if name not in sampling.unsaid]
    said = {name: float(getattr(sampling, name)) for name in defaultable}
    penalties = {name: getattr(sampling, name) or None for name in ("presence_penalty", "frequency_penalty")}
    others = {"seed": sampling.seed, "max_tokens": sampling.max_tokens}
    choices = {"choice.count": options.n if options.n != 1 else None}
    return {f"gen_ai.request.{name}": value for name, value in {**said, **penalties, **others, **choices}.items()}


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _earliest(times: Iterator[float | None]) -> float | None:
    return min((each for each in times if each is not None), default=None)


class Tracing:
    """Has each request to generate traced, from its headers to the end of its answer."""

    def __init__(self, app: ASGIApp, traces: Traces, model: str) -> None:
        self.app = app
        self.traces = traces
        self.model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = OPERATIONS.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if operation is None:
            await self.app(scope, receive, send)
            return
        trace = self.traces.begin(scope, operation, self.model)
        scope.setdefault("state", {}).update({TRACE: trace, TRACE_ID: trace.id})
        status, failure = CLIENT_GONE, None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                trace.answering(message)
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except BaseException as error:
            failure = error
            raise
        finally:
            trace.end(scope, status, failure)
