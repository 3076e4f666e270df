"""Grammars at every place that a request may have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.expressions import larks, regexes
from fuzz.hazards import Hazards
from fuzz.schemas import schemas
from fuzz.session import Plan, Session, sends

# Enough for small answers to come to their end, so that they can be read against their grammar.
TOKENS = 40
MESSAGES = [{"role": "user", "content": "JSON: Anna is 7 years old."}]


def draw(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    kind = data.draw(st.sampled_from(["schema", "schema", "regex", "lark"]))
    place = data.draw(st.sampled_from(PLACES[kind]))
    what = data.draw(DRAWN[kind](hazards))
    path, body = place(what)
    body |= {"model": session.model} if path.startswith(("/v1/chat", "/v1/com", "/v1/resp")) else {}
    body |= data.draw(
        st.sampled_from([{}, {}, {"temperature": 0}, {"seed": 1}, {"stream": True}, {"use_speculative": False}])
    )
    # Tools answer with calls, and streams are looked at for their form alone.
    binding = (kind, what) if kind != "lark" and place not in TOOL_PLACES and not body.get("stream") else None
    if binding is not None and path == "/v1/responses":
        binding = None
    return sends(Case.of(f"grammars: {kind} in {place.__name__.strip('_')}", path, body, binding=binding))


DRAWN: dict[str, Callable[[Hazards], st.SearchStrategy[Any]]] = {"schema": schemas, "regex": regexes, "lark": larks}
Place = tuple[str, dict[str, Any]]


def _chat(**more: Any) -> Place:
    return "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": TOKENS, **more}


def _response_format(schema: Any) -> Place:
    return _chat(
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    )


def _guided_json(schema: Any) -> Place:
    return "/v1/completions", {"prompt": "{", "max_tokens": TOKENS, "guided_json": schema}


def _text_format(schema: Any) -> Place:
    text = {"format": {"type": "json_schema", "name": "s", "schema": schema}}
    return "/v1/responses", {"input": "JSON", "max_output_tokens": TOKENS, "text": text, "store": False}


def _tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"name": "get_weather", "parameters": schema, **more}


def _required_tool(schema: Any) -> Place:
    return _chat(tools=[{"type": "function", "function": _tool(schema)}], tool_choice="required")


def _strict_tool(schema: Any) -> Place:
    return _chat(tools=[{"type": "function", "function": _tool(schema, strict=True)}])


def _described_tool(schema: Any) -> Place:
    return _chat(tools=[{"type": "function", "function": _tool(schema)}])


def _function(schema: Any) -> Place:
    return _chat(functions=[_tool(schema)], function_call={"name": "get_weather"})


def _response_tool(schema: Any) -> Place:
    tool = {"type": "function", **_tool(schema, strict=True)}
    return "/v1/responses", {"input": "Hi", "max_output_tokens": TOKENS, "tools": [tool], "tool_choice": "required"}


def _guided_regex(pattern: str) -> Place:
    return "/v1/generate", {"prompt": "a", "max_tokens": TOKENS, "guided_regex": pattern}


def _chat_regex(pattern: str) -> Place:
    return _chat(guided_regex=pattern)


def _batch_regex(pattern: str) -> Place:
    return "/v1/generate_batch", {"prompts": ["a", "b"], "max_tokens": TOKENS, "guided_regex": pattern}


def _grammar(lark: str) -> Place:
    return "/v1/completions", {"prompt": "a", "max_tokens": TOKENS, "grammar": lark}


def _chat_grammar(lark: str) -> Place:
    return _chat(grammar=lark, n=2)


TOOL_PLACES: tuple[Callable[[Any], Place], ...] = (
    _required_tool,
    _strict_tool,
    _described_tool,
    _function,
    _response_tool,
)
PLACES: dict[str, list[Callable[[Any], Place]]] = {
    "schema": [_response_format, _guided_json, _text_format, *TOOL_PLACES],
    "regex": [_guided_regex, _chat_regex, _batch_regex],
    "lark": [_grammar, _chat_grammar],
}
