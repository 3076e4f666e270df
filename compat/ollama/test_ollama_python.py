"""The official ollama client for Python, as its documentation uses it."""

from __future__ import annotations

import asyncio
from typing import Any

import ollama
import pytest
from pydantic import BaseModel, Field

GREEDY = {"temperature": 0}


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def get_weather(city: str) -> str:
    """Get the current weather of a city

    Args:
        city: The name of the city
    """
    return f'{{"city": "{city}", "temperature": 21}}'


@pytest.fixture
def client(served: Any) -> ollama.Client:
    return ollama.Client(host=root(served))


def root(served: Any) -> str:
    return str(served.url).removesuffix("/v1")


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_an_answer_streams_what_it_gets_as_a_whole(client: ollama.Client, served: Any) -> None:
    for question in ("Hello!", "What is the capital of France?"):
        whole = client.chat(served.model, messages=said(question), options=GREEDY)
        pieces = list(client.chat(served.model, messages=said(question), options=GREEDY, stream=True))
        assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content != ""
        assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].eval_count == whole.eval_count
        assert whole.total_duration
        assert whole.done_reason == pieces[-1].done_reason == "stop"


def test_thoughts_come_apart_from_the_answer(client: ollama.Client, served: Any) -> None:
    question = said("What is 123 + 345?")
    answer = client.chat(served.model, messages=question, think=True, options=GREEDY)
    assert answer.message.thinking
    assert "468" in (answer.message.content or "")
    assert not client.chat(served.model, messages=question, think=False, options=GREEDY).message.thinking


def test_a_python_function_is_called_and_answered(client: ollama.Client, served: Any) -> None:
    messages: list[Any] = said("What is the weather in Paris?")
    answer = client.chat(served.model, messages=messages, tools=[get_weather], options=GREEDY)
    messages.append(answer.message)
    for call in answer.message.tool_calls or []:
        assert dict(call.function.arguments) == {"city": "Paris"}
        messages.append({"role": "tool", "tool_name": call.function.name, "content": get_weather("Paris")})
    assert len(messages) == 3
    final = client.chat(served.model, messages=messages, tools=[get_weather], options=GREEDY)
    assert "21" in (final.message.content or "")


def test_a_format_binds_the_answer(client: ollama.Client, served: Any) -> None:
    options = {**GREEDY, "num_predict": 200}
    answer = client.chat(
        served.model, messages=said("Hello!"), format=Person.model_json_schema(), options=options
    ).message.content
    assert Person.model_validate_json(answer or "")


def test_prompts_are_continued(client: ollama.Client, served: Any) -> None:
    answer = client.generate(served.model, prompt="What is the capital of France?", options=GREEDY)
    assert "Paris" in (answer.response or "")
    pieces = client.generate(served.model, prompt="Once upon a time", raw=True, stream=True, options={"num_predict": 8})
    assert "".join(piece.response or "" for piece in pieces)


def test_the_model_is_found_under_the_name_that_is_listed(client: ollama.Client, served: Any) -> None:
    [first, *_] = client.list().models
    assert first.model
    assert client.chat(first.model, messages=said("Hi"), options=GREEDY).message.content
    shown = client.show(first.model)
    assert set(shown.capabilities or []) >= {"completion", "tools", "thinking"}
    assert any(name.endswith(".context_length") for name in shown.modelinfo or {})
    assert [model.model for model in client.ps().models] == [model.model for model in client.list().models]


def test_errors_say_what_is_wrong(client: ollama.Client, served: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="does not exist") as missing:
        client.chat("llama3", messages=said("Hi"))
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature"):
        list(client.chat(served.model, messages=said("Hi"), options={"temperature": 9}, stream=True))
    with pytest.raises(ollama.ResponseError, match="started with"):
        client.pull("llama3")


def test_the_async_client_runs_many_at_once(served: Any) -> None:
    async def ask(sdk: ollama.AsyncClient, question: str) -> str:
        pieces = await sdk.chat(served.model, messages=said(question), options=GREEDY, stream=True)
        return "".join([piece.message.content or "" async for piece in pieces])

    async def run() -> None:
        sdk = ollama.AsyncClient(host=root(served))
        questions = ["Hello!", "What is the capital of France?", "Count from 3 to 9."]
        together = await asyncio.gather(*(ask(sdk, question) for question in questions))
        assert list(together) == [await ask(sdk, question) for question in questions]
        assert all(together)

    asyncio.run(run())
