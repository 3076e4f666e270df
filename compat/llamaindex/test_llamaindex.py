"""LlamaIndex's `OpenAILike` and `OpenAILikeResponses`: chat, streams, completions, an agent, structured answers.

Streamed objects are asked for by their schema: with tools, LlamaIndex leaves it to the model whether to call one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
from pydantic import BaseModel, Field


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    return f'{{"city": "{city}", "temperature": 21}}'


@pytest.fixture
def llm(served: Any) -> Any:
    return like(served)


def like(served: Any, **more: Any) -> Any:
    kept = {"is_chat_model": True, "is_function_calling_model": True, "temperature": 0, "max_tokens": 200}
    return OpenAILike(model=served.model, api_base=served.url, api_key="none", max_retries=0, **kept | more)


def responses(served: Any) -> Any:
    return OpenAILikeResponses(
        model=served.model,
        api_base=served.url,
        api_key="none",
        max_retries=0,
        is_function_calling_model=True,
        temperature=0,
        max_output_tokens=200,
    )


def said(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


@pytest.mark.parametrize("surface", [like, responses])
def test_an_answer_streams_what_it_gets_as_a_whole(served: Any, surface: Any) -> None:
    llm = surface(served)
    whole = llm.chat(said("What is the capital of France?"))
    pieces = list(llm.stream_chat(said("What is the capital of France?")))
    assert "Paris" in whole.message.content
    assert len(pieces) > 1
    assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].message.content == whole.message.content


def test_prompts_are_continued(served: Any) -> None:
    llm = like(served, is_chat_model=False, is_function_calling_model=False, max_tokens=8)
    whole = llm.complete("1, 2, 3,").text
    assert "4" in whole
    assert [*llm.stream_complete("1, 2, 3,")][-1].text == whole


def test_tools_are_called_with_what_they_take(llm: Any) -> None:
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], user_msg="What is the weather in Paris?")
    [call] = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})
    *_, last = llm.stream_chat_with_tools([tool], user_msg="Hello!", tool_required=True)
    assert [call.tool_name for call in llm.get_tool_calls_from_response(last)] == ["get_weather"]


@pytest.mark.parametrize("surface", [like, responses])
def test_an_agent_calls_a_tool_and_answers(served: Any, surface: Any) -> None:
    async def run() -> tuple[list[Any], str]:
        agent = FunctionAgent(tools=[get_weather], llm=surface(served))
        handler = agent.run(user_msg="What is the weather in Paris?")
        results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
        return results, str(await handler)

    results, answer = asyncio.run(run())
    assert [(result.tool_name, result.tool_kwargs) for result in results] == [("get_weather", {"city": "Paris"})]
    assert "21" in answer


@pytest.mark.parametrize("by_schema", [True, False], ids=["response_format", "a forced tool"])
def test_answers_are_objects_of_a_class(served: Any, by_schema: bool) -> None:
    structured = like(served, should_use_structured_outputs=by_schema).as_structured_llm(Person)
    assert isinstance(structured.complete("Hello!").raw, Person)


def test_objects_are_streamed_as_they_grow(served: Any) -> None:
    structured = like(served, should_use_structured_outputs=True).as_structured_llm(Person)
    pieces = [piece.raw for piece in structured.stream_chat(said("Hello!"))]
    assert len(pieces) > 1
    assert isinstance(pieces[-1], Person)


def test_many_run_at_once(llm: Any) -> None:
    questions = ["Hello!", "What is the capital of France?", "Count from 3 to 9."]

    async def ask(question: str) -> str:
        return "".join([piece.delta or "" async for piece in await llm.astream_chat(said(question))])

    async def run() -> None:
        together = await asyncio.gather(*(ask(question) for question in questions))
        assert list(together) == [(await llm.achat(said(question))).message.content for question in questions]
        assert all(together)

    asyncio.run(run())
