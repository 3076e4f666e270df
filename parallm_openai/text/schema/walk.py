"""Walks through JSON schemas of any depth: their subschemas, and the targets of their references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

Node = dict[str, Any]
# A subschema's keyword, and the container and key under which it stands.
Place = tuple[str, Any, Any]

DEFINITIONS = frozenset({"$defs", "definitions"})
# Keywords that describe a schema and forbid nothing.
ANNOTATIONS = frozenset("title description default examples $comment deprecated readOnly writeOnly".split())
# Keywords whose subschemas apply to the same instance as the schema that they stand in.
IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"})
# Below these, keys are names and not keywords.
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies"}) | DEFINITIONS
_DIRECT = frozenset(
    "allOf anyOf oneOf not if then else items prefixItems additionalItems unevaluatedItems contains "
    "additionalProperties unevaluatedProperties propertyNames".split()
)


def copied(value: Any) -> Any:
    """A deep copy of JSON."""
    root = [value]
    work: list[tuple[Any, Any]] = [(root, 0)]
    while work:
        container, key = work.pop()
        inner = container[key]
        if isinstance(inner, Mapping):
            container[key] = made = dict(inner)
            work += [(made, name) for name in made]
        elif isinstance(inner, list):
            container[key] = items = list(inner)
            work += [(items, index) for index in range(len(items))]
    return root[0]


def values(value: Any) -> Iterator[Any]:
    """`value` and every value inside it."""
    work = [value]
    while work:
        inner = work.pop()
        yield inner
        if isinstance(inner, Mapping):
            work += inner.values()
        elif isinstance(inner, list):
            work += inner


def subschemas(node: Node) -> list[Place]:
    """The places of the subschemas directly within `node`, except those that are only true or false."""
    places: list[Place] = []
    for keyword, value in node.items():
        if keyword in _NAMED and isinstance(value, dict):
            places += [(keyword, value, name) for name in value]
        elif keyword in _DIRECT and isinstance(value, list):
            places += [(keyword, value, index) for index in range(len(value))]
        elif keyword in _DIRECT:
            places.append((keyword, node, keyword))
    return [place for place in places if isinstance(place[1][place[2]], dict)]


def nodes_of(root: Node) -> list[Node]:
    """Every schema in a document, each once, including those that only references lead to."""
    found: dict[int, Node] = {}
    work = [root]
    while work:
        node = work.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        work += [container[key] for _, container, key in subschemas(node)]
        if (place := target(root, node)) is not None and isinstance(referred := place[0][place[1]], dict):
            work.append(referred)
    return list(found.values())


def target(root: Node, node: Node) -> tuple[Any, Any] | None:
    """The container and key of the target of `node`'s `$ref`; None if it is not in this document."""
    reference = node.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    container: Any = [root]
    key: Any = 0
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        return None
    for part in pointer.split("/")[1:] if pointer else []:
        container = container[key]
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(container, list) and key.isascii() and key.isdigit() and len(key) < 10:
            key = int(key)
            if key >= len(container):
                return None
        elif not isinstance(container, dict) or key not in container:
            return None
    return container, key


def has_unknown_references(root: Node, nodes: list[Node]) -> bool:
    """Whether this module cannot find the target of some reference."""
    return any(
        "$dynamicRef" in node
        or "$recursiveRef" in node
        or ("$ref" in node and target(root, node) is None)
        or ("$id" in node and node is not root)
        for node in nodes
    )
