"""A request to `/v1/responses` as the conversation that is prepared, and the names of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallm_openai.api import errors
from parallm_openai.api.chat_description import ANY_OBJECT
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.response_store import Responses, Turn
from parallm_openai.api.schemas.chat import MAX_MESSAGES
from parallm_openai.api.schemas.response_items import (
    STORED_ITEMS,
    Item,
    Message,
    Reference,
)
from parallm_openai.api.schemas.response_tools import AllowedResponseTools, NamedResponseTool, Offered
from parallm_openai.api.schemas.responses import (
    ConversationFields,
    ReasoningConfig,
    ResponsesRequest,
    TextFormat,
)
from parallm_openai.api.statements import ChatMessage, messages_of
from parallm_openai.text.description import AnswerFormat, ChatDescription, ToolChoice


@dataclass(frozen=True)
class Conversation:
    """The items of a request, with references resolved, and the turns before them."""

    items: Sequence[Item]
    previous: Turn | None = None

    def messages(self, reasoning: ReasoningConfig | None) -> list[ChatMessage]:
        """The whole conversation as chat messages. The template decides which thoughts to show, or the request."""
        earlier = [] if self.previous is None else STORED_ITEMS.validate_python(self.previous.items())
        messages = chat_messages([*earlier, *self.items])
        if not messages:
            raise errors.invalid("'input' holds nothing that the model can read.", "input")
        if reasoning is not None and reasoning.context == "current_turn":
            asked = max((place for place, each in enumerate(messages) if each["role"] == "user"), default=0)
            for message in messages[:asked]:
                message.pop("reasoning_content", None)
        return messages


async def conversation(store: Responses, owner: str, body: ConversationFields) -> Conversation:
    """The conversation that the request continues, and what it adds. Raises ApiError if something is not stored."""
    previous = None
    if body.previous_response_id is not None:
        found = await store.get(owner, body.previous_response_id)
        if found is None:
            message = f"Previous response with id '{body.previous_response_id}' not found."
            raise errors.invalid(message, "previous_response_id", "previous_response_not_found")
        previous = found.turn
    if isinstance(body.input, str):
        return Conversation([Message(role="user", content=body.input)], previous)
    if body.input is None and previous is None:
        raise errors.invalid("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    items = [await _resolved(store, owner, item, index) for index, item in enumerate(body.items)]
    if not items and previous is None:
        raise errors.invalid("'input' must not be empty.", "input")
    return Conversation(items, previous)


async def _resolved(store: Responses, owner: str, item: Item, index: int) -> Item:
    if not isinstance(item, Reference):
        return item
    found = await store.item(owner, item.id)
    if found is None:
        message = f"Item with id '{item.id}' not found: only items of stored responses can be referred to."
        raise errors.invalid(message, f"input[{index}].id", "item_not_found")
    return STORED_ITEMS.validate_python([found])[0]


def chat_messages(items: Iterable[Item]) -> list[ChatMessage]:
    return messages_of(statement for item in items for statement in item.statements())


def response_description(body: ConversationFields, messages: Sequence[ChatMessage], owner: str) -> ChatDescription:
    """The request as a description; `messages` are the whole conversation without instructions."""
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if len(instructions) + len(messages) > MAX_MESSAGES:
        raise errors.invalid(f"'input' makes more than {MAX_MESSAGES} messages.", "input")
    description = ChatDescription(
        messages=[*instructions, *messages],
        tools=[_tool(function) for function in body.functions],
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        chat_template_kwargs=body.chat_template_kwargs or {},
        formats=_formats(body.text.format if body.text is not None else None),
    )
    if not isinstance(body, ResponsesRequest):
        return description
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    return replace(
        description,
        thinking_budget=body.thinking_budget,
        sampling=body.sampling(max_tokens=body.max_output_tokens, logprobs=logprobs),
        stops=body.stops(),
        formats=(*description.formats, *body.formats()),
        salt=f"{owner} {body.prompt_cache_key or ''}",
    )


SHOWN_OF_TOOLS = {"name", "description", "parameters", "strict"}

NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


def response_names(body: ConversationFields) -> FieldNames:
    """The fields' names; tools that the model does not get still count in theirs."""
    places = {f"tools[{index}]": function.field for index, function in enumerate(body.functions)}
    return FieldNames(NAMES | places, flat_tools=True)


def _tool(function: Offered) -> dict[str, Any]:
    shown = function.tool.model_dump(include=SHOWN_OF_TOOLS, exclude_none=True)
    return {"type": "function", "function": {**shown, "name": function.name}}


def _tool_choice(body: ConversationFields) -> ToolChoice:
    match body.tool_choice:
        case NamedResponseTool(name=name):
            return ToolChoice("named", (name,))
        case AllowedResponseTools(mode=mode, tools=tools):
            return ToolChoice(mode, tuple(tool.name for tool in tools if isinstance(tool, NamedResponseTool)))
        case "none" | "auto" | "required" as mode:
            return ToolChoice(mode)
        case _:
            return ToolChoice()


def _formats(format: TextFormat | None) -> tuple[AnswerFormat, ...]:
    if format is None or format.type == "text":
        return ()
    schema = ANY_OBJECT if format.type == "json_object" else format.json_schema or {}
    return (AnswerFormat("json_schema", schema, "response_format"),)
