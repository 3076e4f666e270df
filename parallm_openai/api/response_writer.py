"""A response of `/v1/responses` as it grows: its items, and the events that tell of them in order."""

from __future__ import annotations

import secrets
import time
import uuid
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from parallm_openai.api.logprobs import chat_content
from parallm_openai.api.schemas.response_items import sealed
from parallm_openai.api.schemas.responses import ResponsesRequest, ResponseTool, TextFormat
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.call_ids import CallIds
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning
from parallm_openai.text.generation import Generation, TextDelta
from parallm_openai.text.tokenizer import Tokenizer

ResponseEvent = dict[str, Any]

# Deltas are padded to a multiple of this length.
OBFUSCATION = 16


class ResponseWriter:
    """Turns one sequence's text into items. Events are numbered from 0, as the documentation orders them."""

    def __init__(self, body: ResponsesRequest, tokenizer: Tokenizer, ids: CallIds) -> None:
        self._ids = ids
        self._tokenizer = tokenizer
        self._logprobs = body.wants_logprobs
        self._seals = body.wants_sealed_thoughts
        self._obfuscates = body.wants_obfuscation
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._scored: list[dict[str, Any]] = []
        self._response = _response(body)

    @property
    def body(self) -> dict[str, Any]:
        return {**self._response, "output": [dict(item) for item in self._items]}

    @property
    def stored(self) -> bool:
        return bool(self._response["store"])

    @stored.setter
    def stored(self, stored: bool) -> None:
        self._response["store"] = stored

    def start(self) -> list[ResponseEvent]:
        return [self._event(kind, response=self.body) for kind in ("response.created", "response.in_progress")]

    def read(self, delta: TextDelta) -> list[ResponseEvent]:
        if self._logprobs:
            self._scored += chat_content(delta.logprobs, self._tokenizer)
        told: list[ResponseEvent] = []
        for event in delta.events:
            told += self._told(event)
        if delta.events:
            # What is left was of thoughts or calls; text that is still held back brings its own when it comes.
            self._scored = []
        return told

    def finish(self, reason: FinishReason | None, generation: Generation) -> list[ResponseEvent]:
        """Close what is open and settle what the response came to; `end` then tells it."""
        whole = reason is FinishReason.STOP
        status = "completed" if whole else "incomplete"
        told = [] if self._items else self._begin(_message())
        told += self._end(status)
        self._response |= {
            "status": status,
            "completed_at": int(time.time()) if whole else None,
            # OpenAI has no reason of its own for a server that goes down.
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "usage": self._usage(generation),
        }
        return told

    def end(self) -> ResponseEvent:
        return self._event(f"response.{self._response['status']}", response=self.body)

    def fail(self, message: str) -> ResponseEvent:
        """The last event of a response that came to nothing."""
        if self._open:
            self._items[-1]["status"] = "incomplete"
        failed = {"status": "failed", "completed_at": None, "error": {"code": "server_error", "message": message}}
        self._response |= {**failed, "store": False}
        return self.end()

    def _told(self, event: Event) -> list[ResponseEvent]:
        match event:
            case Content(text):
                begun = self._ensure("message")
                part = self._items[-1]["content"][0]
                part["text"] += text
                # Log-probabilities come once, with the first text.
                own, self._scored = self._scored, []
                part["logprobs"] += own
                return [*begun, self._delta("output_text", text, content_index=0, logprobs=own)]
            case Reasoning(text):
                begun = self._ensure("reasoning")
                self._items[-1]["content"][0]["text"] += text
                return [*begun, self._delta("reasoning_text", text, content_index=0)]
            case CallStart(index, name):
                return [*self._end("completed"), *self._begin(_function_call(name, self._ids.new(index, name)))]
            case CallArguments(_, text):
                self._items[-1]["arguments"] += text
                return [self._delta("function_call_arguments", text)]

    def _ensure(self, kind: str) -> list[ResponseEvent]:
        if self._open and self._items[-1]["type"] == kind:
            return []
        return [*self._end("completed"), *self._begin(_message() if kind == "message" else _reasoning())]

    def _begin(self, item: dict[str, Any]) -> list[ResponseEvent]:
        part = item["content"][0] if "content" in item else None
        self._items.append(item)
        self._open = True
        # Events are told a few at a time: each needs a copy of how things stood.
        bare = {**item, "content": []} if part is not None else dict(item)
        told = [self._event("response.output_item.added", output_index=self._index, item=bare)]
        if part is not None:
            told.append(self._placed("response.content_part.added", content_index=0, part=deepcopy(part)))
        return told

    def _end(self, status: str) -> list[ResponseEvent]:
        """Close the open item, if there is one."""
        if not self._open:
            return []
        self._open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "reasoning" and self._seals:
            item["encrypted_content"] = sealed(item["content"][0]["text"])
        if item["type"] == "function_call":
            kind = "response.function_call_arguments.done"
            told = [self._placed(kind, arguments=item["arguments"], name=item["name"])]
        else:
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            told = [
                self._placed(f"response.{part['type']}.done", content_index=0, text=part["text"], **more),
                self._placed("response.content_part.done", content_index=0, part=deepcopy(part)),
            ]
        return [*told, self._event("response.output_item.done", output_index=self._index, item=deepcopy(item))]

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    def _delta(self, kind: str, text: str, **more: Any) -> ResponseEvent:
        if self._obfuscates:
            # Characters that mean nothing hide the length of what is said from whoever sees only sizes.
            more["obfuscation"] = secrets.token_urlsafe(OBFUSCATION)[: OBFUSCATION - len(text) % OBFUSCATION]
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
            "output_tokens_details": {"reasoning_tokens": generation.counts.reasoning},
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


def _function_call(name: str, call_id: str) -> dict[str, Any]:
    ids = {"id": _id("fc"), "call_id": call_id}
    return {**ids, "type": "function_call", "name": name, "arguments": "", "status": "in_progress"}


def _dumped(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _response(body: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request, at its beginning."""
    reasoning = body.reasoning
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": body.presence_penalty or 0.0,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": (body.prompt_cache_retention or "").replace("-", "_") or None,
        "reasoning": {"effort": reasoning.effort if reasoning is not None else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        # The one that there is, whichever was asked for.
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": _text(body),
        "tool_choice": _dumped(body.tool_choice) or "auto",
        "tools": [_tool(tool) for tool in body.functions],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _text(body: ResponsesRequest) -> dict[str, Any]:
    format = body.text.format if body.text is not None else None
    verbosity = body.text.verbosity if body.text is not None else None
    return {"format": _format(format), **({"verbosity": verbosity} if verbosity is not None else {})}


def _format(format: TextFormat | None) -> dict[str, Any]:
    if format is None or format.type != "json_schema":
        return {"type": "text" if format is None else format.type}
    return format.model_dump(by_alias=True)


def _tool(tool: ResponseTool) -> dict[str, Any]:
    always = {"description": None, "parameters": None, "strict": None}
    return always | tool.model_dump(exclude_none=True)
