"""Puts tools in a form that chat templates can read: without nulls, and for simple templates with plain types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from parallm_openai.text.schema.walk import Node, copied, nodes_of

_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object"})

# For these keywords null is a value with a meaning.
_MAY_BE_NULL = frozenset({"const", "default", "type"})


def without_nulls(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without the keywords that are null, as some clients write keywords that they leave out."""
    shaped: dict[str, Any] = copied(parameters)
    for node in nodes_of(shaped):
        for keyword in [key for key, value in node.items() if value is None and key not in _MAY_BE_NULL]:
            del node[keyword]
    return shaped


def plainer(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools without types that some templates fail on: null beside other types, and unknown types."""
    shaped: list[dict[str, Any]] = copied(list(tools))
    for tool in shaped:
        parameters = tool["function"].get("parameters")
        for node in nodes_of(parameters) if isinstance(parameters, dict) else []:
            _simplify(node)
    return shaped


def _simplify(node: Node) -> None:
    types = node.get("type")
    if isinstance(types, str):
        types = [types]
    if isinstance(types, list):
        known = [each for each in types if isinstance(each, str) and each in _TYPES]
        if known:
            node["type"] = known[0] if len(known) == 1 else known
        else:
            del node["type"]
    if node.get("type") == "object":
        node.setdefault("additionalProperties", {})
