"""Schemas over the API: served if they mean something, else a 400 that names the field; and calls beside a format."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest
from support.servers import RunningServer, demo_target

from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.tools.call_grammar import free_calls
from parallm_openai.text.tools.families import FORMATS

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
NUMBER = {"type": "object", "properties": {"n": DIGIT}, "required": ["n"]}


def tool(name: str, parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def ask(server: RunningServer, **body: Any) -> httpx.Response:
    defaults = {"model": server.model.name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 100}
    # Python's own JSON holds what httpx would refuse to write, infinities for one.
    content = json.dumps({**defaults, "temperature": 0, **body})
    with server.client as client:
        return client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = DIGIT
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"n": DIGIT}, "required": ["n", "m"]},
        {"type": "object", "properties": {"allOf": DIGIT}, "required": ["allOf"]},
        {"type": "object", "properties": {"n": DIGIT}, "anyOf": [{"required": ["n"]}, {"required": ["m"]}]},
        {"type": "object", "propertyNames": {"enum": ["n", "m"]}, "additionalProperties": DIGIT},
        {"type": "object", "properties": {"n": DIGIT, "m": {"not": {}}}},
        {"type": "string", "format": "byte", "maxLength": 4},
        True,
        {},
    ],
)
def test_a_schema_that_something_satisfies_is_served(server: RunningServer, schema: dict[str, Any]) -> None:
    choice = ask(server, response_format=format_of(schema), max_tokens=300).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), schema)


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": format_of(nested(90))},
        {"guided_json": nested(90)},
        {"tools": [tool("f", nested(90))]},
        {"tools": [tool("f", nested(90))], "tool_choice": "required"},
        {"tools": [tool("f", nested(90), strict=True)]},
    ],
)
def test_a_deep_schema_is_served(server: RunningServer, body: dict[str, Any]) -> None:
    assert ask(server, max_tokens=3, **body).status_code == 200


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": ["object", "null"]},
        {"properties": {"a": True, "b": False}, "required": ["a"]},
        {"properties": None, "required": None},
        {"properties": {"a": {"type": "object", "properties": None, "required": None}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": ["string", "null"], "maxLength": 2}}, "required": ["a"]},
    ],
)
def test_arguments_are_an_object_whatever_else_the_parameters_allow(server: RunningServer, parameters: Any) -> None:
    choice = ask(server, tools=[tool("f", parameters)], tool_choice="required", max_tokens=300).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert isinstance(json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]), dict)


GOOD = tool("good", NUMBER)
FAR = {"properties": {"n": {"type": "integer", "minimum": 10**30}}}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": [GOOD, tool("f", {"type": ["string", "null"]})]}, "tools[1].function.parameters", "object"),
        ({"tools": [GOOD, tool("f", {"properties": []})]}, "tools[1].function.parameters", "properties"),
        ({"tools": [GOOD, tool("f", {"required": "x"})]}, "tools[1].function.parameters", "required"),
        ({"tools": [GOOD, tool("f", True)]}, "tools[1].function.parameters", "dictionary"),
        ({"functions": [{"name": "f", "parameters": {"type": "string"}}]}, "functions[0].parameters", "object"),
        (
            {"tools": [GOOD, tool("f", {"properties": {"a": {"type": "strin"}}})], "tool_choice": "required"},
            "tools[1].function.parameters",
            "strin",
        ),
        ({"tools": [GOOD, tool("f", {"properties": {"a": 3}}, strict=True)]}, "tools[1].function.parameters", "schema"),
        ({"tools": [GOOD, tool("f", FAR, strict=True)]}, "tools[1].function.parameters", "minimum"),
        ({"tools": [tool("f", {"x-guidance": {}}, strict=True)]}, "tools[0].function.parameters", "x-guidance"),
        ({"guided_json": FAR}, "guided_json", "minimum"),
        ({"guided_json": {"maximum": float("inf")}}, "guided_json", "Infinity"),
        ({"guided_json": {"x-guidance": {"lenient": True}, "not": {}}}, "guided_json", "x-guidance"),
        ({"guided_json": {"const": "\ud800"}}, "guided_json", "surrogate"),
        ({"response_format": format_of(FAR)}, "response_format", "minimum"),
        ({"response_format": format_of({"not": {}})}, "response_format", "not"),
        ({"response_format": format_of({"type": "array", "uniqueItems": True})}, "response_format", "uniqueItems"),
        ({"response_format": format_of(False)}, "response_format.json_schema.schema", "dictionary"),
        ({"response_format": format_of({"not": {}}), "tools": [GOOD]}, "response_format", "not"),
        ({"response_format": format_of({"enum": [f"v{at}" for at in range(100_000)]})}, "response_format", "too big"),
        ({"grammar": '{"grammars": [{"json_schema": {}}], "max_tokens": 3}'}, "grammar", "expecting rule"),
        ({"grammar": 'start: a "."\na[max_tokens=3]: /[a-z]+/'}, "grammar", "max_tokens"),
    ],
)
def test_what_cannot_be_served_is_a_400_that_names_the_field(
    server: RunningServer, body: dict[str, Any], param: str, words: str
) -> None:
    answer = ask(server, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": FAR}}}, "text.format"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"required": 1}}]}, "tools[0].parameters"),
    ],
)
def test_responses_name_the_field_as_they_have_it(server: RunningServer, body: dict[str, Any], param: str) -> None:
    with server.client as client:
        answer = client.post("/v1/responses", json={"model": server.model.name, "input": "Hi", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert f"'{param}'" in error["message"]


@pytest.mark.parametrize("old", [True, False])
def test_fields_of_a_tool_for_other_servers_are_ignored(server: RunningServer, old: bool) -> None:
    definition = {"name": "f", "parameters": NUMBER, "cache_control": {"type": "ephemeral"}}
    tools = {"functions": [definition]} if old else {"tools": [{"type": "function", "function": definition, "x": 1}]}
    assert ask(server, max_tokens=3, **tools).status_code == 200


def test_responses_take_any_json_and_ignore_fields_of_a_tool_too(server: RunningServer) -> None:
    format = {"type": "json_schema", "name": "n", "schema": True}
    tool = {"type": "function", "name": "f", "parameters": {"properties": None}, "cache_control": {}}
    body = {"model": server.model.name, "input": "Hi", "max_output_tokens": 16}
    with server.client as client:
        for more in ({"text": {"format": format}}, {"tools": [tool]}):
            assert client.post("/v1/responses", json={**body, **more}).status_code == 200


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "good"}}])
@pytest.mark.parametrize("format", [format_of({"type": "object", "not": {}}), {"type": "json_object"}])
def test_a_required_call_stands_above_the_answers_format(server: RunningServer, choice: Any, format: Any) -> None:
    answer = ask(server, tools=[GOOD], tool_choice=choice, response_format=format, parallel_tool_calls=False).json()
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "good"
    assert answer["choices"][0]["message"]["content"] is None
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert set(json.loads(call["function"]["arguments"])) == {"n"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, each in FORMATS.items() if each.start and not each.wording))
def test_where_calls_have_no_wording_a_format_binds_what_does_not_begin_as_one(name: str) -> None:
    target = demo_target()
    tokenizer = Tokenizer(target.tokenizer, target.vocab_size)
    grammars: Grammars = tokenizer.grammars(target.eos_token_ids)
    start = FORMATS[name].start
    grammar = grammars.lark(free_calls(FORMATS[name], tokenizer.token_id, NUMBER))
    for text, fits in {'{"n": 7}': True, '{"n": 77}': False, "Hi": False, f"{start}anything at all": True}.items():
        matcher = grammar.matcher()
        assert taken(matcher, tokenizer.encode(text)) == fits
    grammars.close()


def taken(matcher: Any, tokens: list[int]) -> bool:
    for token in tokens:
        mask = matcher.allowed(())
        if mask is None or not mask[token // 32] >> (token % 32) & 1:
            return False
        matcher.advance(token)
    return True
