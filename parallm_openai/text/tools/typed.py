"""Gives arguments that are written as bare text the types that their tool's schema allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.literals import boolean, number
from parallm_openai.text.tools.values import to_json

_IMPLIED = {
    "object": ("properties", "additionalProperties", "required", "patternProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "multipleOf"),
}
_ALIASES = {"str": "string", "text": "string", "int": "integer", "float": "number", "bool": "boolean"} | {
    "dict": "object",
    "list": "array",
}


@dataclass
class Allowed:
    """The kinds of value and the single strings that a schema allows; if there are neither, it allows anything.

    If `bare`, the format marks strings as such, so that text without such marks is another value if it can be one.
    """

    kinds: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    bare: bool = False

    @property
    def anything(self) -> bool:
        return not self.kinds and not self.strings

    @property
    def only_text(self) -> bool:
        """Whether any text is a string."""
        return not self.anything and not self.bare and self.kinds <= {"string"}

    def read(self, text: str) -> str:
        """The JSON value that the text stands for. Text that fits nothing allowed is a string, as it was written."""
        word = text.strip()
        if text in self.strings:
            return json.dumps(text, ensure_ascii=False)
        if self.bare and (value := to_json(word)) is not None:
            return self._fitting(word, value)
        if word in ("null", "None") and self._may("null"):
            return "null"
        value = None if "string" in self.kinds else self._scalar(word)
        if value is None and word[:1] in ("{", "["):
            value = self._container(word)
        return json.dumps(text, ensure_ascii=False) if value is None else value

    def _fitting(self, word: str, value: str) -> str:
        """A number or a boolean as itself if that is allowed; as a string if only strings are."""
        if value[0] not in "-0123456789tf":
            return value
        kinds = ("boolean",) if value[0] in "tf" else ("number", "integer")
        if not self._may(*kinds) and (self.strings or "string" in self.kinds):
            return json.dumps(word, ensure_ascii=False)
        return self._scalar(word) or value

    def _may(self, *kinds: str) -> bool:
        return self.anything or not self.kinds.isdisjoint(kinds)

    def _scalar(self, word: str) -> str | None:
        if self._may("boolean") and (value := boolean(word) or boolean(word.lower())) is not None:
            return value
        if self._may("number", "integer") and (value := number(word)) is not None:
            whole, point, fraction = value.partition(".")
            if self._may("number") or not point or fraction.strip("0"):
                # Without a schema, text like 007 is more likely a name than a number.
                return value if self.kinds or value == word else None
            return whole
        return None

    def _container(self, word: str) -> str | None:
        kind = "object" if word.startswith("{") else "array"
        return to_json(word) if self._may(kind) else None


def allowed(tool: Tool, key: str, bare: bool = False) -> Allowed:
    """What the tool's schema allows as the argument `key`."""
    schema = tool["function"].get("parameters")
    found = Allowed(bare=bare)
    if isinstance(schema, Mapping):
        for part in _parts(schema, schema):
            property_ = _property(part, key)
            if property_ is not None:
                _collect(property_, schema, found)
    return found


def declared(tool: Tool) -> set[str]:
    """The names of the arguments in the tool's schema."""
    schema = tool["function"].get("parameters")
    found = set[str]()
    for part in _parts(schema, schema) if isinstance(schema, Mapping) else ():
        if isinstance(part.get("properties"), Mapping):
            found.update(part["properties"])
    return found


def takes_nothing(tool: Tool) -> bool:
    """Whether the tool takes no arguments, so that a call is complete with its name."""
    schema = tool["function"].get("parameters")
    return not schema or (isinstance(schema, Mapping) and not declared(tool) and not schema.get("additionalProperties"))


def _property(schema: Mapping[str, Any], key: str) -> Any:
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    return schema.get("additionalProperties")


def _collect(schema: Any, root: Mapping[str, Any], found: Allowed) -> None:
    for part in _parts(schema, root):
        values = part["enum"] if isinstance(part.get("enum"), list) else [part["const"]] if "const" in part else None
        if values is not None:
            found.strings.update(value for value in values if isinstance(value, str))
            found.kinds.update(_kind(value) for value in values if not isinstance(value, str))
            continue
        types = part.get("type")
        names = [types] if isinstance(types, str) else types if isinstance(types, list) else _implied(part)
        found.kinds.update(_ALIASES.get(name.lower(), name.lower()) for name in names if isinstance(name, str))
        if part.get("nullable") is True:
            found.kinds.add("null")


def _parts(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schema itself and those that it is composed of."""
    parts: list[Mapping[str, Any]] = []
    waiting, seen = [schema], set[int]()
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        parts.append(part)
        if isinstance(part.get("$ref"), str):
            waiting.append(_referred(part["$ref"], root))
        for keyword in ("anyOf", "oneOf", "allOf"):
            members = part.get(keyword)
            waiting += members if isinstance(members, list) else ()
    return parts


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    """The target of a reference into the same schema; None if it points elsewhere."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, Mapping):
            found = found.get(step)
        else:
            return None
    return found


def _implied(part: Mapping[str, Any]) -> list[str]:
    return [kind for kind, keywords in _IMPLIED.items() if any(keyword in part for keyword in keywords)]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "object" if isinstance(value, Mapping) else "array"
