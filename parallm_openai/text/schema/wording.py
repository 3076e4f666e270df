"""Rewrites keywords that llguidance does not know into keywords that it knows; the same JSON matches as before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from parallm_openai.text.schema.walk import ANNOTATIONS, DEFINITIONS, Node, nodes_of, subschemas, target

# The formats that llguidance enforces. JSON Schema itself says that unknown formats are to be ignored.
FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uri uuid".split())
# How many references in a row are followed.
_CHAIN = 16
# A longer repetition is a large regex.
_LONGEST_NAME = 1000


def reword(root: Node, *, patterns: bool = True) -> None:
    """Rewrite the schema in place so that llguidance accepts more of it. What cannot be rewritten simply stays.

    A client's own regular expression is used in a rewritten keyword only if `patterns`: llguidance may refuse it.
    """
    nodes = nodes_of(root)
    for node in nodes:
        for keyword, container, key in subschemas(node):
            if keyword not in DEFINITIONS and is_never(root, container[key]):
                container[key] = False
    # A schema that a reference points to must stay in its place.
    movable = not any("additionalProperties" in unquote(str(node.get("$ref", ""))) for node in nodes)
    for node in nodes:
        if isinstance(node.get("format"), str) and node["format"] not in FORMATS:
            del node["format"]
        for keyword in [keyword for keyword in node if keyword in _IDLE and _IDLE[keyword](node)]:
            del node[keyword]
        if "propertyNames" in node and movable:
            _name_properties(root, node, patterns)


def is_never(root: Node, schema: Any) -> bool:
    """Whether nothing matches because the schema, or the one that it refers to, means `false`."""
    for _ in range(_CHAIN):
        if not isinstance(schema, dict) or DEFINITIONS & schema.keys():
            return schema is False
        if "not" in schema and _is_always(schema["not"]):
            return True
        if (place := target(root, schema)) is None:
            return False
        schema = place[0][place[1]]
    return False


def _is_always(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and not schema.keys() - ANNOTATIONS)


def _is_empty(keyword: str) -> Callable[[Node], bool]:
    return lambda node: node[keyword] == {}


def _is_open(keyword: str) -> Callable[[Node], bool]:
    return lambda node: _is_always(node[keyword])


# Keywords that llguidance does not know, each with a test that is true if it forbids nothing.
_IDLE: dict[str, Callable[[Node], bool]] = {
    "uniqueItems": lambda node: node["uniqueItems"] is False,
    "not": lambda node: node["not"] is False,
    "if": lambda node: not {"then", "else"} & node.keys(),
    "then": lambda node: "if" not in node,
    "else": lambda node: "if" not in node,
    "minContains": lambda node: "contains" not in node,
    "maxContains": lambda node: "contains" not in node,
    **{keyword: _is_empty(keyword) for keyword in ("dependentRequired", "dependentSchemas", "dependencies")},
    **{keyword: _is_open(keyword) for keyword in ("unevaluatedProperties", "unevaluatedItems")},
}


def _name_properties(root: Node, node: Node, patterns: bool) -> None:
    """Replace `propertyNames` by `patternProperties`, if the schema of the names is simple."""
    wanted = _resolved(root, node["propertyNames"])
    if isinstance(wanted, dict) and "string" in _list(wanted.get("type", "string")):
        wanted = {key: value for key, value in wanted.items() if key not in ANNOTATIONS | {"type"}}
        if isinstance(wanted.get("format"), str) and ("pattern" in wanted or wanted["format"] not in FORMATS):
            del wanted["format"]
    if _is_always(wanted):
        del node["propertyNames"]
        return
    properties = node.get("properties", {})
    if "patternProperties" in node or not isinstance(properties, dict):
        return
    pattern: str | None
    if (names := _names(root, wanted)) is not None:
        for name in properties.keys() - names:
            properties[name] = False
        others = [name for name in names if name not in properties]
        pattern = f"^(?:{'|'.join(map(re.escape, others))})$" if others else None
    elif properties or (pattern := _pattern(wanted, patterns)) is None:
        return
    del node["propertyNames"]
    if pattern is not None:
        node["patternProperties"] = {pattern: node.get("additionalProperties", True)}
    node["additionalProperties"] = False


def _resolved(root: Node, schema: Any) -> Any:
    """The schema itself, or the one it refers to if it is nothing but a reference."""
    for _ in range(_CHAIN):
        if not isinstance(schema, dict) or schema.keys() - ANNOTATIONS != {"$ref"}:
            break
        if (place := target(root, schema)) is None:
            break
        schema = place[0][place[1]]
    return schema


def _names(root: Node, schema: Any) -> dict[str, None] | None:
    """The names that match, in order, if the schema lists them."""
    if not isinstance(schema, dict):
        return None
    match {key: value for key, value in schema.items() if key not in ANNOTATIONS}:
        case {"enum": list(names), **rest} if _says_string(rest):
            return {name: None for name in names if isinstance(name, str)}
        case {"const": name, **rest} if _says_string(rest):
            return {name: None} if isinstance(name, str) else {}
        case {"anyOf": list(branches), **rest} if _says_string(rest):
            found: dict[str, None] = {}
            for branch in branches:
                # Alternatives within alternatives are not followed: they could be endless.
                resolved = _resolved(root, branch)
                listed = None if isinstance(resolved, dict) and "anyOf" in resolved else _names(root, resolved)
                if listed is None:
                    return None
                found |= listed
            return found
    return None


def _says_string(rest: Node) -> bool:
    return not rest or (rest.keys() == {"type"} and "string" in _list(rest["type"]))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pattern(schema: Any, patterns: bool) -> str | None:
    """A regular expression of the names that match, if the schema is one or only limits their length."""
    match schema:
        case {"pattern": str(pattern), **rest} if not rest and patterns:
            return pattern
    if not isinstance(schema, dict) or not schema or schema.keys() - {"minLength", "maxLength"}:
        return None
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    counts = [least] if most == "" else [least, most]
    if not all(type(count) is int and 0 <= count <= _LONGEST_NAME for count in counts) or counts != sorted(counts):
        return None
    return rf"^[\s\S]{{{least},{most}}}$"
