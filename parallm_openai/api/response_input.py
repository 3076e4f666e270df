"""A request to `/v1/responses` as the chat request that says the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from parallm_openai.api import errors
from parallm_openai.api.response_store import ResponseStore, Turn
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.schemas.response_items import (
    STORED_ITEMS,
    Answered,
    Called,
    Item,
    Message,
    Reference,
    Said,
    Thought,
)
from parallm_openai.api.schemas.responses import (
    AllowedResponseTools,
    ConversationFields,
    NamedResponseTool,
    ReasoningConfig,
    ResponsesRequest,
    TextFormat,
)
from parallm_openai.api.schemas.sampling import SamplingFields

ChatMessage = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """The items of a request, references resolved, and the turns before them."""

    items: Sequence[Item]
    previous: Turn | None = None

    def messages(self, reasoning: ReasoningConfig | None) -> list[ChatMessage]:
        """All of it as chat messages; the template chooses among the thoughts, unless the request does."""
        earlier = [] if self.previous is None else STORED_ITEMS.validate_python(self.previous.items())
        messages = chat_messages([*earlier, *self.items])
        if not messages:
            raise errors.invalid("'input' holds nothing that the model can be told.", "input")
        if reasoning is not None and reasoning.context == "current_turn":
            asked = max((place for place, each in enumerate(messages) if each["role"] == "user"), default=0)
            for message in messages[:asked]:
                message.pop("reasoning_content", None)
        return messages


def conversation(store: ResponseStore, owner: str, body: ConversationFields) -> Conversation:
    """What the request goes on from and what it adds. Raises ApiError for what is not stored."""
    previous = None
    if body.previous_response_id is not None:
        found = store.get(owner, body.previous_response_id)
        if found is None:
            message = f"Previous response with id '{body.previous_response_id}' not found."
            raise errors.invalid(message, "previous_response_id", "previous_response_not_found")
        previous = found.turn
    if isinstance(body.input, str):
        return Conversation([Message(role="user", content=body.input)], previous)
    if body.input is None and previous is None:
        raise errors.invalid("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    items = [_resolved(store, owner, item, index) for index, item in enumerate(body.items)]
    if not items and previous is None:
        raise errors.invalid("'input' must not be empty.", "input")
    return Conversation(items, previous)


def _resolved(store: ResponseStore, owner: str, item: Item, index: int) -> Item:
    if not isinstance(item, Reference):
        return item
    found = store.item(owner, item.id)
    if found is None:
        message = f"Item with id '{item.id}' not found: only items of stored responses can be referred to."
        raise errors.invalid(message, f"input[{index}].id", "item_not_found")
    return STORED_ITEMS.validate_python([found])[0]


def chat_messages(items: Iterable[Item]) -> list[ChatMessage]:
    """Items as chat messages; the thoughts, the text and the calls of one turn of the assistant are one message."""
    written = _Messages()
    for item in items:
        for told in item.told():
            match told:
                case Thought(text):
                    written.think(text)
                case Said(role, text):
                    written.say(role, text)
                case Called(id, name, arguments):
                    written.call(id, name, arguments)
                case Answered(id, text):
                    written.add({"role": "tool", "tool_call_id": id, "content": text})
    return written.messages


class _Messages:
    """Chat messages as they are put together. Thoughts wait for what they led to."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._thoughts: list[str] = []

    def think(self, text: str) -> None:
        self._thoughts.append(text)

    def say(self, role: str, text: str) -> None:
        if role == "assistant":
            self.messages.append({"role": role, "content": text, **self._reasoning()})
        else:
            self.add({"role": role, "content": text})

    def call(self, id: str, name: str, arguments: str) -> None:
        """A call belongs to the assistant's message before it, if there is one."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        message = self.messages[-1]
        thoughts = [message.get("reasoning_content"), *self._reasoning().values()]
        if any(thoughts):
            message["reasoning_content"] = "\n".join(thought for thought in thoughts if thought)
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message.setdefault("tool_calls", []).append(call)

    def add(self, message: ChatMessage) -> None:
        """A message that is not the assistant's: thoughts that led to nothing are a turn of their own before it."""
        if self._thoughts:
            self.say("assistant", "")
        self.messages.append(message)

    def _reasoning(self) -> dict[str, str]:
        thoughts, self._thoughts = self._thoughts, []
        return {"reasoning_content": "\n".join(thoughts)} if thoughts else {}


def chat_request(body: ConversationFields, messages: Sequence[ChatMessage], model: str) -> ChatRequest:
    """The same as a chat request; `messages` are the whole conversation without instructions."""
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    fields = {
        "model": model,
        "messages": [*instructions, *messages],
        "tools": [_tool(tool.model_dump(include=TOLD_OF_TOOLS, exclude_none=True)) for tool in body.functions] or None,
        "tool_choice": _tool_choice(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body.text.format) if body.text is not None and body.text.format else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "chat_template_kwargs": body.chat_template_kwargs,
    }
    if isinstance(body, ResponsesRequest):
        fields |= {name: getattr(body, name) for name in (*SamplingFields.model_fields, "thinking_budget")}
        fields |= {"max_completion_tokens": body.max_output_tokens, "prompt_cache_key": body.prompt_cache_key}
        fields |= {"logprobs": body.wants_logprobs, "top_logprobs": body.top_logprobs}
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise errors.from_validation(error.errors()) from error


TOLD_OF_TOOLS = {"name", "description", "parameters", "strict"}


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _tool_choice(body: ConversationFields) -> Any:
    match body.tool_choice:
        case NamedResponseTool(name=name):
            return _tool({"name": name})
        case AllowedResponseTools(mode=mode, tools=tools):
            named = [_tool({"name": tool.name}) for tool in tools if isinstance(tool, NamedResponseTool)]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        case choice:
            return choice


def _format(format: TextFormat) -> dict[str, Any]:
    if format.type != "json_schema":
        return {"type": format.type}
    schema = format.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": "json_schema", "json_schema": schema}


# A chat request's fields, as requests to `/v1/responses` name them.
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


def in_own_names(error: errors.ApiError) -> errors.ApiError:
    """A chat request's error in the words of `/v1/responses`."""
    detail = error.body["error"]
    for chat, own in NAMES.items():
        for form in ("'{}'", "the {}"):
            detail["message"] = str(detail["message"]).replace(form.format(chat), form.format(own))
    detail["param"] = NAMES.get(str(detail["param"]), detail["param"])
    for field in ("message", "param"):
        if detail[field] is not None:
            # Tools of this form have their fields directly.
            detail[field] = re.sub(r"(tools\[\d+\])\.function\.", r"\1.", str(detail[field]))
    return error
