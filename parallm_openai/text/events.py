"""What a chat answer is made of, as it streams."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The `index`-th tool call begins; its arguments follow in pieces."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the `index`-th call's JSON arguments."""

    index: int
    text: str


Event = Content | Reasoning | CallStart | CallArguments
