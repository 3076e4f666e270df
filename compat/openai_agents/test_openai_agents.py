"""OpenAI's Agents SDK on its models for Responses and Chat Completions: tools, handoffs, types, sessions, streams."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel, Field

# Traces go to OpenAI.
set_tracing_disabled(True)

SURFACES = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    return f'{{"city": "{city}", "temperature": 21}}'


WEATHER = function_tool(get_weather)


@pytest.fixture(params=SURFACES)
def model(served: Any, request: pytest.FixtureRequest) -> Any:
    sdk = openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0)
    return SURFACES[request.param](served.model, sdk)


def agent(model: Any, name: str = "Max", **more: Any) -> Any:
    settings = ModelSettings(temperature=0, max_tokens=300, tool_choice=more.pop("tool_choice", None))
    return Agent(name=name, model=model, model_settings=settings, **more)


def kinds(result: Any) -> list[str]:
    return [item.type for item in result.new_items]


def test_an_agent_calls_a_tool_and_answers(model: Any) -> None:
    result = Runner.run_sync(agent(model, tools=[WEATHER]), "What is the weather in Paris?")
    assert kinds(result) == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    assert result.new_items[0].raw_item.arguments.replace(" ", "") == '{"city":"Paris"}'
    assert "21" in result.final_output
    assert result.context_wrapper.usage.requests == 2
    assert result.context_wrapper.usage.output_tokens > 0


def test_a_run_streams_its_calls_and_its_answer(model: Any) -> None:
    async def run() -> tuple[list[str], str, Any]:
        result = Runner.run_streamed(agent(model, tools=[WEATHER]), "What is the weather in Paris?")
        events = [event async for event in result.stream_events()]
        told = [event.data for event in events if event.type == "raw_response_event"]
        text = "".join(each.delta for each in told if each.type == "response.output_text.delta")
        return [event.name for event in events if event.type == "run_item_stream_event"], text, result

    names, text, result = asyncio.run(run())
    assert names == ["tool_called", "tool_output", "message_output_created"]
    assert text == result.final_output
    assert "21" in text


def test_an_agent_hands_over_to_another(model: Any) -> None:
    expert = agent(model, "Expert", handoff_description="Knows the weather", tools=[WEATHER])
    # The model has never seen a handoff, so it is made to call one of the tools, of which there is one.
    first = agent(model, "First", handoffs=[expert], tool_choice="required")
    result = Runner.run_sync(first, "What is the weather in Paris?")
    assert kinds(result)[:2] == ["handoff_call_item", "handoff_output_item"]
    assert result.last_agent.name == "Expert"
    assert result.final_output


def test_an_answer_has_the_type_that_was_asked_for(model: Any) -> None:
    result = Runner.run_sync(agent(model, output_type=Person), "Hello!")
    assert isinstance(result.final_output, Person)


def test_typed_answers_and_tools_go_together(model: Any) -> None:
    # Left to itself, the bundled model would call the tool again and again.
    made = agent(model, tools=[WEATHER], output_type=Person, tool_choice="none")
    result = Runner.run_sync(made, "What is the weather in Paris?")
    assert kinds(result) == ["message_output_item"]
    assert isinstance(result.final_output, Person)


def test_a_session_keeps_what_was_said(model: Any) -> None:
    session = SQLiteSession("mine")
    first = Runner.run_sync(agent(model), "What is the capital of France?", session=session)
    second = Runner.run_sync(agent(model), "And of Spain?", session=session)
    assert "Paris" in first.final_output
    assert len(asyncio.run(session.get_items())) == 4
    assert second.context_wrapper.usage.input_tokens > first.context_wrapper.usage.total_tokens


def test_a_dialogue_goes_on_from_a_stored_answer(served: Any) -> None:
    sdk = openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0)
    made = agent(OpenAIResponsesModel(served.model, sdk))
    first = Runner.run_sync(made, "What is the capital of France?")
    assert first.last_response_id
    second = Runner.run_sync(made, "And of Spain?", previous_response_id=first.last_response_id)
    assert second.context_wrapper.usage.input_tokens > first.context_wrapper.usage.total_tokens
