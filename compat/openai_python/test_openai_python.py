"""The official openai SDK for Python, as its documentation uses it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel, Field


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class GetWeather(BaseModel):
    """Get the current weather of a city."""

    city: str = Field(max_length=40)


@pytest.fixture
def client(served: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)


def hello() -> Any:
    return [{"role": "user", "content": "Hello!"}]


def weather() -> Any:
    return [{"role": "user", "content": "What is the weather in Paris?"}]


def test_the_stream_helper_ends_in_the_answer_that_was_streamed(client: openai.OpenAI, served: Any) -> None:
    with client.chat.completions.stream(model=served.model, messages=hello(), temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text != ""


def test_answers_parse_into_a_pydantic_model(client: openai.OpenAI, served: Any) -> None:
    answer = client.chat.completions.parse(
        model=served.model, messages=hello(), response_format=Person, temperature=0, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_streamed_answers_parse_too(client: openai.OpenAI, served: Any) -> None:
    with client.chat.completions.stream(
        model=served.model, messages=hello(), response_format=Person, temperature=0, max_tokens=200
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_tool_calls_parse_into_their_models(client: openai.OpenAI, served: Any) -> None:
    tool = pydantic_function_tool(GetWeather, name="get_weather")
    answer = client.chat.completions.parse(
        model=served.model, messages=weather(), tools=[tool], tool_choice="required", temperature=0, max_tokens=200
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, GetWeather)


def test_a_tool_loop_comes_to_an_answer(client: openai.OpenAI, served: Any) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    messages = weather()
    for _ in range(4):
        answer = client.chat.completions.create(
            model=served.model, messages=messages, tools=[tool], temperature=0, max_tokens=200
        )
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            assert call.type == "function"
            assert json.loads(call.function.arguments) == {"city": "Paris"}
            messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'})
    assert message.content
    assert answer.choices[0].finish_reason == "stop"


def test_raw_responses_have_the_headers(client: openai.OpenAI, served: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=served.model, messages=hello(), max_tokens=4, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().object == "chat.completion"


def test_a_streaming_response_can_be_read_line_by_line(client: openai.OpenAI, served: Any) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=served.model, messages=hello(), max_tokens=4, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_errors_are_the_sdks_own_classes(client: openai.OpenAI, served: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=hello())
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=served.model, messages=hello(), temperature=9)
    assert caught.value.param == "temperature"


def test_the_async_client_runs_many_at_once(served: Any) -> None:
    async def ask(sdk: openai.AsyncOpenAI, seed: int) -> str:
        stream = await sdk.chat.completions.create(
            model=served.model, messages=hello(), seed=seed, max_tokens=20, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as sdk:
            together = await asyncio.gather(*(ask(sdk, seed) for seed in range(6)))
            alone = [await ask(sdk, seed) for seed in range(6)]
        assert list(together) == alone
        return together

    assert all(asyncio.run(run()))


def test_completions_and_models(client: openai.OpenAI, served: Any) -> None:
    assert served.model in [model.id for model in client.models.list()]
    answer = client.completions.create(model=served.model, prompt=["1, 2, 3,", "The"], n=2, max_tokens=4, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_responses_stream_and_parse(client: openai.OpenAI, served: Any) -> None:
    with client.responses.stream(model=served.model, input="Hello!", temperature=0) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    parsed = client.responses.parse(
        model=served.model, input="Hello!", text_format=Person, temperature=0, max_output_tokens=200
    )
    assert isinstance(parsed.output_parsed, Person)
