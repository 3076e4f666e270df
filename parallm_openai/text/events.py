"""The events of one answer, in the order in which they stream."""

from __future__ import annotations

from dataclasses import dataclass

from parallm_openai.engine.request import FinishReason


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
    """The `index`-th tool call begins; its arguments follow in pieces. Parsers leave the `id` to their caller."""

    index: int
    name: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the `index`-th call's JSON arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of the answer, whether it `called` any tool, and the `stop` string that ended it, if one did."""

    reason: FinishReason
    called: bool = False
    stop: str | None = None


Event = Content | Reasoning | CallStart | CallArguments | Finish
