"""Every answer has exactly the fields and types of the openai SDK's own models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.sdk_types import assert_exact
from support.servers import RunningServer

CHAT: dict[str, Any] = {
    "model": "parallm-demo",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}


def stream(server: RunningServer, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with server.client as client, client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


def post(server: RunningServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with server.client as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    "more", [{}, {"logprobs": True, "top_logprobs": 3}, {"n": 3, "seed": 1}, {"max_tokens": 1}, {"stop": "capital"}]
)
def test_chat(server: RunningServer, more: dict[str, Any]) -> None:
    answer = post(server, "/v1/chat/completions", CHAT | more)
    assert_exact(ChatCompletion, answer)
    assert [choice["index"] for choice in answer["choices"]] == list(range(more.get("n", 1)))
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}])
def test_chat_chunks_come_in_openais_order(server: RunningServer, usage: bool, more: dict[str, Any]) -> None:
    body = CHAT | more | ({"stream_options": {"include_usage": True}} if usage else {})
    chunks = stream(server, "/v1/chat/completions", body)
    for chunk in chunks:
        assert_exact(ChatCompletionChunk, chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    if usage:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        chunks = chunks[:-1]
    else:
        assert all("usage" not in chunk for chunk in chunks)
    for index in range(more.get("n", 1)):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[0]["delta"]["content"] == ""
        assert own[-1]["delta"] == {}
        assert [c["finish_reason"] for c in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == "stop"
        assert "".join(c["delta"].get("content", "") for c in own) == "The capital of France is Paris."


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 0},
        {"n": 2, "best_of": 3},
        {"prompt": ["One", "Two, three"], "n": 2},
        {"prompt": [5, 6, 7]},
        {"prompt": [[5, 6], [7]]},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ],
)
def test_completions(server: RunningServer, more: dict[str, Any]) -> None:
    body = {"model": "parallm-demo", "prompt": "Once upon a time", "max_tokens": 5, "seed": 3} | more
    answer = post(server, "/v1/completions", body)
    # The type has no room for the null that precedes a prompt's first token; OpenAI sends one all the same.
    if more.get("echo") and "logprobs" in more:
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        logprobs["token_logprobs"][0] = 0.0
        logprobs["top_logprobs"][0] = {}
    assert_exact(Completion, answer)
    streamed = body | {"best_of": None}
    chunks = stream(server, "/v1/completions", streamed | {"stream_options": {"include_usage": True}})
    if "best_of" not in more:
        for index, choice in enumerate(answer["choices"]):
            own = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == index]
            assert "".join(c["text"] for c in own) == choice["text"]
            assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert chunks[-1]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


def test_models(server: RunningServer) -> None:
    with server.client as client:
        [listed] = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/parallm-demo").json() == listed
    # Where clients of other servers look for it.
    assert listed.pop("max_model_len") == listed.pop("context_length") == server.engine.context_length
    assert_exact(Model, listed)


def test_scores_of_a_prompt_agree_with_its_own_tokens(server: RunningServer) -> None:
    """What evaluation harnesses rely on: offsets cut the text into tokens, and an argmax token's logprob is the top."""
    answer = post(
        server,
        "/v1/completions",
        {
            "model": "parallm-demo",
            "prompt": "The capital of France is Paris. Zoë 日本",
            "max_tokens": 0,
            "echo": True,
            "logprobs": 1,
        },
    )
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("The capital of France")
    assert answer["usage"]["completion_tokens"] == 0
    equal = 0
    for token, logprob, top in zip(
        logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
    ):
        assert top[token] == logprob
        equal += max(top.values()) == logprob
    assert equal > 3
    ascii_part = [
        (token, offset)
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        if offset < 25
    ]
    for token, offset in ascii_part:
        assert choice["text"][offset : offset + len(token)] == token


def test_the_sdk_reads_everything(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert client.models.list().data[0].id == "parallm-demo"
    answer = client.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The capital of France is Paris."
    assert client.completions.create(model="parallm-demo", prompt="Once upon", max_tokens=4).choices[0].text
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-9")
    assert missing.value.code == "model_not_found"
    with client.chat.completions.stream(**CHAT) as events:
        assert events.get_final_completion().choices[0].message.content == "The capital of France is Paris."


def test_the_async_sdk_reads_streams_side_by_side(server: RunningServer) -> None:
    async def ask(client: openai.AsyncOpenAI) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(**CHAT, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client) for _ in range(8)))

    assert set(asyncio.run(all_of_them())) == {"The capital of France is Paris."}
