"""A response of `/v1/responses` as it grows: its items, and the events that tell of them in order."""

from __future__ import annotations

import time
import uuid
from typing import Any

from pydantic import BaseModel

from parallm_openai.api.logprobs import chat_content
from parallm_openai.api.response_input import Message, add_call
from parallm_openai.api.schemas.responses import ResponsesRequest
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning
from parallm_openai.text.generation import Generation, TextDelta
from parallm_openai.text.tokenizer import Tokenizer

ResponseEvent = dict[str, Any]


class ResponseWriter:
    """Turns one sequence's text into items. Events are numbered from 0, as the documentation orders them."""

    def __init__(self, body: ResponsesRequest, parser: ChatParser, tokenizer: Tokenizer, many: bool) -> None:
        self._parser = parser
        self._tokenizer = tokenizer
        self._logprobs = body.wants_logprobs
        self._many = many
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._response = _response(body)

    @property
    def body(self) -> dict[str, Any]:
        return {**self._response, "output": [dict(item) for item in self._items]}

    def messages(self) -> list[Message]:
        """The answer as chat messages, to go on from."""
        messages: list[Message] = []
        for item in self._items:
            if item["type"] == "message":
                messages.append({"role": "assistant", "content": item["content"][0]["text"]})
            elif item["type"] == "function_call":
                add_call(messages, item["call_id"], item["name"], item["arguments"])
        return messages

    def start(self) -> list[ResponseEvent]:
        return [self._event(kind, response=self.body) for kind in ("response.created", "response.in_progress")]

    def read(self, delta: TextDelta) -> list[ResponseEvent]:
        events = self._parser.feed(delta.text, delta.tokens)
        if delta.finish_reason is not None:
            events += self._parser.finish()
        scored = chat_content(delta.logprobs, self._tokenizer) if self._logprobs else []
        told: list[ResponseEvent] = []
        for event in events:
            told += self._told(event, scored)
        return told

    def finish(self, reason: FinishReason | None, generation: Generation) -> list[ResponseEvent]:
        """Close what is open and the response itself."""
        whole = reason is FinishReason.STOP
        status = "completed" if whole else "incomplete"
        told = [] if self._items else self._begin(_message())
        told += self._end(status)
        self._response |= {
            "status": status,
            "completed_at": time.time() if whole else None,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "usage": self._usage(generation),
        }
        return [*told, self._event(f"response.{status}", response=self.body)]

    def fail(self, message: str) -> list[ResponseEvent]:
        self._response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return [self._event("response.failed", response=self.body)]

    def _told(self, event: Event, scored: list[dict[str, Any]]) -> list[ResponseEvent]:
        match event:
            case Content(text) if self._many or not self._parser.calls:
                begun = self._ensure("message")
                part = self._items[-1]["content"][0]
                part["text"] += text
                # A delta's log-probabilities come once, with its first text.
                own, scored[:] = list(scored), []
                part["logprobs"] += own
                return [*begun, self._delta("output_text", text, content_index=0, logprobs=own)]
            case Reasoning(text):
                begun = self._ensure("reasoning")
                self._items[-1]["content"][0]["text"] += text
                return [*begun, self._delta("reasoning_text", text, content_index=0)]
            case CallStart(index, name) if self._many or index == 0:
                return [*self._end("completed"), *self._begin(_function_call(name))]
            case CallArguments(index, text) if self._many or index == 0:
                self._items[-1]["arguments"] += text
                return [self._delta("function_call_arguments", text)]
        return []

    def _ensure(self, kind: str) -> list[ResponseEvent]:
        if self._open and self._items[-1]["type"] == kind:
            return []
        return [*self._end("completed"), *self._begin(_message() if kind == "message" else _reasoning())]

    def _begin(self, item: dict[str, Any]) -> list[ResponseEvent]:
        part = item["content"][0] if "content" in item else None
        self._items.append(item)
        self._open = True
        bare = {**item, "content": []} if part is not None else dict(item)
        told = [self._event("response.output_item.added", output_index=self._index, item=bare)]
        if part is not None:
            told.append(self._placed("response.content_part.added", content_index=0, part=dict(part)))
        return told

    def _end(self, status: str) -> list[ResponseEvent]:
        """Close the open item, if there is one."""
        if not self._open:
            return []
        self._open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            kind = "response.function_call_arguments.done"
            told = [self._placed(kind, arguments=item["arguments"], name=item["name"])]
        else:
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            told = [
                self._placed(f"response.{part['type']}.done", content_index=0, text=part["text"], **more),
                self._placed("response.content_part.done", content_index=0, part=dict(part)),
            ]
        return [*told, self._event("response.output_item.done", output_index=self._index, item=dict(item))]

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    def _delta(self, kind: str, text: str, **more: Any) -> ResponseEvent:
        return self._placed(f"response.{kind}.delta", delta=text, **more)

    def _placed(self, kind: str, **more: Any) -> ResponseEvent:
        return self._event(kind, item_id=self._items[-1]["id"], output_index=self._index, **more)

    def _event(self, kind: str, **more: Any) -> ResponseEvent:
        number, self._sequence = self._sequence, self._sequence + 1
        return {"type": kind, "sequence_number": number, **more}

    def _usage(self, generation: Generation) -> dict[str, Any]:
        prompt, completion = len(generation.prompt_tokens), generation.counts.completion
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": generation.counts.cached_prompt, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": self._parser.reasoning_tokens},
            "total_tokens": prompt + completion,
        }


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": _id("msg"), "type": "message", "role": "assistant", "status": "in_progress", "content": [part]}


def _reasoning() -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": ""}
    return {"id": _id("rs"), "type": "reasoning", "summary": [], "status": "in_progress", "content": [part]}


def _function_call(name: str) -> dict[str, Any]:
    ids = {"id": _id("fc"), "call_id": f"call_{uuid.uuid4().hex[:24]}"}
    return {**ids, "type": "function_call", "name": name, "arguments": "", "status": "in_progress"}


def _dumped(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _response(body: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request, at its beginning."""
    text = body.text.model_dump(exclude_none=True, by_alias=True) if body.text is not None else {}
    reasoning = body.reasoning
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": time.time(),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.effort if reasoning is not None else None, "summary": None},
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": _dumped(body.tool_choice) or "auto",
        "tools": [
            {"parameters": None, "strict": None, **tool.model_dump(exclude_none=True)} for tool in body.tools or []
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
