"""Writes an answer of `/api/chat` or `/api/generate`: its pieces, and the whole with its counts and durations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from parallm_openai.engine.request import FinishReason
from parallm_openai.text.answer import Answer, ToolCall, as_object
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning
from parallm_openai.text.generation import Generation

Kind = Literal["chat", "generate"]
Piece = dict[str, Any]


class OllamaWriter:
    """Turns the events of one answer into lines. A call is a line of its own, once its arguments are complete."""

    def __init__(self, kind: Kind, model: str, generation: Generation, began: int) -> None:
        """`began` is when the request came, in nanoseconds of a clock that never jumps."""
        self._kind = kind
        self._model = model
        self._generation = generation
        self._began = began
        self._started = time.monotonic_ns()
        self._first: int | None = None
        self._answer = Answer()
        self._begun = 0
        self._told = 0

    def read(self, events: Sequence[Event]) -> list[Piece]:
        """The lines that the events bring."""
        if self._first is None and events:
            self._first = time.monotonic_ns()
        return [line for event in events for line in self._lines_of(event)]

    def _lines_of(self, event: Event) -> list[Piece]:
        lines = [] if isinstance(event, CallArguments) else self._complete_calls()
        self._answer.add([event])
        match event:
            case Content(text):
                return [*lines, self._piece(text)]
            case Reasoning(text):
                return [*lines, self._piece("", thinking=text)]
            case CallStart():
                self._begun += 1
                return lines
            case CallArguments():
                return lines
            case Finish():
                return [*lines, {**self._piece(""), **self._end(event)}]

    def whole(self) -> Piece:
        """The answer in one piece, once its events have come."""
        answer = self._answer
        more: dict[str, Any] = {"thinking": answer.reasoning} if answer.reasoning else {}
        if answer.calls:
            more["tool_calls"] = [_call(index, call) for index, call in enumerate(answer.calls)]
        end = {} if answer.finish is None else self._end(answer.finish)
        return {**self._piece(answer.content, **more), **end}

    def _complete_calls(self) -> list[Piece]:
        """The calls that have not been told; the next event says that they are complete."""
        if self._told == self._begun:
            return []
        calls = self._answer.calls[self._told :]
        lines = [self._piece("", tool_calls=[_call(self._told + at, call)]) for at, call in enumerate(calls)]
        self._told += len(calls)
        return lines

    def _piece(self, text: str, **more: Any) -> Piece:
        head = {"model": self._model, "created_at": now()}
        if self._kind == "chat":
            return {**head, "message": {"role": "assistant", "content": text, **more}, "done": False}
        return {**head, "response": text, **more, "done": False}

    def _end(self, finish: Finish) -> Piece:
        ended = time.monotonic_ns()
        first = ended if self._first is None else self._first
        return {
            "done": True,
            "done_reason": "stop" if finish.reason is FinishReason.STOP else "length",
            "total_duration": ended - self._began,
            # The model is always loaded.
            "load_duration": 0,
            "prompt_eval_count": len(self._generation.prompt_tokens),
            "prompt_eval_duration": first - self._started,
            "eval_count": self._generation.counts.completion,
            "eval_duration": ended - first,
        }


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": as_object(call.arguments)}
    return {"id": call.id, "function": function}


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def nothing_to_say(kind: Kind, model: str, keep_alive: Any) -> Piece:
    """The answer to a request that only asks to load the model, or to unload it: it stays as it is."""
    said: Piece = {"message": {"role": "assistant", "content": ""}} if kind == "chat" else {"response": ""}
    reason = "unload" if keep_alive in (0, "0", "0s") and keep_alive is not False else "load"
    return {"model": model, "created_at": now(), **said, "done": True, "done_reason": reason}
