"""Closes the objects of a JSON schema, so that a model is not tempted to make up properties.

An object is closed by `additionalProperties: false`. Fewer instances match then, and some must still match. So an
object is closed only if no other schema applies to the same instance: see `_alone`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from parallm_openai.text.schema.walk import (
    ANNOTATIONS,
    DEFINITIONS,
    IN_PLACE,
    Node,
    copied,
    has_unknown_references,
    nodes_of,
    subschemas,
    target,
)

# Keywords besides `properties` and `items` that limit the properties or items of an instance.
_OTHER_JUDGES = IN_PLACE | {
    "$ref",
    "const",
    "enum",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
}
_STRUCTURE = frozenset(
    "properties required additionalProperties minProperties maxProperties items prefixItems additionalItems".split()
)
_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
# Comparing alternatives takes time: the most comparisons in one schema.
_COMPARISONS = 50_000
_CHAIN = 16


def closed(schema: Mapping[str, Any]) -> Node:
    """The schema with `additionalProperties: false` in every object that does not say which further ones it allows.

    What matches the result also matches the schema itself. If anything matches the schema, something matches the
    result.
    """
    root: Node = copied(schema)
    close(root)
    return root


def close(root: Node) -> None:
    """What `closed` does, in place. `oneOf` becomes `anyOf` if no instance can match two alternatives."""
    nodes = nodes_of(root)
    if has_unknown_references(root, nodes):
        return
    _Closing(root, nodes).close()


class _Closing:
    def __init__(self, root: Node, nodes: list[Node]) -> None:
        self._root = root
        self._nodes = nodes
        self._referred = {id(referred) for node in nodes if (referred := self._referred_by(node)) is not None}
        self._comparisons = _COMPARISONS
        # By node: whether its `oneOf` may become `anyOf` as it is, and whether it may once its alternatives are closed.
        self._exclusive = {id(node): self._exclusive_as(node) for node in nodes if "oneOf" in node}

    def close(self) -> None:
        alone = self._alone()
        for node in self._nodes:
            anyway, if_closed = self._exclusive.get(id(node), (False, False))
            if anyway or (if_closed and alone.get(id(node), False)):
                _rename(node, "oneOf", "anyOf")
            if alone.get(id(node), False) and closes(node):
                for name in node.get("required") or []:
                    node["properties"].setdefault(name, True)
                node["additionalProperties"] = False

    def _alone(self) -> dict[int, bool]:
        """By node: whether it alone limits the properties of its instances, whichever way leads to it.

        Alternatives count as alone if the schema that they stand in says nothing else about properties.
        """
        alone: dict[int, bool] = {}
        work = [(self._root, True)]
        while work:
            node, flag = work.pop()
            if alone.get(id(node), not flag) == flag or not alone.get(id(node), True):
                continue
            alone[id(node)] = flag
            in_place = flag and self._hands_on(node)
            within = flag and not _OTHER_JUDGES & node.keys()
            work += [
                (container[key], in_place if keyword in IN_PLACE else within)
                for keyword, container, key in subschemas(node)
                if keyword not in DEFINITIONS
            ]
            if (referred := self._referred_by(node)) is not None:
                work.append((referred, in_place))
        return alone

    def _hands_on(self, node: Node) -> bool:
        """Whether only the subschema that matches, and not `node` itself, says something about properties."""
        judges = _OTHER_JUDGES & node.keys()
        if len(judges) != 1 or _STRUCTURE & node.keys():
            return False
        [keyword] = judges
        if keyword == "allOf":
            return isinstance(node[keyword], list) and len(node[keyword]) == 1
        return keyword in ("anyOf", "$ref") or (keyword == "oneOf" and any(self._exclusive[id(node)]))

    def _referred_by(self, node: Node) -> Node | None:
        place = target(self._root, node)
        referred = place[0][place[1]] if place is not None else None
        return referred if isinstance(referred, dict) else None

    def _exclusive_as(self, node: Node) -> tuple[bool, bool]:
        """Whether no instance can match two alternatives: first as they are, then with all closed that can be."""
        branches = node["oneOf"]
        if not isinstance(branches, list) or "anyOf" in node or not all(isinstance(each, dict) for each in branches):
            return False, False
        if len(branches) ** 2 > self._comparisons:
            return False, False
        shut = [id(branch) not in self._referred and closes(branch) for branch in branches]
        pairs = [(at, other) for at in range(len(branches)) for other in range(len(branches)) if at != other]

        def exclusive(shut: list[bool]) -> bool:
            return all(self._disjoint(branches[at], branches[other], shut[at], _CHAIN) for at, other in pairs)

        anyway = exclusive([False] * len(branches))
        return anyway, anyway or exclusive(shut)

    def _disjoint(self, one: Any, other: Any, shut: bool, depth: int) -> bool:
        """Whether it is plain that no instance can match both; if `shut`, the first is taken to be closed."""
        self._comparisons -= 1
        if one is False or other is False:
            return True
        if self._comparisons < 0 or not isinstance(one, dict) or not isinstance(other, dict) or not depth:
            return False
        for referring, swapped in ((one, False), (other, True)):
            if "$ref" in referring:
                referred = self._referred_by(referring)
                return referred is not None and (
                    self._disjoint(one, referred, shut, depth - 1)
                    if swapped
                    else self._disjoint(referred, other, False, depth - 1)
                )
        types = _types(one) & _types(other)
        literals = _literals(one), _literals(other)
        if not types or (None not in literals and not literals[0] & literals[1]):  # type: ignore[operator]
            return True
        if types != {"object"}:
            return False
        return any(
            self._disjoint(_property(one, name, shut), _property(other, name, False), False, depth - 1)
            for name in {*_required(one), *_required(other)}
        )


def closes(node: Node) -> bool:
    """Whether closing `node` rules out made-up properties only, if no other schema applies to its instances."""
    properties, least = node.get("properties"), node.get("minProperties", 0)
    if not isinstance(properties, dict) or "additionalProperties" in node or _OTHER_JUDGES & node.keys():
        return False
    if not isinstance(node.get("required", []), list) or len(_required(node)) < len(node.get("required", [])):
        return False
    possible = {name for name, schema in properties.items() if _possible(schema)}
    return isinstance(least, (int, float)) and least <= len(possible | set(_required(node)))


def _possible(schema: Any) -> bool:
    """Whether something certainly matches, because there are no two keywords that could contradict each other."""
    if not isinstance(schema, dict) or _OTHER_JUDGES & schema.keys():
        return schema is True
    return len(schema.keys() - ANNOTATIONS - {"type"}) <= 1 and schema.get("type") != []


def _required(node: Node) -> list[str]:
    names = node.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _property(node: Node, name: str, shut: bool) -> Any:
    """The schema that `node` has for the property; true if that is not plain."""
    properties = node.get("properties", {})
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    if "patternProperties" in node:
        return True
    return node.get("additionalProperties", not shut or name in _required(node))


def _types(node: Node) -> frozenset[str]:
    """The types of instances that may match."""
    types = node.get("type")
    given = [types] if isinstance(types, str) else types if isinstance(types, list) else [*_TYPES.values(), "null"]
    named = frozenset("number" if each == "integer" else str(each) for each in given)
    literals = [node["const"]] if "const" in node else node.get("enum")
    if isinstance(literals, list):
        return named & {_TYPES.get(type(each), "null") for each in literals}
    return named


def _literals(node: Node) -> frozenset[str] | None:
    """The instances that may match, if they are few: each as JSON in one form."""
    literals = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(literals, list) or not all(isinstance(each, str) or each is None for each in literals):
        return None
    return frozenset(json.dumps(each) for each in literals)


def _rename(node: Node, keyword: str, name: str) -> None:
    """Rename a keyword in its place: the order of keywords decides the order of properties."""
    items = [(name if key == keyword else key, value) for key, value in node.items()]
    node.clear()
    node.update(items)
