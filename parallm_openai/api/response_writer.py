"""Writes a response of `/v1/responses` as it grows: its items, and the events that report them."""

from __future__ import annotations

import secrets
import time
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from parallm_openai.api.logprobs import chat_content
from parallm_openai.api.schemas.response_items import sealed
from parallm_openai.api.schemas.response_tools import Namespace, ResponseTool
from parallm_openai.api.schemas.responses import ResponsesRequest, TextFormat
from parallm_openai.api.schemas.tools import OtherTool
from parallm_openai.engine.request import FinishReason
from parallm_openai.text import draws
from parallm_openai.text.defaults import Defaults
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning
from parallm_openai.text.generation import Generation
from parallm_openai.text.output import OutputDelta
from parallm_openai.text.tokenizer import Tokenizer

ResponseEvent = dict[str, Any]

# Deltas are padded to a multiple of this length.
OBFUSCATION = 16


class ResponseWriter:
    """Turns the events of one answer into items. Its own events are numbered from 0, in the documented order."""

    def __init__(self, body: ResponsesRequest, model: str, tokenizer: Tokenizer, defaults: Defaults) -> None:
        self._tokenizer = tokenizer
        self._logprobs = body.wants_logprobs
        self._seals = body.wants_sealed_thoughts
        self._obfuscates = body.wants_obfuscation
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._scored: list[dict[str, Any]] = []
        # What the client calls a function that the model calls so: its name, and its namespace if it has one.
        self._names = {each.name: (each.tool.name, each.namespace) for each in body.functions}
        self._response = _response(body, model, defaults)

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

    def read(self, delta: OutputDelta) -> list[ResponseEvent]:
        if self._logprobs:
            self._scored += chat_content(delta.logprobs, self._tokenizer)
        events: list[ResponseEvent] = []
        for event in delta.events:
            events += self._events_of(event)
        if delta.events:
            # Those left belong to thoughts or calls; text that is still held back will bring its own.
            self._scored = []
        return events

    def finish(self, reason: FinishReason | None, generation: Generation) -> list[ResponseEvent]:
        """Close the open item and set the response's status and usage, which `end` then reports."""
        whole = reason is FinishReason.STOP
        status = "completed" if whole else "incomplete"
        events = [] if self._items else self._begin(_message())
        events += self._end(status)
        self._response |= {
            "status": status,
            "completed_at": int(time.time()) if whole else None,
            # OpenAI has no reason for a server that shuts down.
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "usage": self._usage(generation),
        }
        return events

    def end(self) -> ResponseEvent:
        return self._event(f"response.{self._response['status']}", response=self.body)

    def fail(self, message: str) -> ResponseEvent:
        """The last event of a response that failed."""
        if self._open:
            self._items[-1]["status"] = "incomplete"
        failed = {"status": "failed", "completed_at": None, "error": {"code": "server_error", "message": message}}
        self._response |= {**failed, "store": False}
        return self.end()

    def _events_of(self, event: Event) -> list[ResponseEvent]:
        match event:
            case Content(text):
                begun = self._ensure("message")
                part = self._items[-1]["content"][0]
                part["text"] += text
                # Log-probabilities are reported once, with the first text after them.
                own, self._scored = self._scored, []
                part["logprobs"] += own
                return [*begun, self._delta("output_text", text, content_index=0, logprobs=own)]
            case Reasoning(text):
                begun = self._ensure("reasoning")
                self._items[-1]["content"][0]["text"] += text
                return [*begun, self._delta("reasoning_text", text, content_index=0)]
            case CallStart(_, name, id):
                return [*self._end("completed"), *self._begin(_function_call(*self._names.get(name, (name, None)), id))]
            case CallArguments(_, text):
                self._items[-1]["arguments"] += text
                return [self._delta("function_call_arguments", text)]
            case Finish():
                return []

    def _ensure(self, kind: str) -> list[ResponseEvent]:
        if self._open and self._items[-1]["type"] == kind:
            return []
        return [*self._end("completed"), *self._begin(_message() if kind == "message" else _reasoning())]

    def _begin(self, item: dict[str, Any]) -> list[ResponseEvent]:
        part = item["content"][0] if "content" in item else None
        self._items.append(item)
        self._open = True
        # Several events are made before the first is sent: each needs a copy of the item as it was.
        bare = {**item, "content": []} if part is not None else dict(item)
        events = [self._event("response.output_item.added", output_index=self._index, item=bare)]
        if part is not None:
            events.append(self._item_event("response.content_part.added", content_index=0, part=deepcopy(part)))
        return events

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
            events = [self._item_event(kind, arguments=item["arguments"], name=item["name"])]
        else:
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            events = [
                self._item_event(f"response.{part['type']}.done", content_index=0, text=part["text"], **more),
                self._item_event("response.content_part.done", content_index=0, part=deepcopy(part)),
            ]
        return [*events, self._event("response.output_item.done", output_index=self._index, item=deepcopy(item))]

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    def _delta(self, kind: str, text: str, **more: Any) -> ResponseEvent:
        if self._obfuscates:
            # Meaningless characters hide the length of the text from anybody who sees only the sizes of packets.
            more["obfuscation"] = secrets.token_urlsafe(OBFUSCATION)[: OBFUSCATION - len(text) % OBFUSCATION]
        return self._item_event(f"response.{kind}.delta", delta=text, **more)

    def _item_event(self, kind: str, **more: Any) -> ResponseEvent:
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
    return f"{prefix}_{draws.new_hex()}"


def _message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": _id("msg"), "type": "message", "role": "assistant", "status": "in_progress", "content": [part]}


def _reasoning() -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": ""}
    return {"id": _id("rs"), "type": "reasoning", "summary": [], "status": "in_progress", "content": [part]}


def _function_call(name: str, namespace: str | None, call_id: str) -> dict[str, Any]:
    called = {"id": _id("fc"), "call_id": call_id, "type": "function_call", "name": name}
    if namespace is not None:
        called["namespace"] = namespace
    return {**called, "arguments": "", "status": "in_progress"}


def _dumped(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _response(body: ResponsesRequest, model: str, defaults: Defaults) -> dict[str, Any]:
    """A response at its beginning, with the fields that it repeats from its request."""
    reasoning = body.reasoning
    sampling = defaults.filled(body.sampling(max_tokens=None))
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": draws.created(),
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
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": body.presence_penalty or 0.0,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": (body.prompt_cache_retention or "").replace("-", "_") or None,
        "reasoning": {"effort": reasoning.effort if reasoning is not None else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        # There is only this one, whichever the request asked for.
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": _text(body),
        "tool_choice": _dumped(body.tool_choice) or "auto",
        "tools": [_tool(tool) for tool in body.tools or [] if not isinstance(tool, OtherTool)],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
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


def _tool(tool: ResponseTool | Namespace) -> dict[str, Any]:
    if isinstance(tool, Namespace):
        inner = [_tool(each) for each in tool.tools if isinstance(each, ResponseTool)]
        return {"type": "namespace", "name": tool.name, "description": tool.description or "", "tools": inner}
    always = {"description": None, "parameters": None, "strict": None}
    return always | tool.model_dump(exclude_none=True)
