"""Kinds of input that can be left out of a run, to look behind a fault that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

HAZARDS = {
    "bombs": "schemas, expressions and grammars that cost far more to compile than to send",
    "multiple-of": "odd and huge values of multipleOf",
    "template-names": "template variables that the renderer's own parameters are named like",
    "template-values": "template variables of types that templates do not expect",
    "surrogates": "lone surrogates and invalid UTF-8",
    "not-finite": "NaN, Infinity and numbers that overflow",
    "nesting": "values nested hundreds to tens of thousands deep",
    "digits": "integers of thousands of digits",
    "junk-lists": "lists with very many wrong elements",
    "long-text": "texts of megabytes",
    "extreme-numbers": "numbers at the ends of their allowed ranges and beyond those of machine words",
    "configure": "changes of the running engine's settings",
}


@dataclass(frozen=True)
class Hazards:
    """Which kinds of input a run draws from; equal ones share their strategies."""

    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.without - HAZARDS.keys()
        if unknown:
            raise ValueError(f"no such kinds of input: {', '.join(sorted(unknown))}; there are {', '.join(HAZARDS)}")

    def has(self, name: str) -> bool:
        assert name in HAZARDS, name
        return name not in self.without

    def only(self, **named: st.SearchStrategy[Any]) -> list[st.SearchStrategy[Any]]:
        """The strategies of those kinds that are not left out; `_` stands for the hyphen in a name."""
        return [strategy for name, strategy in named.items() if self.has(name.replace("_", "-"))]
