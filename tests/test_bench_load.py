"""What a load sends, whom it waits for, and what its clients make of answers of all kinds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from parallm_openai.bench.load import STANDARD, Load, Request, Sampling
from parallm_openai.bench.run import run_load
from parallm_openai.bench.samples import Sample
from parallm_openai.bench.servers import HttpClient, HttpTarget
from parallm_openai.bench.targets import Client, RequestFailed, Way

PEER = HttpTarget("peer", "http://peer", "some-model")
SAMPLED = Sampling(0.7, top_p=0.95, top_k=20, min_p=0.1)
USAGE = {"completion_tokens": 3, "prompt_tokens": 5}


def test_long_prompts_come_last_of_those_that_start_together() -> None:
    requests = Load(32, concurrency=16, long_prompts=2, long_words=500, prompt_words=(8, 12)).requests()
    assert [place for place, request in enumerate(requests) if request.long] == [14, 15]
    lengths = [len(request.prompt.split()) for request in requests]
    assert lengths[14:16] == [500, 500]
    assert all(8 <= length <= 12 for length in lengths[:14] + lengths[16:])


def test_loads_of_other_text_weigh_the_same_and_share_no_prompt() -> None:
    load = Load(20, concurrency=4, long_prompts=1, long_words=100, seed=3)
    mine, other = load.requests(), replace(load, text_seed=1).requests()
    assert [len(each.prompt.split()) for each in mine] == [len(each.prompt.split()) for each in other]
    assert not {each.prompt.split()[0] for each in mine} & {each.prompt.split()[0] for each in other}
    assert mine == load.requests()


def test_a_body_has_the_fields_that_were_given_and_no_others() -> None:
    plain = {"model": "some-model", "prompt": "p", "max_tokens": 4, "temperature": 0.0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert PEER.body(Request("p", 4)) == plain | streamed
    whole = replace(PEER, way="whole")
    given = {"temperature": 0.7, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "stream": False}
    assert whole.body(Request("p", 4, SAMPLED)) == plain | given
    assert PEER.body(Request("p", 4, Sampling(logprobs=5)))["logprobs"] == 5


def test_ways_of_sampling_are_named_in_short() -> None:
    assert list(map(str, STANDARD)) == ["greedy", "T=0.7 top-p 0.95 top-k 20", "T=1", "greedy, logprobs 5"]


# Clients


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


def text(*pieces: str) -> list[dict[str, Any]]:
    return [{"choices": [{"text": piece}]} for piece in pieces]


def answered(
    handler: Callable[[httpx.Request], httpx.Response],
    sampling: Sampling = STANDARD[0],
    *,
    way: Way = "streamed",
    times: int = 1,
) -> list[Sample]:
    """What the client notes of so many requests, one after another, to a server that answers like this."""

    async def ask() -> list[Sample]:
        target = replace(PEER, way=way)
        async with httpx.AsyncClient(base_url=target.url, transport=httpx.MockTransport(handler)) as http:
            client = HttpClient(http, target)
            samples = [Sample() for _ in range(times)]
            for sample in samples:
                sample.start()
                await client.answer(Request("p", 3, sampling), sample)
                sample.end()
            return samples

    return asyncio.run(ask())


def test_chunks_with_text_are_timed_and_tokens_are_those_that_the_server_counts() -> None:
    content = stream(*text("a", "", "b"), {"choices": [], "usage": USAGE})
    [sample] = answered(lambda request: httpx.Response(200, content=content))
    assert (len(sample.chunks), sample.tokens, sample.prompt_tokens, sample.error) == (2, 3, 5, None)
    [uncounted] = answered(lambda request: httpx.Response(200, content=stream(*text("a", "b"))))
    assert (uncounted.tokens, uncounted.prompt_tokens) == (2, None)


def test_a_whole_answer_has_no_chunks() -> None:
    answer = {"choices": [{"text": "abc"}], "usage": USAGE}
    [sample] = answered(lambda request: httpx.Response(200, json=answer), way="whole")
    assert (sample.chunks, sample.tokens, sample.longest_gap, sample.error) == ([], 3, None, None)


def test_an_answer_without_a_token_is_an_error() -> None:
    [sample] = answered(lambda request: httpx.Response(200, content=stream()))
    assert sample.error == "the answer has no tokens"


def test_log_probabilities_are_asked_for_in_the_form_that_the_server_takes() -> None:
    asked: list[Any] = []

    def chat_like(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append((body["logprobs"], body.get("top_logprobs")))
        if body["logprobs"] is not True:
            return httpx.Response(400, json={"error": "logprobs must be of type bool"})
        return httpx.Response(200, content=stream(*text("a")))

    samples = answered(chat_like, Sampling(logprobs=5), times=3)
    assert [sample.error for sample in samples] == [None] * 3
    assert asked == [(5, None), (True, 5), (True, 5), (True, 5)]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (httpx.Response(400, text="no such field"), "400: no such field"),
        (httpx.Response(429, text="busy"), "429: busy"),
        (httpx.Response(200, content=stream({"error": "out of memory"})), "out of memory"),
        (httpx.Response(200, content=b"data: {not json\n\n"), "not a completion"),
        (httpx.Response(200, content=stream({"object": "pong"})), "not a completion"),
    ],
)
@pytest.mark.parametrize("sampling", [STANDARD[0], Sampling(logprobs=5)])
def test_a_request_fails_with_what_the_server_says(answer: httpx.Response, cause: str, sampling: Sampling) -> None:
    with pytest.raises(RequestFailed, match=cause):
        answered(lambda request: httpx.Response(answer.status_code, content=answer.content), sampling)


def test_a_server_that_hangs_up_is_the_cause() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("connection reset")

    with pytest.raises(RequestFailed, match="ReadError: connection reset"):
        answered(gone)


# Runs


@dataclass
class Scripted:
    """A target whose short answers begin and then wait for `release`, and which notes what comes in which order."""

    short: Callable[[Scripted, Sample], Awaitable[None]]
    release: asyncio.Event = field(default_factory=asyncio.Event)
    order: list[str] = field(default_factory=list)
    name: str = "scripted"
    way: Way = "streamed"
    shares_process: bool = False
    streams: bool = True

    def prepare(self) -> None: ...

    def drafted(self) -> tuple[int, int]:
        return 0, 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        yield self

    async def answer(self, request: Request, sample: Sample) -> None:
        if request.long:
            self.order.append("long")
            self.release.set()
            sample.see_text()
        else:
            await self.short(self, sample)


async def answer_until_released(target: Scripted, sample: Sample) -> None:
    # Late enough for a long prompt that does not wait to come first.
    await asyncio.sleep(0.01)
    sample.see_text()
    target.order.append("begun")
    await target.release.wait()
    sample.see_text()


async def fail(target: Scripted, sample: Sample) -> None:
    raise RequestFailed("refused")


def test_a_long_prompt_meets_streams_that_run() -> None:
    target = Scripted(answer_until_released)
    measured = run_load(target, Load(4, concurrency=4, long_prompts=1, long_words=2))
    assert target.order == ["begun"] * 3 + ["long"]
    assert measured.long is not None
    assert (measured.errors, measured.short.requests, measured.long.requests) == (0, 3, 1)


def test_a_long_prompt_does_not_wait_for_what_has_failed() -> None:
    measured = run_load(Scripted(fail), Load(4, concurrency=4, long_prompts=1, long_words=2))
    assert (measured.requests, measured.errors, measured.first_error) == (4, 3, "refused")


def test_whole_answers_do_not_hold_a_long_prompt_back() -> None:
    """Nobody could say when they begin."""

    async def wait(target: Scripted, sample: Sample) -> None:
        await target.release.wait()
        sample.tokens = 1

    measured = run_load(Scripted(wait, streams=False), Load(4, concurrency=4, long_prompts=1, long_words=2))
    assert measured.errors == 0
