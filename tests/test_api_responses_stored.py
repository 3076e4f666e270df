"""What `/v1/responses` keeps: conversations, references to their items, their listing, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseInputItemParam
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter, ValidationError
from support.responses import WEATHER, client, create
from support.servers import RunningServer

from parallm_openai.api.schemas.responses import ResponsesRequest
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.settings import ServerSettings

QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
MORE = {"role": "user", "content": "And what is 2 + 2?"}


def result_of(call: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}


def prompt_tokens(server: RunningServer, input: Any, **options: Any) -> int:
    return client(server).responses.input_tokens.count(model=server.model.name, input=input, **options).input_tokens


def test_the_same_conversation_is_the_same_prompt_however_it_is_sent(server: RunningServer) -> None:
    first = create(server, [QUESTION], tools=[WEATHER])
    [call] = first.output
    result = result_of(call)
    whole = [QUESTION, call.model_dump(exclude_none=True), result]
    ways = {
        "whole": create(server, whole, tools=[WEATHER]),
        "unstored": create(server, whole, tools=[WEATHER], store=False),
        "previous": create(server, [result], tools=[WEATHER], previous_response_id=first.id),
        "referred": create(server, [QUESTION, {"type": "item_reference", "id": call.id}, result], tools=[WEATHER]),
        "bare": create(server, [QUESTION, {"id": call.id}, result], tools=[WEATHER]),
    }
    assert len({(way.output_text, way.usage.input_tokens) for way in ways.values()}) == 1
    assert prompt_tokens(server, whole, tools=[WEATHER]) == ways["whole"].usage.input_tokens
    # And the turn after that, which refers to what was referred to.
    second = ways["referred"]
    references = [{"type": "item_reference", "id": item.id} for item in (call, *second.output)]
    third = create(server, [QUESTION, references[0], result, *references[1:], MORE], tools=[WEATHER])
    by_id = create(server, [MORE], tools=[WEATHER], previous_response_id=ways["previous"].id)
    assert (third.output_text, third.usage.input_tokens) == (by_id.output_text, by_id.usage.input_tokens)


def test_instructions_are_not_handed_on(server: RunningServer) -> None:
    first = create(server, "Hello!", instructions="Be brief.")
    second = create(server, [MORE], previous_response_id=first.id)
    whole = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": first.output_text}, MORE]
    assert second.usage.input_tokens == prompt_tokens(server, whole)


@pytest.mark.parametrize("store", [True, False])
def test_thoughts_of_a_tool_loop_come_back_to_the_model(server: RunningServer, store: bool) -> None:
    """As the messages of a chat would have them, whichever of their forms the client has kept."""
    thinking = create(server, "What is 123 + 345?", reasoning={"effort": "low"}, max_output_tokens=300, store=store)
    reasoning = thinking.output[0]
    assert reasoning.type == "reasoning"
    text = reasoning.content[0].text
    call = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    result = {"type": "function_call_output", "call_id": "c1", "output": "21"}
    forms: list[dict[str, Any]] = [reasoning.model_dump(exclude_none=True)]
    if store:
        forms.append({"type": "item_reference", "id": reasoning.id})
    else:
        forms.append({"type": "reasoning", "id": "x", "summary": [], "encrypted_content": reasoning.encrypted_content})
    chat = {
        "model": server.model.name,
        "messages": [
            QUESTION,
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": text,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "21"},
        ],
    }
    with server.client as http:
        rendered = http.post("/v1/chat/completions/render", json=chat).json()
    for form in forms:
        assert prompt_tokens(server, [QUESTION, form, call, result]) == rendered["count"]


def test_what_is_not_stored_cannot_be_referred_to(server: RunningServer) -> None:
    unstored = create(server, "Hello!", store=False)
    deleted = create(server, "Hello!")
    client(server).responses.delete(deleted.id)
    for gone in (unstored, deleted):
        with pytest.raises(openai.BadRequestError) as caught:
            create(server, [MORE, {"type": "item_reference", "id": gone.output[0].id}])
        assert caught.value.param == "input[1].id"


def test_later_turns_outlive_earlier_ones(server: RunningServer) -> None:
    first = create(server, "My name is Anna.")
    second = create(server, [MORE], previous_response_id=first.id)
    client(server).responses.delete(first.id)
    third = create(server, "What is my name?", previous_response_id=second.id)
    items: Any = client(server).responses.input_items.list(third.id, order="asc")
    texts = [item.content[0].text for item in items]
    assert texts == ["My name is Anna.", first.output_text, MORE["content"], second.output_text, "What is my name?"]


def test_input_items_are_listed_in_pages(server: RunningServer) -> None:
    asked = [{"role": "user", "content": f"Number {place}"} for place in range(7)]
    last = create(server, [*asked[1:], {**MORE, "id": "msg_mine"}], previous_response_id=create(server, asked[:1]).id)
    sdk = client(server)
    with server.client as http:
        body = http.get(f"/v1/responses/{last.id}/input_items").json()
    ResponseItemList.model_validate(body, strict=True)
    assert body["data"][0]["id"] == body["first_id"] == "msg_mine"
    assert body["data"][-1]["id"] == body["last_id"]
    assert (len(body["data"]), body["has_more"]) == (9, False)
    pages: list[list[Any]] = []
    for order in ("asc", "desc"):
        found = [item.id for item in sdk.responses.input_items.list(last.id, limit=2, order=order)]
        pages.append(found)
        assert len(found) == len(set(found)) == 9
    assert pages[0] == pages[1][::-1]
    # What is listed can be sent again, and referred to.
    items = [TypeAdapter(ResponseInputItemParam).validate_python(item) for item in body["data"][::-1]]
    referred = [{"type": "item_reference", "id": item["id"]} for item in body["data"][::-1]]
    assert prompt_tokens(server, items) == prompt_tokens(server, referred) == last.usage.input_tokens


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("include[]=x", "include[0]"),
    ],
)
def test_a_listing_refuses_what_it_does_not_know(server: RunningServer, query: str, param: str) -> None:
    made = create(server, "Hello!", max_output_tokens=1)
    with server.client as http:
        answer = http.get(f"/v1/responses/{made.id}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_retrieved_response_is_whole_or_refused_by_name(server: RunningServer) -> None:
    made = create(server, "Hello!", max_output_tokens=3)
    sdk = client(server)
    assert sdk.responses.retrieve(made.id, include=["reasoning.encrypted_content"]) == made
    with server.client as http:
        for query, param in (
            ("stream=true", "stream"),
            ("starting_after=3", "starting_after"),
            ("include=x", "include[0]"),
        ):
            answer = http.get(f"/v1/responses/{made.id}?{query}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        sdk.responses.cancel(made.id)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_none"),
        ("DELETE", "/v1/responses/resp_none"),
        ("GET", "/v1/responses/resp_none/input_items"),
        ("POST", "/v1/responses/resp_none/cancel"),
        ("POST", "/v1/responses/compact"),
        ("POST", "/v1/responses/resp_none/other"),
    ],
)
def test_what_is_not_there_is_a_404(server: RunningServer, method: str, path: str) -> None:
    with server.client as http:
        answer = http.request(method, path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_responses_are_those_of_the_key_that_made_them(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(settings=ServerSettings(api_keys=("anna", "ben"), graceful_timeout=1))
    anna, ben = (openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) for key in ("anna", "ben"))
    ask: dict[str, Any] = {"model": running.model.name, "max_output_tokens": 2}
    made = anna.responses.create(input="Hello!", **ask)
    for call in (ben.responses.retrieve, ben.responses.delete, ben.responses.cancel, ben.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ben.responses.create(input="Hello!", previous_response_id=made.id, **ask)
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError):
        ben.responses.create(input=[{"type": "item_reference", "id": made.output[0].id or ""}], **ask)
    assert anna.responses.retrieve(made.id).id == made.id
    assert anna.responses.create(input="Hello!", previous_response_id=made.id, **ask).id


def test_an_answer_that_is_not_kept_says_so(start_server: Callable[..., RunningServer]) -> None:
    small = start_server(settings=ServerSettings(stored_responses_bytes=10_000, graceful_timeout=1))
    kept = create(small, "Hello!", max_output_tokens=1)
    large = create(small, [{"role": "user", "content": "Hello!", "note": "x" * 20_000}], max_output_tokens=1)
    assert (kept.store, large.store) == (True, False)
    assert client(small).responses.retrieve(kept.id).id == kept.id
    with pytest.raises(openai.NotFoundError):
        client(small).responses.retrieve(large.id)


def test_a_conversation_too_long_for_the_context_loses_its_oldest_turns_where_that_is_asked_for(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"role": "developer", "content": "Be brief."}
    old: list[dict[str, Any]] = [
        {"role": role, "content": "word " * 8} for _ in range(8) for role in ("user", "assistant")
    ]
    fits = [prompt_tokens(server, [rule, *old[start:], MORE]) for start in range(0, len(old), 2)]
    monkeypatch.setattr(AsyncEngine, "context_length", fits[3] + 40)
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, [rule, *old, MORE], max_output_tokens=40)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert "messages" not in str(caught.value)
    auto = create(server, [rule, *old, MORE], truncation="auto", max_output_tokens=40)
    assert auto.truncation == "auto"
    assert auto.usage.input_tokens == fits[3]
    # The conversation itself is kept whole.
    assert len(list(client(server).responses.input_items.list(auto.id))) == len(old) + 2
    assert prompt_tokens(server, [rule, *old, MORE], truncation="auto") < fits[3] + 40
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, "word " * 1000, truncation="auto")
    assert caught.value.code == "context_length_exceeded"
    # What fits is the same with and without.
    assert create(server, [MORE], truncation="auto", max_output_tokens=20).output_text == (
        create(server, [MORE], max_output_tokens=20).output_text
    )


@pytest.mark.parametrize("field", ["input", "tools", "include"])
def test_only_the_first_of_many_bad_entries_is_looked_at(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ResponsesRequest.model_validate({"model": "m", "input": "x", field: [1] * 100})
    assert len(caught.value.errors()) == 1


def test_a_long_bad_input_is_refused_and_the_server_goes_on(server: RunningServer) -> None:
    with server.client as http:
        answer = http.post("/v1/responses", json={"model": server.model.name, "input": [1] * 300_000})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0]")
        assert len(json.dumps(answer.json())) < 1000
