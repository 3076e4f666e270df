"""pydantic-ai's models for Chat Completions, Responses and Messages: agents with tools, typed answers, streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

GREEDY = ModelSettings(temperature=0, max_tokens=300)
SURFACES = ["chat", "responses", "messages"]


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


def model(served: Any, surface: str) -> Any:
    if surface == "messages":
        provider = AnthropicProvider(base_url=served.url.removesuffix("/v1"), api_key="none")
        # By its name, pydantic-ai does not know what the model can do.
        return AnthropicModel(served.model, provider=provider, profile=ModelProfile(supports_json_schema_output=True))
    kind = OpenAIChatModel if surface == "chat" else OpenAIResponsesModel
    return kind(served.model, provider=OpenAIProvider(base_url=served.url, api_key="none"))


def calls(result: Any) -> list[tuple[str, dict[str, Any]]]:
    parts = [part for message in result.all_messages() for part in message.parts if isinstance(part, ToolCallPart)]
    return [(part.tool_name, part.args_as_dict()) for part in parts]


def weather_agent(served: Any, surface: str) -> Any:
    agent: Any = Agent(model(served, surface), model_settings=GREEDY)

    def get_weather(city: str) -> str:
        """Get the current weather of a city"""
        return f'{{"city": "{city}", "temperature": 21}}'

    agent.tool_plain(get_weather)
    return agent


@pytest.mark.parametrize("surface", SURFACES)
def test_an_answer_streams_what_it_gets_as_a_whole(served: Any, surface: str) -> None:
    agent = Agent(model(served, surface), model_settings=GREEDY)

    async def run() -> tuple[list[str], Any]:
        async with agent.run_stream("What is the capital of France?") as streamed:
            pieces = [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]
            return pieces, streamed.usage

    whole = agent.run_sync("What is the capital of France?")
    pieces, usage = asyncio.run(run())
    assert "Paris" in whole.output
    assert len(pieces) > 1
    assert "".join(pieces) == whole.output
    assert (usage() if callable(usage) else usage).output_tokens > 0


@pytest.mark.parametrize("surface", SURFACES)
def test_an_agent_calls_a_tool_and_answers(served: Any, surface: str) -> None:
    result = weather_agent(served, surface).run_sync("What is the weather in Paris?")
    assert calls(result) == [("get_weather", {"city": "Paris"})]
    assert "21" in result.output


@pytest.mark.parametrize("surface", SURFACES)
def test_an_agent_streams_its_calls_and_its_answer(served: Any, surface: str) -> None:
    async def run() -> Any:
        async with weather_agent(served, surface).run_stream("What is the weather in Paris?") as streamed:
            output = await streamed.get_output()
            return output, calls(streamed)

    output, made = asyncio.run(run())
    assert made == [("get_weather", {"city": "Paris"})]
    assert "21" in output


@pytest.mark.parametrize("kind", [NativeOutput, ToolOutput])
@pytest.mark.parametrize("surface", SURFACES)
def test_an_answer_has_the_type_that_was_asked_for(served: Any, surface: str, kind: Any) -> None:
    agent: Any = Agent(model(served, surface), output_type=kind(Person), model_settings=GREEDY)
    assert isinstance(agent.run_sync("Hello!").output, Person)

    async def run() -> list[Any]:
        async with agent.run_stream("Hello!") as streamed:
            return [piece async for piece in streamed.stream_output(debounce_by=None)]

    assert isinstance(asyncio.run(run())[-1], Person)


# The server is asked for an object, and sees no more of the class than words.
@pytest.mark.parametrize("surface", ["chat", "responses"])
def test_an_object_can_be_asked_for_in_words(served: Any, surface: str) -> None:
    agent: Any = Agent(model(served, surface), output_type=PromptedOutput(Anything), model_settings=GREEDY)
    assert isinstance(agent.run_sync("Make a JSON object with the name Ana and the age 31.").output, Anything)


@pytest.mark.parametrize("surface", SURFACES)
def test_an_answer_that_is_refused_is_asked_for_again(served: Any, surface: str) -> None:
    agent: Any = Agent(model(served, surface), output_type=ToolOutput(Person), model_settings=GREEDY, retries=2)
    seen = []

    async def check(context: RunContext[None], person: Person) -> Person:
        seen.append(person)
        if len(seen) == 1:
            raise ModelRetry("Another one, please.")
        return person

    agent.output_validator(check)
    assert isinstance(agent.run_sync("Hello!").output, Person)
    assert len(seen) == 2


@pytest.mark.parametrize("surface", SURFACES)
def test_a_dialogue_goes_on(served: Any, surface: str) -> None:
    agent = Agent(model(served, surface), model_settings=GREEDY)
    first = agent.run_sync("What is the capital of France?")
    second = agent.run_sync("And of Spain?", message_history=first.all_messages())
    assert [message.kind for message in second.all_messages()] == ["request", "response"] * 2
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    assert second.output
