"""A request to `/v1/responses` as the chat request that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.schemas.responses import (
    AllowedResponseTools,
    FunctionCallItem,
    FunctionCallOutput,
    InputMessage,
    InputPart,
    NamedResponseTool,
    ResponsesRequest,
    TextFormat,
)
from parallm_openai.api.schemas.sampling import SamplingFields

Message = dict[str, Any]


def new_messages(body: ResponsesRequest) -> list[Message]:
    """The input as chat messages; thoughts of earlier answers are left out, as templates leave them out."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    messages: list[Message] = []
    for item in body.input:
        match item:
            case InputMessage():
                messages.append({"role": item.role, "content": _text(item.content)})
            case FunctionCallItem():
                add_call(messages, item.call_id, item.name, item.arguments)
            case FunctionCallOutput():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return messages


def add_call(messages: list[Message], call_id: str, name: str, arguments: str) -> None:
    """A call belongs to the assistant's message before it, if there is one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: str | Sequence[InputPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text or part.refusal or "" for part in content)


def chat_request(body: ResponsesRequest, messages: Sequence[Message]) -> ChatRequest:
    """The same as a chat request; `messages` are the whole conversation without instructions."""
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    fields: dict[str, Any] = {name: getattr(body, name) for name in SamplingFields.model_fields}
    return ChatRequest.model_validate(
        {
            **fields,
            "model": body.model,
            "messages": [*instructions, *messages],
            "max_completion_tokens": body.max_output_tokens,
            "logprobs": body.wants_logprobs,
            "top_logprobs": body.top_logprobs,
            "tools": [_tool(tool.model_dump(exclude_none=True)) for tool in body.tools] if body.tools else None,
            "tool_choice": _tool_choice(body),
            "parallel_tool_calls": body.parallel_tool_calls,
            "response_format": _format(body.text.format) if body.text is not None and body.text.format else None,
            "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
            "thinking_budget": body.thinking_budget,
            "chat_template_kwargs": body.chat_template_kwargs,
        }
    )


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(body: ResponsesRequest) -> Any:
    match body.tool_choice:
        case NamedResponseTool(name=name):
            return {"type": "function", "function": {"name": name}}
        case AllowedResponseTools(mode=mode, tools=tools):
            named = [{"type": "function", "function": {"name": tool.name}} for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        case choice:
            return choice


def _format(format: TextFormat) -> dict[str, Any]:
    if format.type != "json_schema":
        return {"type": format.type}
    schema = format.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": "json_schema", "json_schema": schema}
