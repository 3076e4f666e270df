"""A request to `/v1/messages` as the conversation that is prepared, and the names of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from parallm_openai.api import errors
from parallm_openai.api.anthropic.blocks import Block, ToolResult, text_of
from parallm_openai.api.anthropic.schemas import CountTokensRequest, Message, MessagesRequest, Tool, ToolChoice
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.chat import MAX_MESSAGES
from parallm_openai.api.statements import Said, Statement, messages_of
from parallm_openai.text.defaults import asked
from parallm_openai.text.description import AnswerFormat, ChatDescription
from parallm_openai.text.description import ToolChoice as DescribedChoice

# Claude Code's first block of instructions begins so. It differs in each request and says nothing to a model; in the
# prompt, it would keep any prefix from being found in the cache.
BILLING = "x-anthropic-billing-header:"

MODES = {"auto": DescribedChoice(), "any": DescribedChoice("required"), "none": DescribedChoice("none")}


def prompt_description(body: CountTokensRequest, owner: str, ignored: Ignored, *, reasons: bool) -> ChatDescription:
    """The description of a request's prompt. `reasons` says whether the model can think."""
    tools = list(body.custom_tools.values())
    messages = messages_of(_statements(body, {tool.name: _definition(tool) for tool in tools}))
    if not messages:
        raise errors.invalid("'messages' holds nothing that the model can read.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise errors.invalid(f"'messages' makes more than {MAX_MESSAGES} messages.", "messages")
    choice = body.tool_choice
    return ChatDescription(
        messages=messages,
        tools=[tool.function for tool in tools],
        described=frozenset(tool.name for tool in tools if tool.defer_loading and body.defers),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
        formats=()
        if body.format is None
        else (AnswerFormat("json_schema", body.format.json_schema, "response_format"),),
        # As /v1/chat/completions has it: both share what is cached.
        salt=f"{owner} ",
        **_thinking(body, ignored, reasons=reasons),
    )


def message_description(body: MessagesRequest, owner: str, ignored: Ignored, *, reasons: bool) -> ChatDescription:
    """The request as a description. An answer longer than the context is cut to it, as Anthropic does."""
    return replace(
        prompt_description(body, owner, ignored, reasons=reasons),
        sampling=asked(max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        cut_to_context=not ignored.strict,
        stops=tuple(body.stop_sequences or ()),
    )


def message_names(body: CountTokensRequest) -> FieldNames:
    """The fields' names; tools that the model does not get still count in theirs."""
    places = {f"tools[{index}]": f"tools[{place}]" for index, place in enumerate(body.custom_tools)}
    format = "output_config.format" if body.output_format is None else "output_format"
    names = {"response_format": format, "reasoning_effort": "thinking", "thinking_budget": "thinking.budget_tokens"}
    return FieldNames(names | places, flat_tools=True, parameters="input_schema")


def _statements(body: CountTokensRequest, definitions: dict[str, str]) -> Iterator[Statement]:
    if system := _instructions(body):
        yield Said("system", system)
    for message in body.messages:
        yield from _said(message, definitions)


def _instructions(body: CountTokensRequest) -> str:
    content = body.system or ""
    if isinstance(content, str):
        return content
    return text_of([block for block in content if not text_of([block]).startswith(BILLING)])


def _said(message: Message, definitions: dict[str, str]) -> Iterator[Statement]:
    """What a message says, the results of calls first. Texts that stand together are one.

    The first reference to a tool says its definition: unlike one in the list of tools, it leaves what is cached as it
    is. Later ones say its name.
    """
    if isinstance(message.content, str):
        yield Said(message.role, message.content)
        return
    blocks: list[Block] = sorted(message.content, key=lambda block: not isinstance(block, ToolResult))
    defined = [block.resolved(definitions) for block in blocks]
    statements = [statement for block in defined for statement in block.statements(message.role)]
    # The model's own text comes back in blocks only if calls or thoughts stood between.
    between = "" if message.role == "assistant" else "\n"
    for said, group in groupby(statements, lambda statement: isinstance(statement, Said)):
        if said:
            yield Said(message.role, between.join(each.text for each in group if isinstance(each, Said)))
        else:
            yield from group


def _definition(tool: Tool) -> str:
    """The tool as a list of tools would show it to the model."""
    function = {name: value for name, value in tool.function["function"].items() if name != "strict"}
    return json.dumps({**tool.function, "function": function}, ensure_ascii=False)


def _tool_choice(choice: ToolChoice | None) -> DescribedChoice:
    if choice is None:
        return DescribedChoice()
    return MODES[choice.type] if choice.name is None else DescribedChoice("named", (choice.name,))


def _thinking(body: CountTokensRequest, ignored: Ignored, *, reasons: bool) -> dict[str, Any]:
    """The fields of a description that say how to think. As for Anthropic, thoughts are off unless asked for."""
    thinking = body.thinking
    if thinking is None or thinking.type == "disabled":
        return {"reasoning_effort": "none"}
    if not reasons:
        ignored.add("thinking", errors.unsupported("thinking", "cannot be used: this model does not reason"))
        return {}
    effort = None if body.output_config is None else body.output_config.effort
    options: dict[str, Any] = {"thinking_budget": thinking.budget_tokens, "reasoning_effort": effort}
    # Without an effort, the template has its own.
    return options if effort is not None else options | {"chat_template_kwargs": {"enable_thinking": True}}
