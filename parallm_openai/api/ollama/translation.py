"""Requests to `/api/chat` and `/api/generate` as what is prepared, and the names of their fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallm_openai.api.chat_description import function_tool
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.ollama.schemas import ChatRequest, GenerateRequest, GeneratingFields, Message
from parallm_openai.text.description import ChatDescription, TextDescription, Tool

NAMES = {
    "max_tokens": "options.num_predict",
    "response_format": "format",
    "reasoning_effort": "think",
    "prompts": "prompt",
    "prompts[0]": "prompt",
}
GENERATE_NAMES = FieldNames(NAMES | {"messages": "prompt"})


def chat_names(body: ChatRequest) -> FieldNames:
    """The fields' names; tools that the model does not get still count in theirs."""
    return FieldNames(NAMES | {f"tools[{index}]": f"tools[{place}]" for index, place in enumerate(body.function_tools)})


def chat_description(body: ChatRequest, owner: str, ignored: Ignored, *, reasons: bool) -> ChatDescription:
    tools = [function_tool(tool.function) for tool in body.function_tools.values()]
    return _chat(body, [_message(each) for each in body.messages or []], owner, ignored, reasons=reasons, tools=tools)


def prompt_description(body: GenerateRequest, owner: str, ignored: Ignored, *, reasons: bool) -> ChatDescription:
    """A prompt as the only question of a conversation."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    messages = [*system, {"role": "user", "content": body.prompt or ""}]
    return _chat(body, messages, owner, ignored, reasons=reasons)


def text_description(body: GenerateRequest, owner: str, ignored: Ignored) -> TextDescription:
    """A prompt as it is, or one with a gap to fill."""
    return TextDescription(
        prompts=[body.prompt or ""],
        suffix=body.suffix or None,
        sampling=body.chosen.sampling(),
        cut_to_context=not ignored.strict,
        stops=tuple(body.chosen.stop or ()),
        formats=tuple(body.formats()),
        salt=owner,
    )


def _chat(
    body: GeneratingFields,
    messages: Sequence[dict[str, Any]],
    owner: str,
    ignored: Ignored,
    *,
    reasons: bool,
    tools: Sequence[Tool] = (),
) -> ChatDescription:
    return ChatDescription(
        messages=messages,
        tools=tools,
        sampling=body.chosen.sampling(),
        cut_to_context=not ignored.strict,
        stops=tuple(body.chosen.stop or ()),
        formats=tuple(body.formats()),
        # As /v1/chat/completions has it: both share what is cached.
        salt=f"{owner} ",
        **body.thinking(ignored, reasons=reasons),
    )


def _message(message: Message) -> dict[str, Any]:
    given = {
        "reasoning_content": message.thinking,
        "tool_calls": [call.model_dump(exclude_none=True) for call in message.tool_calls or []],
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    said = {"role": message.role, "content": message.content or ""}
    return said | {name: value for name, value in given.items() if value}
