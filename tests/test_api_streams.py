"""Many clients at once, clients that leave, and text that is cut in the right place."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import assert_error
from support.servers import RunningServer, running_server

from parallm_openai.api.chat_answer import TokenOrigins
from parallm_openai.api.sse import DONE, Chunk, EventSource, until
from parallm_openai.settings import ServerSettings
from parallm_openai.text.output import OutputDelta

STORY: dict[str, Any] = {"model": "parallm-demo", "prompt": "Once upon a time", "ignore_eos": True}


async def read(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    text = ""
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text


def bodies(count: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    prompts = ["Once upon a time", "The capital of", "1, 2, 3,", "def ", "Zoë said: 你好", "A" * 300]
    made = []
    for number in range(count):
        body = STORY | {"prompt": rng.choice(prompts), "max_tokens": rng.randrange(5, 60)}
        body |= {"temperature": 0} if number % 2 else {"temperature": 1, "seed": number, "top_p": 0.9}
        made.append(body)
    return made


@pytest.mark.slow
def test_32_streams_that_join_over_time_get_what_each_gets_alone(server: RunningServer) -> None:
    wanted = bodies(32)
    with server.client as client:
        alone = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in wanted]

    async def together() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:

            async def later(body: dict[str, Any], delay: float) -> str:
                await asyncio.sleep(delay)
                return await read(client, body)

            long = asyncio.create_task(read(client, STORY | {"prompt": [7] * 4000, "max_tokens": 4}))
            texts = await asyncio.gather(*(later(body, index * 0.05) for index, body in enumerate(wanted)))
            await long
            return texts

    assert asyncio.run(together()) == alone


def test_a_client_that_leaves_a_stream_frees_its_row(server: RunningServer) -> None:
    with server.client as client:
        request = client.build_request("POST", "/v1/completions", json=STORY | {"max_tokens": 4000, "stream": True})
        response = client.send(request, stream=True)
        lines = response.iter_lines()
        next(lines)
        assert server.active() == 1
        response.close()
        server.wait_until_idle()


def test_a_client_that_leaves_a_plain_request_frees_its_rows(server: RunningServer) -> None:
    with server.client as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=STORY | {"max_tokens": 4000, "n": 3}, timeout=0.5)
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_never_leak_a_part_of_themselves(server: RunningServer, stream: bool) -> None:
    body = STORY | {"max_tokens": 60, "temperature": 0}
    with server.client as client:
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert len(whole) > 46
        for start in range(3, 40, 7):
            stop = whole[start : start + 6]
            asked = body | {"stop": ["never this", stop]}
            if stream:
                text = asyncio.run(_read_alone(server, asked))
            else:
                answer = client.post("/v1/completions", json=asked).json()
                text = answer["choices"][0]["text"]
                assert answer["choices"][0]["finish_reason"] == "stop"
                assert answer["usage"]["completion_tokens"] <= 60
            assert text == whole[: whole.find(stop)]


async def _read_alone(server: RunningServer, body: dict[str, Any]) -> str:
    async with httpx.AsyncClient(base_url=server.url, timeout=240) as client:
        return await read(client, body)


def test_a_choice_of_a_seeded_request_is_repeatable_and_differs_from_its_siblings(server: RunningServer) -> None:
    body = STORY | {"max_tokens": 30, "n": 3, "seed": 11, "temperature": 1.5}
    with server.client as client:
        first, second = (
            [c["text"] for c in client.post("/v1/completions", json=body).json()["choices"]] for _ in range(2)
        )
        single = client.post("/v1/completions", json=body | {"n": 1}).json()["choices"][0]["text"]
    assert first == second
    assert len(set(first)) == 3
    assert first[0] == single


def test_no_chunk_holds_half_a_character(server: RunningServer) -> None:
    with server.client as client:
        encoded = client.post(
            "/v1/completions",
            json=STORY | {"prompt": "é日本🙂", "max_tokens": 0, "echo": True, "logprobs": 0},
        ).json()["choices"][0]
    assert encoded["text"] == "é日本🙂"
    assert any(token.startswith("bytes:") for token in encoded["logprobs"]["tokens"])


def test_a_request_that_takes_too_long_is_ended(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(request_timeout=0.3, graceful_timeout=1))
    with server.client as client:
        response = client.post("/v1/completions", json=STORY | {"max_tokens": 8000})
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        lines = client.post("/v1/completions", json=STORY | {"max_tokens": 8000, "stream": True}).text.splitlines()
    *_, last, done = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(last)["error"]["code"] == "timeout"
    assert done == "[DONE]"
    server.wait_until_idle()


async def test_time_runs_out_for_a_stream_that_has_nothing_to_say_too() -> None:
    ended = False

    async def silent() -> AsyncIterator[int]:
        nonlocal ended
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    timed = until(asyncio.get_running_loop().time() + 0.05, silent())
    assert await anext(timed) == 1
    with pytest.raises(TimeoutError):
        await anext(timed)
    assert ended


@pytest.mark.server
def test_stopping_the_server_lets_streams_finish() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_server())
        with server.client as client:
            request = client.build_request("POST", "/v1/completions", json=STORY | {"max_tokens": 200, "stream": True})
            response = client.send(request, stream=True)
            lines = response.iter_lines()
            next(lines)
            stopping = threading.Thread(target=stack.pop_all().close)
            stopping.start()
            rest = list(lines)
        stopping.join(20)
        assert not stopping.is_alive()
    assert any("[DONE]" in line for line in rest)


async def test_a_stream_that_is_cut_off_before_it_began_leaves_its_owner() -> None:
    left = asyncio.Event()

    @asynccontextmanager
    async def owner() -> AsyncIterator[None]:
        try:
            yield
        finally:
            left.set()

    async def chunks() -> AsyncIterator[Chunk]:
        yield DONE

    async def gone(*message: object) -> Any:
        raise OSError("the client has gone")

    response = EventSource(chunks(), ServerSettings(), owner())
    with pytest.raises((OSError, ExceptionGroup)):
        await response({"type": "http", "method": "POST"}, gone, gone)
    assert left.is_set()


def test_chunks_tell_how_many_of_their_tokens_were_drafted(server: RunningServer) -> None:
    """They add up to the usage, which also counts the token that ended the answer."""
    body = {
        "model": server.model.name,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 60,
        "return_speculative": True,
    }
    # Left to itself, the server may find that drafts do not pay at present.
    with (
        server.configured(draft_length=3),
        server.client as client,
        client.stream("POST", "/v1/chat/completions", json=body) as lines,
    ):
        data = [json.loads(line[6:]) for line in lines.iter_lines() if line.startswith("data: {")]
    usage = data[-1]["usage"]
    choices = [choice for chunk in data for choice in chunk["choices"]]
    counts = [choice["speculative"] for choice in choices]
    assert all(0 <= each["accepted"] <= each["tokens"] for each in counts)
    ended = choices[-1]["finish_reason"] == "stop"
    assert sum(each["tokens"] for each in counts) == usage["completion_tokens"] - ended
    accepted = usage["completion_tokens_details"]["accepted_prediction_tokens"]
    assert sum(each["accepted"] for each in counts) == accepted > 0


@given(st.data())
def test_each_chunk_counts_the_tokens_since_the_one_before(data: st.DataObject) -> None:
    """Compared with a list of all tokens, cut where the events came."""
    origins = TokenOrigins()
    found: list[dict[str, int]] = []
    drafted: list[bool] = []
    cuts: list[int] = []
    for _ in range(data.draw(st.integers(1, 5))):
        size = data.draw(st.integers(0, 6))
        accepted = data.draw(st.integers(0, size))
        read = sorted(data.draw(st.lists(st.integers(0, size), max_size=4)))
        found += origins.of(OutputDelta(read=tuple(read), tokens=(1,) * size, accepted=accepted))
        cuts += [len(drafted) + each for each in read]
        drafted += [at < accepted for at in range(size)]
    parts = [drafted[start:end] for start, end in pairwise([0, *cuts])]
    assert found == [{"tokens": len(part), "accepted": sum(part)} for part in parts]


def test_counts_of_drafted_tokens_come_with_streams_alone(server: RunningServer) -> None:
    body = {"model": server.model.name, "messages": [{"role": "user", "content": "Hi"}], "return_speculative": True}
    with server.client as client:
        message = assert_error(client.post("/v1/chat/completions", json=body), 400, "invalid_value")
    assert "return_speculative" in message
