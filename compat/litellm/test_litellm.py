"""LiteLLM's providers for OpenAI's, Anthropic's and Ollama's APIs: streams, tools, formats, its Responses API, errors.

Its own tables of models know nothing of this server, so each model is named as PROVIDER/MODEL with an `api_base`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel, Field

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PROVIDERS = ["openai", "hosted_vllm", "anthropic", "ollama_chat"]


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def common(served: Any, provider: str = "openai") -> dict[str, Any]:
    """What each call takes: LiteLLM adds the path of its provider to the base, for OpenAI's not the /v1."""
    base = served.url if provider in ("openai", "hosted_vllm", "text-completion-openai") else served.url[:-3]
    return {"model": f"{provider}/{served.model}", "api_base": base, "api_key": "none", "temperature": 0}


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_streams_what_it_gets_as_a_whole(served: Any, provider: str) -> None:
    body = common(served, provider) | {"messages": said("What is the capital of France?"), "max_tokens": 100}
    whole: Any = litellm.completion(**body)
    pieces: Any = list(litellm.completion(**body, stream=True, stream_options={"include_usage": True}))
    built: Any = litellm.stream_chunk_builder(pieces)
    assert "Paris" in whole.choices[0].message.content
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert (built.choices[0].finish_reason, whole.choices[0].finish_reason) == ("stop", "stop")
    assert built.usage.completion_tokens == whole.usage.completion_tokens > 0


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_tool_loop_comes_to_an_answer(served: Any, provider: str) -> None:
    messages = said("What is the weather in Paris?")
    body = common(served, provider) | {"messages": messages, "tools": [WEATHER], "max_tokens": 200}
    message: Any = litellm.completion(**body).choices[0].message
    [call] = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'}]
    pieces: Any = list(litellm.completion(**body, stream=True))
    assert "21" in litellm.stream_chunk_builder(pieces).choices[0].message.content


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic"])
def test_tool_calls_stream(served: Any, provider: str) -> None:
    body = common(served, provider) | {"messages": said("Hello!"), "tools": [WEATHER], "max_tokens": 200}
    pieces: Any = list(litellm.completion(**body, tool_choice="required", stream=True))
    answer: Any = litellm.stream_chunk_builder(pieces)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments).keys() == {"city"}
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_class_binds_the_answer(served: Any, provider: str) -> None:
    body = common(served, provider) | {"messages": said("Hello!"), "max_tokens": 200}
    answer: Any = litellm.completion(**body, response_format=Person)
    assert Person.model_validate_json(answer.choices[0].message.content)


def test_json_mode_answers_with_an_object(served: Any) -> None:
    body = common(served) | {"messages": said("Make a JSON object with the name Ana and the age 31.")}
    answer: Any = litellm.completion(**body, response_format={"type": "json_object"}, max_tokens=400)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_prompts_are_continued(served: Any) -> None:
    body = common(served, "text-completion-openai") | {"prompt": "1, 2, 3,", "max_tokens": 8}
    whole: Any = litellm.text_completion(**body)
    pieces: Any = list(litellm.text_completion(**body, stream=True))
    assert "4" in whole.choices[0].text
    assert "".join(piece.choices[0].text or "" for piece in pieces) == whole.choices[0].text


# LiteLLM passes Responses through to a server that has them, and for others makes chat completions of them.
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_responses_stream_and_call_tools(served: Any, provider: str) -> None:
    body = common(served, provider) | {"max_output_tokens": 200}
    tool = {"type": "function", **WEATHER["function"]}
    answer: Any = litellm.responses(**body, input="What is the weather in Paris?", tools=[tool])
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Paris"}
    kinds = [str(event.type.value) for event in litellm.responses(**body, input="Hello!", stream=True)]
    assert "response.output_text.delta" in kinds
    assert kinds[-1] == "response.completed"


def test_the_messages_api_is_there_too(served: Any) -> None:
    async def ask() -> Any:
        return await litellm.anthropic.messages.acreate(
            **common(served, "anthropic"), messages=said("What is the capital of France?"), max_tokens=50
        )

    answer: Any = asyncio.run(ask())
    assert "Paris" in answer["content"][0]["text"]


def test_errors_are_its_own_classes(served: Any) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**common(served) | {"model": "openai/no-such-model"}, messages=said("Hi"))
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**common(served) | {"temperature": 9}, messages=said("Hi"))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**common(served), messages=said("word " * 20000))
    with pytest.raises(litellm.NotFoundError, match="no embeddings"):
        litellm.embedding(model=f"openai/{served.model}", input=["Hi"], api_base=served.url, api_key="none")


def test_many_run_at_once(served: Any) -> None:
    async def ask(question: str) -> str:
        body = common(served) | {"messages": said(question), "max_tokens": 40}
        stream: Any = await litellm.acompletion(**body, stream=True)
        return "".join([piece.choices[0].delta.content or "" async for piece in stream])

    async def run() -> None:
        questions = ["Hello!", "What is the capital of France?", "Count from 3 to 9."]
        together = await asyncio.gather(*(ask(question) for question in questions))
        assert list(together) == [await ask(question) for question in questions]
        assert all(together)

    asyncio.run(run())
