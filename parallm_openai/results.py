"""What a program gets of an answer that is made in its own process: the whole of it, or its events as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from parallm_openai.engine.request import FinishReason, Request
from parallm_openai.text.answer import Answer, ToolCall
from parallm_openai.text.description import Prompt
from parallm_openai.text.events import Event
from parallm_openai.text.output import OutputProcessor


@dataclass(frozen=True)
class GenerationResult:
    """What one prompt became. `drafted` and `accepted` count speculated tokens."""

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    drafted: int
    accepted: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ChatResult:
    """The answer to one conversation. `finish_reason` is `stop`, `length`, or `tool_calls` if there are any."""

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    drafted: int
    accepted: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class GrowingAnswer:
    """One sequence and its answer as it grows."""

    def __init__(self, request: Request, processor: OutputProcessor) -> None:
        self.request = request
        self.processor = processor
        self.answer = Answer()
        self.tokens: list[int] = []

    @property
    def finish_reason(self) -> str:
        finish = self.answer.finish
        if finish is None:
            return ""
        return "tool_calls" if finish.called and finish.reason is FinishReason.STOP else str(finish.reason)

    @property
    def counts(self) -> dict[str, Any]:
        """The fields that results of all kinds have."""
        counts = self.processor.counts
        return {
            "token_ids": tuple(self.tokens),
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.request.prompt),
            "drafted": counts.drafted,
            "accepted": counts.accepted,
        }


class Stream:
    """One answer as it grows: iterate over it for its events. Leaving the loop early frees its row.

    `counts` are the fields that results of all kinds have, for what has come so far.
    """

    def __init__(self, sequence: GrowingAnswer, events: Iterator[Event]) -> None:
        self._sequence = sequence
        self._events = events

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def close(self) -> None:
        """Stop generating; harmless at the end."""
        self._events.close()  # type: ignore[attr-defined]

    @property
    def counts(self) -> dict[str, Any]:
        return self._sequence.counts
