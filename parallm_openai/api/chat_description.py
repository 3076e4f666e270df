"""A request to `/v1/chat/completions` as the description that is prepared, and the names of its fields."""

from __future__ import annotations

from typing import Any

from parallm_openai.api import errors
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.schemas.chat import ChatMessage, ChatRequest, ResponseFormat
from parallm_openai.api.schemas.tools import AllowedToolsChoice, FunctionDefinition, FunctionName, NamedTool
from parallm_openai.api.unreadable import words_for
from parallm_openai.text.description import AnswerFormat, ChatDescription, ToolChoice

ANY_OBJECT = {"type": "object"}


def chat_description(body: ChatRequest, owner: str, *, strict: bool) -> ChatDescription:
    """Raises ApiError for tools that are described in the old form and in the new one."""
    if is_legacy(body) and (body.tools is not None or body.tool_choice is not None):
        raise errors.invalid("'functions' is the old form of 'tools'; send one of them.", "functions")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    continues = body.continue_final_message
    if continues is None and body.add_generation_prompt:
        continues = False
    return ChatDescription(
        messages=[_message(message) for message in body.messages],
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=not is_legacy(body) and body.parallel_tool_calls is not False,
        reasoning_effort=body.reasoning_effort,
        thinking_budget=body.thinking_budget,
        chat_template_kwargs=body.chat_template_kwargs or {},
        continue_final_message=continues,
        sampling=body.sampling(max_tokens=wanted_tokens(body), logprobs=logprobs),
        cut_to_context=not strict,
        n=body.n or 1,
        stops=body.stops(),
        formats=(*_response_format(body.response_format), *body.formats()),
        salt=f"{owner} {body.prompt_cache_key or ''}",
    )


def is_legacy(body: ChatRequest) -> bool:
    """Whether the request has functions, which OpenAI's clients had before tools. At most one is called."""
    return body.functions is not None or body.function_call is not None


def wanted_tokens(body: ChatRequest) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def chat_names(body: ChatRequest) -> FieldNames:
    names = {} if body.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
    if is_legacy(body):
        return FieldNames(names | {"tools": "functions", "tool_choice": "function_call"}, flat_tools=True)
    # Tools that the model does not get still count.
    return FieldNames(names | {f"tools[{index}]": f"tools[{place}]" for index, place in enumerate(body.function_tools)})


def _message(message: ChatMessage) -> dict[str, Any]:
    dumped = message.model_dump(exclude_none=True)
    for place, part in message.unreadable_results.items():
        dumped["content"][place] = {"type": "text", "text": words_for(part.type)}
    return dumped


def _tools(body: ChatRequest) -> list[dict[str, Any]]:
    """The tools as the client sent them: nested deeper than pydantic would dump them, if need be."""
    functions = body.functions or [tool.function for tool in body.function_tools.values()]
    return [function_tool(each) for each in functions]


def function_tool(function: FunctionDefinition) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in function if value is not None}}


def _tool_choice(body: ChatRequest) -> ToolChoice:
    choice = body.tool_choice if body.function_call is None else body.function_call
    match choice:
        case None:
            return ToolChoice()
        case NamedTool():
            return ToolChoice("named", (choice.function.name,))
        case FunctionName():
            return ToolChoice("named", (choice.name,))
        case AllowedToolsChoice():
            names = tuple(tool.function.name for tool in choice.allowed_tools.tools)
            return ToolChoice(choice.allowed_tools.mode, names)
        case _:
            return ToolChoice(choice)


def _response_format(format: ResponseFormat | None) -> list[AnswerFormat]:
    if format is None or format.type == "text":
        return []
    schema = ANY_OBJECT if format.json_schema is None else format.json_schema.json_schema or {}
    return [AnswerFormat("json_schema", schema, "response_format")]
