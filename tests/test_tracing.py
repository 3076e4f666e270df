"""Spans of real requests, by the conventions for generative AI."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support import embedding_models
from support.servers import RunningServer, demo_draft, running_server

from parallm_openai.api.tracing.configuration import exporter_names, traces_of_environment
from parallm_openai.api.tracing.messages import input_messages, output_messages
from parallm_openai.api.tracing.spans import Traces
from parallm_openai.engine.request import FinishReason
from parallm_openai.logs import FIELDS
from parallm_openai.models.loading import load
from parallm_openai.settings import ServerSettings
from parallm_openai.text.description import ChatDescription
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning

SECRET = "Xylophone"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": f"Say {SECRET}."}], "max_tokens": 12, "temperature": 0}
TEXT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 9, "ignore_eos": True, "seed": 4}
PHASES = ["queue", "prefill", "decode"]

Spans = Callable[..., list[ReadableSpan]]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def traces_to(exporter: InMemorySpanExporter, *, content: bool = False) -> Traces:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider, content=content)


@pytest.fixture(scope="module")
def server(exporter: InMemorySpanExporter) -> Iterator[RunningServer]:
    settings = ServerSettings(graceful_timeout=2, served_model_names=("gpt-x",))
    with running_server(demo_draft(), settings, draft_length=3, traces=traces_to(exporter)) as running:
        yield running


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    return finished_of(exporter)


def finished_of(exporter: InMemorySpanExporter) -> Spans:
    """Waits for so many spans of requests, and returns them without those inside them."""
    exporter.clear()

    def finished(count: int = 1) -> list[ReadableSpan]:
        deadline = time.monotonic() + 30
        while True:
            found = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
            if len(found) >= count:
                assert len(found) == count
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    return finished


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def inside(exporter: InMemorySpanExporter, span: ReadableSpan) -> list[ReadableSpan]:
    found = [each for each in exporter.get_finished_spans() if each.parent and each.parent.span_id == id_of(span)]
    return sorted(found, key=lambda each: PHASES.index(each.name))


def assert_phases_follow_each_other(span: ReadableSpan, phases: Sequence[ReadableSpan]) -> None:
    assert [phase.name for phase in phases] == PHASES
    moments = [moment for phase in phases for moment in (phase.start_time, phase.end_time)]
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    assert span.start_time is not None
    assert span.end_time is not None
    assert all(moment is not None and span.start_time <= moment <= span.end_time for moment in moments)


def test_a_chat_has_a_span_with_what_it_asked_and_what_it_cost(
    server: RunningServer, exporter: InMemorySpanExporter, spans: Spans
) -> None:
    with server.client as client:
        usage = client.post("/v1/chat/completions", json=CHAT | {"top_p": 0.9}).json()["usage"]
    (span,) = spans()
    found = attributes_of(span)
    assert span.name == f"chat {server.model.name}"
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == server.model.name
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.top_p"]) == (0.0, 0.9)
    assert found["gen_ai.request.max_tokens"] == 12
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert found["parallm.drafted_tokens"] >= found["parallm.accepted_tokens"] > 0
    assert found["http.response.status_code"] == 200
    assert span.status.status_code is StatusCode.UNSET
    absent = {"error.type", "gen_ai.request.top_k", "gen_ai.request.stream", "gen_ai.input.messages"}
    assert not absent & found.keys()
    assert_phases_follow_each_other(span, inside(exporter, span))
    assert SECRET not in span.to_json()


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/chat/completions", CHAT, "chat"),
        ("/v1/messages", CHAT, "chat"),
        ("/v1/responses", {"input": f"Say {SECRET}.", "max_output_tokens": 16}, "chat"),
        ("/api/chat", {"messages": CHAT["messages"], "options": {"num_predict": 12}}, "chat"),
        ("/v1/completions", TEXT, "text_completion"),
        ("/completions", TEXT, "text_completion"),
        ("/v1/generate", TEXT, "text_completion"),
    ],
)
def test_streams_of_every_surface_have_one(
    server: RunningServer, exporter: InMemorySpanExporter, spans: Spans, path: str, body: dict[str, Any], operation: str
) -> None:
    with server.client as client:
        client.post(path, json=body | {"stream": True}).raise_for_status()
    (span,) = spans()
    found = attributes_of(span)
    assert span.name == f"{operation} {server.model.name}"
    assert found["gen_ai.request.stream"] is True
    assert found["gen_ai.response.time_to_first_chunk"] > 0
    assert len(found["gen_ai.response.finish_reasons"]) == 1
    assert_phases_follow_each_other(span, inside(exporter, span))
    assert SECRET not in span.to_json()


def test_choices_share_a_span_and_their_prompt_counts_once(server: RunningServer, spans: Spans) -> None:
    with server.client as client:
        usage = client.post("/v1/completions", json=TEXT | {"n": 3, "model": "gpt-x"}).json()["usage"]
    found = attributes_of(spans()[0])
    assert spans()[0].name == "text_completion gpt-x"
    assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("gpt-x", server.model.name)
    assert (found["gen_ai.request.choice.count"], found["gen_ai.request.seed"]) == (3, 4)
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 27
    assert found["gen_ai.response.finish_reasons"] == ("length",) * 3


def test_prompts_of_a_batch_are_counted_together(server: RunningServer, spans: Spans) -> None:
    body = {"prompts": ["One", "Two and three"], "max_tokens": 5, "ignore_eos": True}
    with server.client as client:
        usage = client.post("/v1/generate_batch", json=body).json()["usage"]
    found = attributes_of(spans()[0])
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 10


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", CHAT | {"temperature": 9}, 400),
        ("/v1/chat/completions", CHAT | {"model": "none"}, 404),
        ("/v1/completions", TEXT | {"max_tokens": 10**7}, 400),
    ],
)
def test_a_refused_request_says_so_and_is_no_failure_of_the_server(
    server: RunningServer, spans: Spans, path: str, body: dict[str, Any], status: int
) -> None:
    with server.client as client:
        assert client.post(path, json=body).status_code == status
    (span,) = spans()
    assert attributes_of(span)["error.type"] == str(status)
    assert attributes_of(span)["http.response.status_code"] == status
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(("stream", "kind"), [(True, "stream_failed"), (False, "500")])
def test_a_failure_of_the_server_is_an_error(
    server: RunningServer, spans: Spans, monkeypatch: pytest.MonkeyPatch, stream: bool, kind: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise ArithmeticError("no numbers")

    with server.client as client, monkeypatch.context() as patched:
        patched.setattr("parallm_openai.engine.step.commit", fail)
        answer = client.post("/v1/completions", json=TEXT | {"stream": stream})
    assert answer.status_code == (200 if stream else 500)
    (span,) = spans()
    assert attributes_of(span)["error.type"] == kind
    assert span.status.status_code is StatusCode.ERROR
    assert "no numbers" in (span.status.description or "")


def test_a_client_that_leaves_ends_its_span(server: RunningServer, spans: Spans) -> None:
    body = TEXT | {"max_tokens": 3000, "stream": True}
    with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    assert attributes_of(spans()[0])["gen_ai.response.finish_reasons"] == ("cancelled",)


def test_a_span_belongs_to_the_clients_trace(server: RunningServer, spans: Spans) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with server.client as client:
        client.post("/v1/completions", json=TEXT, headers={"traceparent": f"00-{trace}-{parent}-01"})
        client.post("/v1/completions", json=TEXT, headers={"traceparent": "nonsense"})
    known, unknown = spans(2)
    assert known.parent is not None
    assert (f"{known.parent.trace_id:032x}", f"{known.parent.span_id:016x}") == (trace, parent)
    assert unknown.parent is None


def test_spans_of_concurrent_requests_do_not_mix(
    server: RunningServer, exporter: InMemorySpanExporter, spans: Spans
) -> None:
    def ask(length: int) -> None:
        with server.client as client:
            client.post("/v1/completions", json=TEXT | {"max_tokens": length, "stream": length % 2 == 0})

    lengths = list(range(3, 15))
    with ThreadPoolExecutor(len(lengths)) as pool:
        list(pool.map(ask, lengths))
    found = spans(len(lengths))
    assert sorted(attributes_of(span)["gen_ai.usage.output_tokens"] for span in found) == lengths
    for span in found:
        assert span.parent is None
        assert_phases_follow_each_other(span, inside(exporter, span))


def test_the_line_of_a_request_names_its_trace(
    server: RunningServer, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="parallm_openai.api.request_log")
    with server.client as client:
        client.post("/v1/completions", json=TEXT)
    context = spans()[0].get_span_context()
    assert context is not None
    _wait_until(lambda: bool(caplog.records))
    assert caplog.records[-1].__dict__[FIELDS]["trace_id"] == f"{context.trace_id:032x}"


def _wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_only_reads_has_no_span(server: RunningServer, exporter: InMemorySpanExporter, spans: Spans) -> None:
    with server.client as client:
        for path in ("/health", "/v1/models", "/metrics"):
            client.get(path).raise_for_status()
        client.post("/tokenize", json={"prompt": "Hello"}).raise_for_status()
        client.post("/v1/completions", json=TEXT)
    spans(1)


@pytest.mark.server
def test_embeddings_have_a_span_with_their_tokens(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    spans = finished_of(exporter)
    model = load(embedding_models.write(tmp_path / "tiny"))
    with running_server(model=model, traces=traces_to(exporter)) as server, server.client as client:
        usage = client.post("/v1/embeddings", json={"input": [SECRET, "b"]}).json()["usage"]
    (span,) = spans()
    assert span.name == "embeddings tiny"
    assert attributes_of(span)["gen_ai.usage.input_tokens"] == usage["prompt_tokens"] > 0
    assert SECRET not in span.to_json()


@pytest.mark.server
def test_texts_are_in_the_span_if_they_are_asked_for() -> None:
    exporter = InMemorySpanExporter()
    spans = finished_of(exporter)
    with running_server(traces=traces_to(exporter, content=True)) as server, server.client as client:
        answer = client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]
    found = attributes_of(spans()[0])
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": f"Say {SECRET}."}]}
    ]
    (message,) = json.loads(found["gen_ai.output.messages"])
    assert message["finish_reason"] == answer["finish_reason"]
    assert message["parts"] == [{"type": "text", "content": answer["message"]["content"]}]


def test_calls_results_and_thoughts_are_parts_of_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    conversation = ChatDescription(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "half \ud800"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        ]
    )
    assert [message["parts"] for message in json.loads(input_messages(conversation))] == [
        [{"type": "text", "content": "half ?"}],
        [{"type": "tool_call", "id": "c1", "name": "look", "arguments": "{}"}],
        [{"type": "tool_call_response", "id": "c1", "response": "seen"}],
    ]
    called: list[Event] = [CallStart(0, "look", "c2"), CallArguments(0, "{"), CallArguments(0, "}")]
    events: list[Event] = [
        Reasoning("a"),
        Reasoning("b"),
        Content("c"),
        *called,
        Finish(FinishReason.STOP, called=True),
    ]
    (answer,) = json.loads(output_messages([events]))
    assert answer["finish_reason"] == "tool_call"
    assert answer["parts"] == [
        {"type": "reasoning", "content": "ab"},
        {"type": "text", "content": "c"},
        {"type": "tool_call", "id": "c2", "name": "look", "arguments": "{}"},
    ]


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        (ENDPOINT, ["otlp_proto_http"]),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, []),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, []),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp_proto_http"]),
    ],
)
def test_the_standard_variables_say_where_spans_go(environment: dict[str, str], names: list[str]) -> None:
    assert exporter_names(environment) == names


def test_an_exporter_that_is_not_installed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert traces_of_environment({"OTEL_TRACES_EXPORTER": "pigeon"}) is None
    assert "pigeon" in caplog.text


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("", False), ("NO_CONTENT", False), ("EVENT_ONLY", False), ("SPAN_ONLY", True), ("true", True)],
)
def test_the_standard_variable_alone_lets_texts_into_spans(value: str, wanted: bool) -> None:
    name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    traces = traces_of_environment({"OTEL_TRACES_EXPORTER": "console", name: value})
    assert traces is not None
    assert traces.content is wanted


@pytest.mark.server
def test_spans_reach_a_collector_by_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "our-service")
        with running_server() as server, server.client as client:
            client.post("/v1/chat/completions", json=CHAT).raise_for_status()
        collector.shutdown()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    assert b"gen_ai.usage.input_tokens" in sent
    assert b"our-service" in sent
    assert SECRET.encode() not in sent
