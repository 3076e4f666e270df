"""instructor over Chat Completions, Responses and Messages: each of its modes, retries, partial and iterable streams.

Modes that bind the answer return a `Person`; in `Mode.JSON` the server sees no schema, so any object will do there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import anthropic
import instructor
import openai
import pytest
from instructor import Mode
from pydantic import BaseModel, ConfigDict, Field, field_validator


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class get_weather(BaseModel):
    """Get the current weather of a city"""

    city: str = Field(max_length=40)


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


HELLO: Any = [{"role": "user", "content": "Hello!"}]
BINDING = [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA]


@pytest.fixture
def client(served: Any) -> Callable[[Mode], Any]:
    sdk = openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)
    common: Any = {"model": served.model, "temperature": 0}
    return lambda mode: instructor.from_openai(sdk, mode=mode, **common)


@pytest.mark.parametrize("mode", BINDING)
def test_an_answer_is_an_object_of_the_class(client: Any, mode: Mode) -> None:
    person, completion = client(mode).chat.completions.create_with_completion(
        response_model=Person, messages=HELLO, max_tokens=200, max_retries=0
    )
    assert isinstance(person, Person)
    assert completion.usage.completion_tokens > 0


def test_json_mode_answers_with_an_object(client: Any) -> None:
    question: Any = [{"role": "user", "content": "Make a JSON object with the name Ana and the age 31."}]
    answer = client(Mode.JSON).chat.completions.create(
        response_model=Anything, messages=question, max_tokens=400, max_retries=0
    )
    assert isinstance(answer, Anything)


@pytest.mark.parametrize("mode", BINDING)
def test_a_partial_object_grows(client: Any, mode: Mode) -> None:
    pieces = list(client(mode).chat.completions.create_partial(response_model=Person, messages=HELLO, max_tokens=200))
    assert len(pieces) > 1
    assert Person.model_validate(pieces[-1].model_dump())


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_objects_come_one_by_one(client: Any, mode: Mode) -> None:
    class Few(BaseModel):
        people: list[Person] = Field(min_length=2, max_length=3)

    few = client(mode).chat.completions.create(response_model=Few, messages=HELLO, max_tokens=400, max_retries=0)
    assert len(few.people) in (2, 3)
    # How many there are is up to the model, which may go on until the limit.
    made = client(mode).chat.completions.create_iterable(response_model=Person, messages=HELLO, max_tokens=300)
    for person in made:
        assert isinstance(person, Person)
        break
    made.close()


def test_several_tools_can_be_called_at_once(client: Any) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    calls = client(Mode.PARALLEL_TOOLS).chat.completions.create(
        response_model=Iterable[get_weather], messages=question, max_tokens=200
    )
    assert [type(call) for call in calls] == [get_weather, get_weather]


@pytest.mark.parametrize("mode", BINDING)
def test_what_does_not_validate_is_asked_again(client: Any, mode: Mode) -> None:
    seen: list[int] = []

    class Picky(Person):
        @field_validator("age")
        @classmethod
        def _age(cls, age: int) -> int:
            seen.append(age)
            if len(seen) == 1:
                raise ValueError("too young")
            return age

    answer = client(mode).chat.completions.create(response_model=Picky, messages=HELLO, max_tokens=200, max_retries=2)
    assert isinstance(answer, Picky)
    assert len(seen) == 2


def test_the_responses_api_gives_the_same(served: Any) -> None:
    sdk = openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)
    client = instructor.from_openai(sdk, mode=Mode.RESPONSES_TOOLS, model=served.model, temperature=0)
    person = client.responses.create(response_model=Person, input="Hello!", max_output_tokens=200, max_retries=0)
    assert isinstance(person, Person)


def test_the_messages_api_gives_the_same(served: Any) -> None:
    sdk = anthropic.Anthropic(base_url=served.url.removesuffix("/v1"), api_key="none", max_retries=0)
    client = instructor.from_anthropic(sdk, mode=Mode.ANTHROPIC_TOOLS, model=served.model, max_tokens=200)
    assert isinstance(client.messages.create(response_model=Person, messages=HELLO, max_retries=0), Person)


def test_the_async_client_runs_many_at_once(served: Any) -> None:
    sdk = openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0)
    client = instructor.from_openai(sdk, model=served.model)

    async def ask(seed: int) -> Any:
        return await client.chat.completions.create(
            response_model=Person, messages=HELLO, seed=seed, max_tokens=200, max_retries=0
        )

    async def run() -> None:
        together = await asyncio.gather(*(ask(seed) for seed in range(4)))
        alone = [await ask(seed) for seed in range(4)]
        assert all(isinstance(person, Person) for person in together)
        assert [person.model_dump() for person in together] == [person.model_dump() for person in alone]

    asyncio.run(run())
