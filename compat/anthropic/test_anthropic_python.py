"""The official anthropic SDK for Python, as its documentation uses it."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, Field, TypeAdapter
from support.sdk_types import assert_exact

WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# The SDK has no parameter for it any more; servers still take it.
GREEDY: Any = {"temperature": 0}
THINK: Any = {"type": "enabled", "budget_tokens": 1024}


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


@pytest.fixture
def client(served: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=root(served), api_key="none", max_retries=0)


def root(served: Any) -> str:
    return str(served.url).removesuffix("/v1")


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


CASES: dict[str, dict[str, Any]] = {
    "text": {"messages": said("Hello!")},
    "a call": {"messages": said("What is the weather in Paris?"), "tools": [WEATHER]},
    "thoughts": {"messages": said("What is 123 + 345?"), "thinking": THINK},
    "cut short": {"messages": said("Tell me a story."), "max_tokens": 3},
    "a stop sequence": {"messages": said("What is the capital of France?"), "stop_sequences": ["France"]},
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_has_exactly_the_fields_and_types_of_the_sdk(served: Any, case: str) -> None:
    body = {"model": served.model, "max_tokens": 200, "temperature": 0} | CASES[case]
    url = f"{served.url}/messages"
    assert_exact(Message, httpx.post(url, json=body, timeout=60).json())
    frames = httpx.post(url, json=body | {"stream": True}, timeout=60).text.split("\n\n")
    data = [line.removeprefix("data: ") for frame in frames for line in frame.split("\n") if line.startswith("data: ")]
    kinds: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    events = [kinds.validate_json(each) for each in data if each != '{"type":"ping"}']
    assert [event.type for event in events[-2:]] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("case", CASES)
def test_the_stream_helper_ends_in_the_answer_that_comes_as_a_whole(
    client: anthropic.Anthropic, served: Any, case: str
) -> None:
    body: Any = {"model": served.model, "max_tokens": 200, "extra_body": GREEDY} | CASES[case]
    whole = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        told = stream.get_final_message()
    assert told.stop_reason == whole.stop_reason
    assert told.stop_sequence == whole.stop_sequence
    assert told.usage.output_tokens == whole.usage.output_tokens
    assert [block.type for block in told.content] == [block.type for block in whole.content]
    for one, other in zip(told.content, whole.content, strict=True):
        shown = {"text", "thinking", "signature", "name", "input"}
        assert one.model_dump(include=shown) == other.model_dump(include=shown)


def test_text_streams_as_text(client: anthropic.Anthropic, served: Any) -> None:
    with client.messages.stream(
        model=served.model, max_tokens=50, messages=said("Hello!"), extra_body=GREEDY
    ) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].type == "text"
    assert "".join(pieces) == final.content[0].text != ""


def test_a_tool_loop_comes_to_an_answer(client: anthropic.Anthropic, served: Any) -> None:
    messages = said("What is the weather in Paris?")
    for _ in range(4):
        answer = client.messages.create(
            model=served.model, max_tokens=200, messages=messages, tools=[WEATHER], extra_body=GREEDY
        )
        messages.append({"role": "assistant", "content": answer.content})
        if answer.stop_reason != "tool_use":
            break
        results = []
        for block in answer.content:
            if block.type == "tool_use":
                assert block.input == {"city": "Paris"}
                results.append({"type": "tool_result", "tool_use_id": block.id, "content": '{"temperature": 21}'})
        messages.append({"role": "user", "content": results})
    assert answer.stop_reason == "end_turn"
    assert "21" in "".join(block.text for block in answer.content if block.type == "text")


def test_answers_parse_into_a_pydantic_model(client: anthropic.Anthropic, served: Any) -> None:
    answer = client.messages.parse(
        model=served.model, max_tokens=200, messages=said("Hello!"), output_format=Person, extra_body=GREEDY
    )
    assert isinstance(answer.parsed_output, Person)


def test_the_beta_client_gets_the_same(client: anthropic.Anthropic, served: Any) -> None:
    body: Any = {"model": served.model, "max_tokens": 50, "messages": said("Hello!"), "extra_body": GREEDY}
    plain = client.messages.create(**body)
    beta = client.beta.messages.create(
        **body, betas=["context-management-2025-06-27"], context_management={"edits": []}
    )
    assert beta.content[0].model_dump(include={"text"}) == plain.content[0].model_dump(include={"text"})


def test_tokens_are_counted_as_they_are_read(client: anthropic.Anthropic, served: Any) -> None:
    body: Any = {"model": served.model, "messages": said("What is the weather in Paris?"), "tools": [WEATHER]}
    counted = client.messages.count_tokens(**body).input_tokens
    usage = client.messages.create(**body, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors_are_the_sdks_own_classes(client: anthropic.Anthropic, served: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match=served.model) as missing:
        client.messages.create(model="no-such-model", max_tokens=1, messages=said("Hi"))
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model=served.model, max_tokens=1, messages=said("Hi"), extra_body={"temperature": 9})
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        client.messages.create(model=served.model, max_tokens=1, messages=[{"role": "user", "content": [image]}])


def test_the_async_client_runs_many_at_once(served: Any) -> None:
    async def ask(sdk: anthropic.AsyncAnthropic, question: str) -> str:
        async with sdk.messages.stream(
            model=served.model, max_tokens=40, messages=said(question), extra_body=GREEDY
        ) as stream:
            return await stream.get_final_text()

    async def run() -> None:
        questions = ["Hello!", "What is the capital of France?", "Tell me a story.", "Count from 3 to 9."]
        async with anthropic.AsyncAnthropic(base_url=root(served), api_key="none") as sdk:
            together = await asyncio.gather(*(ask(sdk, question) for question in questions))
            alone = [await ask(sdk, question) for question in questions]
        assert list(together) == alone
        assert all(together)

    asyncio.run(run())
