"""Prepares a client's JSON schema for llguidance, which would misread some valid schemas, or crash on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parallm_openai.text.schema import numbers
from parallm_openai.text.schema.closing import close, closed
from parallm_openai.text.schema.walk import (
    DEFINITIONS,
    Node,
    copied,
    has_unknown_references,
    nodes_of,
    subschemas,
    target,
)
from parallm_openai.text.schema.wording import is_never, reword

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["SchemaError", "closed", "schema_text"]

# Without a limit, a model that has nothing to say writes white space for ever.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
# llguidance's own keyword for its options, which a client must not set.
OPTIONS = "x-guidance"
# llguidance reads JSON to a depth of 128, within some JSON of its own.
DEEPEST = 100


class SchemaError(ValueError):
    """The schema is not valid or cannot be enforced."""


def schema_text(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """The schema in the form that llguidance gets, with its objects closed. If `lenient`, keywords that cannot be
    enforced are left out.

    Raises SchemaError naming the keyword.
    """
    root: Node = copied(schema)
    if any(OPTIONS in node for node in nodes_of(root)):
        raise SchemaError(f"'{OPTIONS}' is no keyword of JSON Schema and cannot be used")
    if not lenient and is_never(root, root):
        raise SchemaError("nothing matches it: its 'not' forbids everything")
    reword(root, patterns=not lenient)
    nodes = nodes_of(root)
    for node in nodes:
        numbers.settle(node, _skip if lenient else _refuse)
    if numbers.too_many_multiples(nodes):
        raise SchemaError("several 'multipleOf' have no common multiple that the grammar engine could hold")
    close(root)
    _flatten(root)
    options: JsonCompileOptions = {"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
    root[OPTIONS] = options
    try:
        text = json.dumps(root, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise SchemaError("it holds half a character (a lone surrogate)") from error
    except ValueError as error:
        raise SchemaError("it holds a number that is not finite") from error
    if _depth(root) > DEEPEST:
        raise SchemaError(f"it is nested more than {DEEPEST} levels deep within one subschema or literal")
    return text


def _refuse(node: Node, keyword: str, problem: numbers.NumberProblem) -> None:
    raise SchemaError(str(problem)) from problem


def _skip(node: Node, keyword: str, problem: numbers.NumberProblem) -> None:
    if problem.malformed:
        raise SchemaError(str(problem)) from problem
    del node[keyword]


def _flatten(root: Node) -> None:
    """Move deep subschemas into definitions, in place: the meaning stays, the depth is one that llguidance reads."""
    deep = _deep(root)
    if not deep:
        return
    nodes = nodes_of(root)
    definitions = root.setdefault("$defs", {})
    if not isinstance(definitions, dict) or has_unknown_references(root, nodes):
        return
    referred = [(node, place) for node in nodes if (place := target(root, node)) is not None]
    moving = deep + [place for _, place in referred if not _stays(root, place)]
    moved = {id(container[key]): (container, key, container[key]) for container, key in moving}
    prefix = "moved"
    while any(name.startswith(prefix) for name in definitions):
        prefix += "-"
    names = {each: f"{prefix}{number}" for number, each in enumerate(moved)}
    referring = [
        (node, names[id(container[key])]) for node, (container, key) in referred if id(container[key]) in names
    ]
    for each, (container, key, node) in moved.items():
        container[key] = {"$ref": f"#/$defs/{names[each]}"}
        definitions[names[each]] = node
    for node, name in referring:
        if name is not None:
            node["$ref"] = f"#/$defs/{name}"


def _stays(root: Node, place: tuple[Any, Any]) -> bool:
    """Whether references to this place stay valid whatever else is moved."""
    container, key = place
    referred = container[key]
    return (
        referred is root
        or not isinstance(referred, dict)
        or any(container is root.get(keyword) for keyword in DEFINITIONS)
    )


def _deep(root: Node) -> list[tuple[Any, Any]]:
    """The places of the subschemas that must move so that none is nested too deep."""
    places: list[tuple[Any, Any]] = []
    work = [(root, 1)]
    while work:
        node, depth = work.pop()
        for _, container, key in subschemas(node):
            below = depth + (1 if container is node else 2)
            if below > DEEPEST // 2:
                places.append((container, key))
                below = 3
            work.append((container[key], below))
    return places


def _depth(value: Any) -> int:
    deepest = 0
    work = [(value, 1)]
    while work:
        inner, depth = work.pop()
        if isinstance(inner, (dict, list)):
            deepest = max(deepest, depth)
            work += [(each, depth + 1) for each in (inner.values() if isinstance(inner, dict) else inner)]
    return deepest
