"""Tools for models whose chat template has no form of calls that the server reads.

The server describes the tools in the instructions, and writes calls and results as text. The form is that of Hermes,
which many models have seen in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

Message = dict[str, Any]

# Every conversation with the same tools must begin the same: computed prefixes are found by their tokens.
_INSTRUCTIONS = """# Tools

You can call functions. Each line between the <tools> tags describes one as JSON:
<tools>
{}
</tools>

To call a function, write its name and its arguments as JSON between <tool_call> tags:
<tool_call>
{{"name": "<function-name>", "arguments": <arguments-object>}}
</tool_call>
Write one such block for each call. The result of each comes between <tool_response> tags."""


def instructions(tools: Iterable[Mapping[str, Any]]) -> str:
    """What the model must know to call these tools."""
    return _INSTRUCTIONS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def with_instructions(messages: Sequence[Message], text: str) -> list[Message]:
    """The conversation with this text at the end of its first instructions, which are made if there are none."""
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": "\n\n".join(filter(None, (first["content"], text)))}, *messages[1:]]


def as_text(messages: Iterable[Message]) -> Iterable[Message]:
    """The conversation with calls in the content of their message, and results that follow each other in one message.

    Results have no ids here, so that they come in the order of their calls.
    """
    order: dict[str, int] = {}
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        if are_results:
            results = sorted(group, key=lambda result: order.get(result["tool_call_id"], len(order)))
            yield {"role": "tool", "content": "\n".join(_result(result["content"]) for result in results)}
            continue
        for message in group:
            calls = message.get("tool_calls") or []
            order = {call["id"]: index for index, call in enumerate(calls)}
            parts = [message["content"], *map(_call, calls)]
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            yield {**rest, "content": "\n".join(filter(None, parts))}


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    name, arguments = json.dumps(function.get("name", ""), ensure_ascii=False), function.get("arguments", {})
    # Text stays as the model wrote it: what has been computed of it is then found again.
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'


def _result(content: str) -> str:
    return f"<tool_response>\n{content}\n</tool_response>"
