"""Writes an answer of `/v1/messages` as it grows: its content blocks, and the events that report them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from parallm_openai.api.anthropic.schemas import MessagesRequest
from parallm_openai.api.schemas.response_items import SEAL, sealed
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.answer import as_object
from parallm_openai.text.draws import new_hex
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning
from parallm_openai.text.generation import Generation

MessageEvent = dict[str, Any]

PING: MessageEvent = {"type": "ping"}


class MessageWriter:
    """Turns the events of one answer into content blocks, of which one at a time is open."""

    def __init__(self, body: MessagesRequest, model: str, generation: Generation) -> None:
        self._id = f"msg_{new_hex()}"
        self._model = model
        self._max_tokens = body.max_tokens
        self._omits = body.thinking is not None and body.thinking.display == "omitted"
        self._generation = generation
        self._blocks: list[dict[str, Any]] = []
        self._open = False
        # What the open block holds: its text, its thoughts or the JSON of its input.
        self._pieces: list[str] = []
        self._reason: str | None = None
        self._stop: str | None = None

    def message(self) -> dict[str, Any]:
        """The answer so far."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self._blocks),
            "stop_reason": self._reason,
            "stop_sequence": self._stop,
            "usage": self._usage(),
        }

    def start(self) -> list[MessageEvent]:
        return [{"type": "message_start", "message": self.message()}, PING]

    def read(self, events: Sequence[Event]) -> list[MessageEvent]:
        return [made for event in events for made in self._events_of(event)]

    def _events_of(self, event: Event) -> list[MessageEvent]:
        match event:
            case Content(text):
                return [*self._ensure("text", text=""), self._delta(text, {"type": "text_delta", "text": text})]
            case Reasoning(text):
                opened = self._ensure("thinking", thinking="", signature="")
                delta = self._delta(text, {"type": "thinking_delta", "thinking": text})
                return opened if self._omits else [*opened, delta]
            case CallStart(_, name, id):
                return [*self._close(), self._begin({"type": "tool_use", "id": id, "name": name, "input": {}})]
            case CallArguments(_, text):
                return [self._delta(text, {"type": "input_json_delta", "partial_json": text})]
            case Finish():
                return [*self._close(), *self._finish(event)]

    def _finish(self, finish: Finish) -> list[MessageEvent]:
        self._reason, self._stop = self._stop_reason(finish), finish.stop
        delta = {"stop_reason": self._reason, "stop_sequence": self._stop}
        return [{"type": "message_delta", "delta": delta, "usage": self._usage()}, {"type": "message_stop"}]

    def _stop_reason(self, finish: Finish) -> str:
        if finish.stop is not None:
            return "stop_sequence"
        if finish.reason is FinishReason.STOP:
            return "tool_use" if finish.called else "end_turn"
        short = finish.reason is FinishReason.LENGTH and self._generation.counts.completion < self._max_tokens
        return "model_context_window_exceeded" if short else "max_tokens"

    def _ensure(self, kind: str, **empty: str) -> list[MessageEvent]:
        if self._open and self._blocks[-1]["type"] == kind:
            return []
        return [*self._close(), self._begin({"type": kind, **empty})]

    def _begin(self, block: dict[str, Any]) -> MessageEvent:
        self._blocks.append(block)
        self._open = True
        # Several events are made before the first is sent, and the block grows meanwhile.
        return self._event("content_block_start", content_block=dict(block))

    def _delta(self, text: str, delta: dict[str, str]) -> MessageEvent:
        self._pieces.append(text)
        return self._event("content_block_delta", delta=delta)

    def _close(self) -> list[MessageEvent]:
        """Close the open block, if there is one."""
        if not self._open:
            return []
        block, whole = self._blocks[-1], "".join(self._pieces)
        self._open, self._pieces = False, []
        signed: list[MessageEvent] = []
        match block["type"]:
            case "text":
                block["text"] = whole
            case "tool_use":
                block["input"] = as_object(whole)
            case "thinking":
                block["thinking"] = "" if self._omits else whole
                # The client can send back thoughts that it does not get; others need only look signed.
                block["signature"] = sealed(whole) if self._omits else SEAL + hashlib.sha256(whole.encode()).hexdigest()
                delta = {"type": "signature_delta", "signature": block["signature"]}
                signed.append(self._event("content_block_delta", delta=delta))
        return [*signed, self._event("content_block_stop")]

    def _event(self, kind: str, **more: Any) -> MessageEvent:
        return {"type": kind, "index": len(self._blocks) - 1, **more}

    def _usage(self) -> dict[str, Any]:
        """As Anthropic counts, `input_tokens` are those that were not cached."""
        counts = self._generation.counts
        return {
            "input_tokens": len(self._generation.prompt_tokens) - counts.cached_prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.cached_prompt,
            "output_tokens": counts.completion,
            "output_tokens_details": {"thinking_tokens": counts.reasoning},
        }
