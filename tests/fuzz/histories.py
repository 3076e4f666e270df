"""Conversations in any order of roles, parts, calls and ids, gone on with by what the server itself has answered."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.exchange import Exchange
from fuzz.hazards import Hazards
from fuzz.requests import FEW, QUESTIONS, TOOL
from fuzz.session import Plan, Session
from fuzz.values import junk, texts

TURNS = 3
IDS = st.sampled_from(["call_1", "call_2", "", "é", "c" * 100])


def draw(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    return data.draw(st.sampled_from([_chat, _responses]))(data, session, hazards)


@cache
def _arguments(hazards: Hazards) -> st.SearchStrategy[str]:
    good = ['{"city": "Rome"}', "{}", "", "null", "[]", '"text"', "3", "{", '{"a": NaN}', '{"city": {"x": [1, null]}}']
    deep = st.sampled_from([500, 50_000]).map(lambda size: "[" * size + "]" * size)
    return st.one_of(
        st.sampled_from(good),
        texts(hazards),
        *hazards.only(
            nesting=deep, digits=st.just('{"a": ' + "9" * 5000 + "}"), surrogates=st.just('{"a": "\\ud800"}')
        ),
    )


def _content(hazards: Hazards, kinds: list[str]) -> st.SearchStrategy[Any]:
    part = st.builds(lambda kind, text: {"type": kind, "text": text}, st.sampled_from(kinds), texts(hazards))
    image = st.just({"type": "image_url", "image_url": {"url": "data:,"}})
    return st.one_of(st.sampled_from(QUESTIONS), st.none(), texts(hazards), st.lists(part | image, max_size=3))


@cache
def _messages(hazards: Hazards) -> st.SearchStrategy[list[dict[str, Any]]]:
    call = st.builds(
        lambda id, name, arguments: {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}},
        IDS,
        st.sampled_from(["get_weather", "unknown", "", "a b"]),
        _arguments(hazards),
    )
    content = _content(hazards, ["text", "refusal"])
    plain = st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "user", "assistant", "system", "developer"]),
        content,
    )
    calling = st.builds(
        lambda content, calls: {"role": "assistant", "content": content, "tool_calls": calls},
        content,
        st.lists(call, max_size=3),
    )
    old = st.builds(
        lambda arguments: {"role": "assistant", "function_call": {"name": "get_weather", "arguments": arguments}},
        _arguments(hazards),
    )
    result = st.builds(lambda id, content: {"role": "tool", "tool_call_id": id, "content": content}, IDS, content)
    bare = st.sampled_from(
        [{"role": "tool", "content": "20"}, {"role": "function", "name": "get_weather", "content": "20"}]
    )
    more = st.dictionaries(
        st.sampled_from(["name", "reasoning_content", "annotations", "x"]), junk(hazards), max_size=1
    )
    message = st.one_of(plain, plain, calling, old, result, bare)
    return st.lists(
        st.builds(lambda message, more: {**message, **more}, message, more | st.just({})), min_size=1, max_size=4
    )


def _chat(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    """Turn after turn, the answer goes into the next request as it came, with an odd message or two between."""
    tools = {"tools": [{"type": "function", "function": TOOL}]}
    options = st.sampled_from([{}, {**tools, "tool_choice": "auto"}, {**tools, "tool_choice": "required"}])
    turns = data.draw(st.lists(st.tuples(_messages(hazards), options), min_size=TURNS, max_size=TURNS))

    def carried_out(session: Session) -> None:
        messages: list[Any] = []
        for more, chosen in turns:
            messages = [*messages, *more]
            body = {"model": session.model, "messages": messages, "max_tokens": FEW, "temperature": 0, **chosen}
            answer = _answered(session.send(Case.of("histories: chat", "/v1/chat/completions", body)))
            if not answer.get("choices"):
                return
            messages.append(answer["choices"][0]["message"])

    return carried_out


@cache
def _items(hazards: Hazards) -> st.SearchStrategy[list[Any]]:
    content = _content(hazards, ["input_text", "output_text", "text", "refusal"])
    message = st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant", "system", "developer"]),
        content,
    )
    call = st.builds(
        lambda id, arguments: {"type": "function_call", "call_id": id, "name": "get_weather", "arguments": arguments},
        IDS,
        _arguments(hazards),
    )
    output = st.builds(lambda id, out: {"type": "function_call_output", "call_id": id, "output": out}, IDS, content)
    odd = st.sampled_from(
        [
            {"type": "item_reference", "id": "msg_1"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "message"},
            {},
        ]
    )
    more = st.dictionaries(st.sampled_from(["id", "status", "annotations", "x"]), junk(hazards), max_size=1)
    item = st.one_of(message, message, call, output, odd)
    return st.lists(st.builds(lambda item, more: {**item, **more}, item, more | st.just({})), min_size=1, max_size=4)


def _responses(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    """Turns by `previous_response_id`, or by sending the items back; some are of answers that are gone."""
    tools = st.sampled_from([{}, {"tools": [{"type": "function", **TOOL}]}])
    ways = st.sampled_from(["previous_response_id", "previous_response_id", "items", "deleted"])
    turns = data.draw(st.lists(st.tuples(_items(hazards), tools, ways), min_size=TURNS, max_size=TURNS))
    unknown = {"previous_response_id": data.draw(texts(hazards))} if data.draw(st.integers(0, 9)) == 0 else {}

    def carried_out(session: Session) -> None:
        sent: list[Any] = []
        earlier: dict[str, Any] = {"output": []}
        for items, chosen, way in turns:
            body = {"model": session.model, "max_output_tokens": FEW, "temperature": 0, **chosen, **unknown}
            sent = [*sent, *earlier["output"], *items]
            body["input"] = sent if way == "items" else items
            if "id" in earlier and way != "items":
                body["previous_response_id"] = earlier["id"]
            if "id" in earlier and way == "deleted":
                session.send(Case("histories: delete", f"/v1/responses/{earlier['id']}", method="DELETE", headers=()))
            earlier = _answered(session.send(Case.of("histories: responses", "/v1/responses", body)))
            if "output" not in earlier:
                return

    return carried_out


def _answered(exchange: Exchange) -> dict[str, Any]:
    if exchange.status != 200:
        return {}
    try:
        answer = json.loads(exchange.body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
