"""Puts a conversation, which clients send in many forms, into the one form that a chat template takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pydantic_core

from parallm_openai.text.call_ids import OPENAI, CallIdForm, Message, rename_calls
from parallm_openai.text.tools.generic import as_text, instructions, with_instructions
from parallm_openai.text.tools.plain import without_nulls

# Names that clients and servers have for the thoughts of an answer. Each template reads one of them.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Parts of a message's content that are thoughts.
THOUGHT_PARTS = ("thinking", "reasoning")
_NO_JSON = object()


@dataclass(frozen=True)
class TemplateTraits:
    """The form in which a chat template wants a conversation.

    `ids` is the form of call ids. The template takes arguments of calls as objects if `objects`, else as JSON text;
    with `any_text` it shows text that is no JSON as it is. It shows all calls of a message if `parallel`, and takes
    content and thoughts beside a call if `apart`. It knows the role `developer`. It shows instructions between other
    messages if `late_system`, and at the beginning if `system`. It reads the description of every parameter if
    `properties`. Unless it lists `tools`, they are described in the instructions, and calls and results are text.
    """

    ids: CallIdForm = OPENAI
    objects: bool = True
    any_text: bool = False
    parallel: bool = True
    apart: bool = True
    developer: bool = False
    late_system: bool = True
    system: bool = True
    properties: bool = False
    tools: bool = True


def adapted(
    messages: Sequence[Message], traits: TemplateTraits, tools: Sequence[Mapping[str, Any]] = ()
) -> list[Message]:
    """A copy of the messages in the form that this template takes, with the `tools` unless the template lists them."""
    shaped = [_message(message, traits) for message in messages]
    rename_calls(shaped, traits.ids)
    if not traits.tools:
        shaped = list(as_text(shaped))
        if tools:
            shaped = with_instructions(shaped, instructions(described(tools, traits)))
    shaped = list(_as_users(shaped, traits))
    return shaped if traits.parallel else list(_one_call_each(shaped))


def described(tools: Iterable[Mapping[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Tools with every field that templates read without checking that it exists."""
    return [{**tool, "function": _function(tool["function"], traits)} for tool in tools]


def _function(function: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    parameters = without_nulls(function.get("parameters") or {})
    parameters.setdefault("type", "object")
    properties = parameters.setdefault("properties", {})
    if traits.properties and isinstance(properties, dict):
        # A schema may also be only true or false.
        parameters["properties"] = {
            name: {"description": "", **(schema if isinstance(schema, dict) else {})}
            for name, schema in properties.items()
        }
    whole = {"name": function["name"], "description": function.get("description") or "", "parameters": parameters}
    return whole | {key: value for key, value in function.items() if key not in whole}


def _message(message: Message, traits: TemplateTraits) -> Message:
    shaped = deepcopy(message)
    shaped["content"] = _flat(message.get("content"), message.get("refusal"))
    shaped["role"] = {"function": "tool"}.get(shaped["role"], shaped["role"])
    if shaped["role"] == "developer" and not traits.developer:
        shaped["role"] = "system"
    calls = shaped.pop("tool_calls", None) or []
    if (function := shaped.pop("function_call", None)) is not None:
        calls = calls or [{"type": "function", "function": function}]
    for call in calls:
        function = call.get("function") or {}
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _arguments(function["arguments"], traits)
    if calls:
        shaped["tool_calls"] = calls
    _name_thoughts(shaped, _thoughts_in(message.get("content")), joined=bool(calls) and not traits.apart)
    return shaped


def _flat(content: Any, refusal: Any) -> str:
    if content is None:
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    return "".join(
        part.get("text") or part.get("refusal") or "" for part in content if part.get("type") not in THOUGHT_PARTS
    )


def _thoughts_in(content: Any) -> str:
    """The thoughts among the parts of a message's content; a part holds text or further parts."""
    if not isinstance(content, list):
        return ""
    found = [part.get(part["type"]) or part.get("text") for part in content if part.get("type") in THOUGHT_PARTS]
    return "".join(each if isinstance(each, str) else _flat(each, None) for each in found)


def _name_thoughts(message: Message, parts: str, joined: bool) -> None:
    """Give an assistant's thoughts every name that a template may read. If `joined`, they take in the content."""
    given = [message.pop(name, None) for name in THOUGHTS]
    thoughts = next((text for text in (*given, parts) if isinstance(text, str) and text), None)
    if thoughts is None or message["role"] != "assistant":
        return
    if joined and message["content"]:
        thoughts, message["content"] = f"{thoughts}\n\n{message['content']}", ""
    message.update(dict.fromkeys(THOUGHTS, thoughts))


def _arguments(text: str, traits: TemplateTraits) -> Any:
    """A call's arguments for this template. Text that is no JSON object stays if the template shows any text."""
    value = _parsed(text)
    if isinstance(value, str):
        # JSON in JSON, as some models write it.
        inner = _parsed(value)
        value, text = (inner, value) if isinstance(inner, dict) else (value, text)
    if value is None or value in ("", [], {}) or not text.strip():
        value, text = {}, "{}"
    if not isinstance(value, dict):
        if traits.any_text:
            return text
        value = _begun(text) or {"arguments": text if value is _NO_JSON else value}
        text = json.dumps(value, ensure_ascii=False)
    return value if traits.objects else text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NO_JSON


def _begun(text: str) -> dict[str, Any] | None:
    """The complete part of a JSON object that was cut off, for instance at `max_tokens`."""
    try:
        value = pydantic_core.from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _as_users(messages: Sequence[Message], traits: TemplateTraits) -> Iterable[Message]:
    """The same conversation with what the template takes from no other role as the user's.

    It stands in one message with what the user says beside it, since some templates want roles that take turns.
    """
    asked: Message | None = None
    begun, joins = not traits.system, False
    for message in messages:
        role = message["role"]
        moved = (role == "system" and begun and not traits.late_system) or (role == "tool" and not traits.tools)
        begun = begun or role != "system"
        if asked is not None and (moved or (joins and role == "user")):
            asked["content"] = f"{asked['content']}\n\n{message['content']}"
            joins = True
            continue
        if asked is not None:
            yield asked
            asked = None
        joins = moved
        if moved or role == "user":
            asked = {**message, "role": "user"}
        else:
            yield message
    if asked is not None:
        yield asked


def _one_call_each(messages: Sequence[Message]) -> Iterable[Message]:
    """The same conversation with every call in a message of its own and the call's answer right after it."""
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            yield message
            continue
        end = at
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        answers: dict[str, list[Message]] = {call["id"]: [] for call in calls}
        others = [answer for answer in messages[at:end] if answer["tool_call_id"] not in answers]
        for answer in messages[at:end]:
            answers.get(answer["tool_call_id"], []).append(answer)
        bare = {"role": message["role"], "content": ""}
        for index, call in enumerate(calls):
            yield {**(bare if index else message), "tool_calls": [call]}
            yield from answers[call["id"]]
        yield from others
        at = end
