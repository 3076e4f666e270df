"""Tools in a form that simple chat templates can read too: one known type for each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from parallm_openai.text.schema_walk import Node, copied, nodes_of

_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object"})


def plainer(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools without types that some templates stumble over: null beside others, and those that there are not."""
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
