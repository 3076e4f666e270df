"""The fields of a description (`text/description.py`) under the names that one surface has for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NAME = re.compile(r"\w+(\[\d+\])?")


@dataclass(frozen=True)
class FieldNames:
    """`names` has the fields whose names differ, perhaps with an index; what follows a name stays.

    With `flat_tools`, a tool has its fields itself instead of in a `function`. `parameters` is the name of the schema
    of its arguments.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    flat_tools: bool = False
    parameters: str = "parameters"

    def __call__(self, name: str) -> str:
        if self.flat_tools:
            name = re.sub(r"^(tools\[\d+\])\.function\b", r"\1", name)
        name = re.sub(r"^(tools\[\d+\](?:\.function)?)\.parameters\b", rf"\1.{self.parameters}", name)
        if (head := _NAME.match(name)) is None:
            return name
        indexed = head[0]
        if indexed in self.names:
            return self.names[indexed] + name[head.end() :]
        bare = indexed.partition("[")[0]
        return self.names.get(bare, bare) + name[len(bare) :]


OWN_NAMES = FieldNames()
"""For a surface that names all fields as the description does."""
