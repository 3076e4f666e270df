"""The ingress on replicas of this process: it hides the loss of one, or says so in the shape of the surface."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.types import Message
from support.servers import demo_draft, demo_target

from parallm_openai.api.app import create_app
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.replicas.calls import QUICK_POSTS, Call, ReplicaLost, TooManyWaiting, Whole
from parallm_openai.replicas.exchange import Exchange
from parallm_openai.replicas.ingress import ATTEMPTS, create_ingress
from parallm_openai.replicas.prefixes import Hints
from parallm_openai.replicas.replay import without_volatile
from parallm_openai.settings import EngineConfig, ServerSettings

SETTINGS = ServerSettings(api_keys=("key",), admin_keys=("admin",), max_body_size=4096, graceful_timeout=1)
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Tell me a story."}]
# Each surface with a request that streams; none of them has a seed.
STREAMS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": QUESTION, "max_tokens": 30, "stream": True, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "Once", "max_tokens": 30, "stream": True, "n": 2},
    "/v1/responses": {"input": "Tell me a story.", "max_output_tokens": 30, "stream": True},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 30, "stream": True},
    "/api/chat": {"messages": QUESTION, "options": {"num_predict": 30}},
    "/v1/generate": {"prompt": "Once", "max_tokens": 30, "stream": True},
}


@dataclass
class LocalReplicas:
    """Two replicas of this process, of which each attempt takes the next.

    `lasts` says after how many lists of messages each of the next attempts loses its replica.
    """

    apps: list[Any]
    lasts: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    change: Callable[[bytes], bytes] = lambda data: data
    # Whether the queue has no room for each of the next attempts.
    full: list[bool] = field(default_factory=list)

    async def answer(self, call: Call) -> AsyncGenerator[Sequence[Message]]:
        if self.full and self.full.pop(0):
            raise TooManyWaiting
        self.calls.append(call)
        lasts = self.lasts.pop(0) if self.lasts else None
        number = len(self.calls) % len(self.apps)
        async with Exchange(self.apps[number], call, str(number)) as exchange:
            count = 0
            async for messages in exchange.messages():
                for message in messages:
                    if count == lasts:
                        raise ReplicaLost(str(number))
                    count += 1
                    if len(self.calls) > 1 and "body" in message:
                        message["body"] = self.change(message["body"])
                    yield [message]

    async def answers_of_all(self, call: Call) -> Sequence[Whole]:
        if not self.apps:
            raise ReplicaLost
        found = []
        for number, app in enumerate(self.apps):
            async with Exchange(app, call, str(number)) as exchange:
                found.append(await exchange.whole())
        return found

    async def keep_settings(self, changes: Mapping[str, str]) -> None:
        self.kept |= changes


class Failing(LocalReplicas):
    """None of them answers."""

    def __init__(self, error: Exception) -> None:
        super().__init__([])
        self.error = error

    async def answer(self, call: Call) -> AsyncGenerator[Sequence[Message]]:
        for error in (self.error,):
            raise error
        yield []


@pytest.fixture(scope="module")
def apps() -> Iterator[list[Any]]:
    """One drafts and one does not, so that their steps differ."""
    engines = [AsyncEngine(demo_target(), EngineConfig(), draft) for draft in (demo_draft(), None)]
    yield [create_app(engine, demo_target(), SETTINGS) for engine in engines]
    for engine in engines:
        engine._engine.stop()


@pytest.fixture
def replicas(apps: list[Any]) -> LocalReplicas:
    return LocalReplicas(apps)


def client(replicas: Any, key: str | None = "admin") -> httpx.AsyncClient:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(create_ingress(replicas, SETTINGS))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers, timeout=120)


async def post(replicas: LocalReplicas, path: str, body: dict[str, Any], *lasts: int) -> httpx.Response:
    replicas.lasts = list(lasts)
    async with client(replicas) as asked:
        return await asked.post(path, json=body)


def pieces(answer: str) -> list[Any]:
    """What a stream says, without what depends on the replica."""
    lines = [
        line.removeprefix("data: ") for line in answer.splitlines() if line and not line.startswith((":", "event"))
    ]
    assert lines
    found = [json.loads(line) for line in lines if line != "[DONE]"]
    return [each for each in found if each.get("type") != "ping"]


def told(answer: str) -> str:
    """All texts of a stream, choice by choice."""
    found: dict[int, str] = {}
    for each in pieces(answer):
        choice = (each.get("choices") or [{}])[0]
        said = choice.get("text") or (choice.get("delta") or {}).get("content")
        delta = each.get("delta")
        said = said or (delta if isinstance(delta, str) else (delta or {}).get("text"))
        said = said or (each.get("message") or {}).get("content") or each.get("text")
        if isinstance(said, str):
            found[choice.get("index", 0)] = found.get(choice.get("index", 0), "") + said
    return json.dumps(found)


async def again(replicas: LocalReplicas, path: str) -> str:
    """The answer of a replica that is not lost to the last request, with the same key."""
    async with Exchange(replicas.apps[0], replicas.calls[-1], "0") as exchange:
        return (await exchange.whole()).body.decode()


@pytest.mark.parametrize("after", [1, 2, 5, 12])
@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_goes_on_from_another_replica(replicas: LocalReplicas, path: str, after: int) -> None:
    answer = await post(replicas, path, STREAMS[path], after)
    assert answer.status_code == 200
    assert len(replicas.calls) == 2
    whole = await again(replicas, path)
    assert told(answer.text) == told(whole)
    assert len(pieces(answer.text)) == len(pieces(whole))
    assert len(told(whole)) > 50
    assert "error" not in pieces(answer.text)[-1]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "more",
    [
        {"n": 3},
        {"logprobs": True, "top_logprobs": 5},
        {"n": 2, "tools": [TOOL], "tool_choice": "required"},
        {"stop": ["once", "."]},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_streams_of_every_form_go_on(replicas: LocalReplicas, more: dict[str, Any]) -> None:
    answer = await post(replicas, CHAT, {**STREAMS[CHAT], **more}, 4)
    assert len(replicas.calls) == 2
    whole = await again(replicas, CHAT)

    def by_choice(text: str) -> list[Any]:
        said = [(each["choices"][0]["index"], without_volatile(each)) for each in pieces(text) if each["choices"]]
        return sorted(said, key=lambda each: each[0])

    assert by_choice(answer.text) == by_choice(whole)


@pytest.mark.parametrize("path", STREAMS)
async def test_ids_stay_the_same_in_a_stream_that_goes_on(replicas: LocalReplicas, path: str) -> None:
    answer = await post(replicas, path, STREAMS[path], 6)
    # Anthropic and Ollama name an answer once, or not at all.
    ids = {each[name] for each in pieces(answer.text) for name in ("id", "item_id") if name in each}
    assert len(ids) <= 1
    responses = [each["response"]["id"] for each in pieces(answer.text) if "response" in each and path != "/api/chat"]
    assert len(set(responses)) <= 1


@pytest.mark.parametrize("path", STREAMS)
async def test_an_answer_that_was_not_begun_is_another_replicas(replicas: LocalReplicas, path: str) -> None:
    body = {**STREAMS[path], "stream": False}
    body.pop("stream_options", None)
    answer = await post(replicas, path, body, 0, 1)
    assert answer.status_code == 200, answer.text
    assert len(replicas.calls) == 3
    assert {call.key for call in replicas.calls} == {replicas.calls[0].key}
    assert replicas.calls[2].avoid == {"0", "1"}


@pytest.mark.parametrize("path", STREAMS)
async def test_no_replica_is_left_to_answer(replicas: LocalReplicas, path: str) -> None:
    """The request may be what ends the replicas: it does not end all of them."""
    answer = await post(replicas, path, {**STREAMS[path], "stream": False} | {"stream_options": None}, *[0] * 9)
    assert answer.status_code == 503
    assert len(replicas.calls) == ATTEMPTS
    assert "replica" in json.dumps(answer.json())


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_that_cannot_go_on_ends_with_an_error_of_its_surface(replicas: LocalReplicas, path: str) -> None:
    replicas.change = lambda data: data.replace(b'"', b'"X', 1) if data else data
    answer = await post(replicas, path, STREAMS[path], 8)
    assert answer.status_code == 200
    last = pieces(answer.text)[-1]
    said = last.get("error", last)
    message = said if isinstance(said, str) else said["message"]
    assert "replica" in message
    if path == "/v1/messages":
        assert last["type"] == "error"
        assert "event: error\n" in answer.text
    elif path == "/v1/responses":
        assert last["type"] == "error"
    elif path != "/api/chat":
        assert last["error"]["type"] == "server_error"
        assert answer.text.endswith("data: [DONE]\n\n")


async def test_the_ingress_refuses_what_a_server_refuses(replicas: LocalReplicas) -> None:
    async with client(replicas, key=None) as nobody, client(replicas, key="key") as user:
        refused = await nobody.post(CHAT, json=STREAMS[CHAT])
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        large = await user.post(CHAT, json={"messages": "x" * 5000})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        foreign = await user.post(CHAT, json=STREAMS[CHAT], headers={"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert not replicas.calls
        assert (await user.post("/v1/configure")).status_code == 403
        assert (await nobody.get("/health")).status_code == 200


async def test_errors_of_replicas_are_answers_and_no_losses(replicas: LocalReplicas) -> None:
    bad = await post(replicas, CHAT, {"messages": 3})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages")
    assert len(replicas.calls) == 1


async def test_a_full_queue_is_a_429() -> None:
    async with client(Failing(TooManyWaiting())) as asked:
        answer = await asked.post(CHAT, json=STREAMS[CHAT])
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")


async def test_a_request_that_was_running_waits_for_a_place_in_the_full_queue(replicas: LocalReplicas) -> None:
    """Its neighbours may have filled the queue since it came in."""
    replicas.full = [False, True, True]
    answer = await post(replicas, CHAT, STREAMS[CHAT], 5)
    assert told(answer.text) == told(await again(replicas, CHAT))
    assert "error" not in pieces(answer.text)[-1]


async def test_what_no_replica_has_expected_is_an_error_of_the_request() -> None:
    async with client(Failing(RuntimeError("a bug"))) as asked:
        answer = await asked.post(CHAT, json=STREAMS[CHAT])
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


@pytest.mark.parametrize("nested", ['"messages"', '"tools"', '"prompt_cache_key"', '"user"', '"previous_response_id"'])
async def test_deep_bodies_are_the_replicas_to_refuse(replicas: LocalReplicas, nested: str) -> None:
    depth = 1900
    body = f"{{{nested}:{'[' * depth}{']' * depth}}}"
    async with client(replicas) as asked:
        answer = await asked.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, len(replicas.calls)) == (400, 1)


async def test_bodies_take_bounded_memory_together(replicas: LocalReplicas) -> None:
    """Those of requests that are still being answered count."""
    ingress = create_ingress(replicas, SETTINGS)
    body = json.dumps({**STREAMS[CHAT], "user": "x" * 3500, "max_tokens": 3000, "ignore_eos": True})
    transport = httpx.ASGITransport(ingress)
    headers = {"Authorization": "Bearer key"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as asked:
        running = [asyncio.create_task(asked.post(CHAT, content=body)) for _ in range(20)]
        done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        statuses = {each.result().status_code for each in done}
        for each in rest:
            each.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        assert statuses == {429}
        assert (await asked.post(CHAT, json=STREAMS[CHAT])).status_code == 200


async def test_websockets_are_refused(replicas: LocalReplicas) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await create_ingress(replicas, SETTINGS)({"type": "websocket", "path": CHAT, "headers": []}, receive, send)
    assert [each["type"] for each in sent] == ["websocket.close"]


async def test_the_log_has_one_line_for_a_lost_replica(
    replicas: LocalReplicas, caplog: pytest.LogCaptureFixture
) -> None:
    await post(replicas, "/v1/none%0dforged", {}, 0)
    lost = [each.getMessage() for each in caplog.records if "has lost its replica" in each.getMessage()]
    assert len(lost) == 1
    assert lost[0].startswith("POST /v1/none%0dforged req_")


@pytest.mark.parametrize(
    ("method", "path", "quick"),
    [
        ("GET", "/v1/models", True),
        ("DELETE", "/v1/responses/resp_1", True),
        ("POST", "/v1/messages/count_tokens", True),
        ("POST", "/tokenize", True),
        ("POST", CHAT, False),
        ("POST", "/v1/embeddings", False),
    ],
)
def test_requests_that_take_no_row_do_not_wait_for_one(method: str, path: str, quick: bool) -> None:
    assert Call.of({"method": method, "path": path, "headers": []}, b"", Hints()).is_quick == quick


def test_quick_requests_are_routes(apps: list[Any]) -> None:
    assert {path for path, methods in apps[0].openapi()["paths"].items() if "post" in methods} >= QUICK_POSTS


async def test_settings_reach_all_replicas_or_none(replicas: LocalReplicas) -> None:
    async with client(replicas) as admin:
        try:
            answer = await admin.post("/v1/configure", params={"max_draft_tokens": 2})
            assert answer.json()["max_draft_tokens"] == 2
            assert replicas.kept == {"max_draft_tokens": "2"}
            assert (await admin.post("/v1/configure", params={"max_draft_tokens": 99})).status_code == 400
            assert replicas.kept == {"max_draft_tokens": "2"}
            engines = [app.state.shared.engine for app in replicas.apps]
            assert [engine.config.max_draft_tokens for engine in engines] == [2, 2]
        finally:
            await admin.post("/v1/configure", params={"max_draft_tokens": 7})


async def test_stats_and_metrics_are_those_of_every_replica(replicas: LocalReplicas) -> None:
    async with client(replicas) as admin:
        stats = (await admin.get("/v1/stats")).json()
        assert set(stats["replicas"]) == {"0", "1"}
        assert stats["replica"] == "0"
        other = (await admin.get("/v1/stats", params={"replica": "1"})).json()
        assert other["speculative_stats"]["drafter"] == "none" != stats["speculative_stats"]["drafter"]
        metrics = (await admin.get("/metrics")).text
        for name in ("0", "1"):
            assert f'vllm:num_requests_running{{model_name="parallm-demo",replica="{name}"}} 0.0' in metrics
        unknown = await admin.get("/v1/stats", params={"replica": "none"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "replica")
        assert metrics.count("# TYPE vllm:num_requests_running gauge") == 1
        assert "parallm:requests_lost_total 0.0" in metrics


async def test_a_client_that_leaves_frees_its_row(replicas: LocalReplicas) -> None:
    ingress = create_ingress(replicas, SETTINGS)
    body = json.dumps({**STREAMS[CHAT], "max_tokens": 4000, "ignore_eos": True}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"authorization", b"Bearer key")],
    }
    asked, gone = [{"type": "http.request", "body": body}], asyncio.Event()

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        gone.set()

    await ingress(scope, receive, send)
    engine = replicas.apps[1].state.shared.engine
    while engine.stats()["batching_stats"]["running"]:
        await asyncio.sleep(0.01)
    assert len(replicas.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_continued_near_the_replica_that_has_made_it(replicas: LocalReplicas, stream: bool) -> None:
    async with client(replicas) as asked:
        first = await asked.post("/v1/responses", json={"input": "hi", "max_output_tokens": 4, "stream": stream})
        body = pieces(first.text)[0]
        previous = body["response"]["id"] if stream else body["id"]
        await asked.post("/v1/responses", json={"input": "more", "previous_response_id": previous})
        await asked.post("/v1/responses", json={"input": "more", "previous_response_id": "resp_other"})
    assert [call.hints.near for call in replicas.calls] == ["", first.headers["x-parallm-replica"], ""]


async def test_without_replicas_health_says_so() -> None:
    async with client(Failing(ReplicaLost())) as asked:
        assert (await asked.get("/health")).status_code == 503
        assert (await asked.get("/v1/stats")).status_code == 503
