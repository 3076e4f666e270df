"""From a described conversation to the prompt that the model's chat template makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from parallm_openai.text.call_ids import Message
from parallm_openai.text.description import ChatDescription
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.request_error import Field, RequestError, unsupported
from parallm_openai.text.templates import TemplateError
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.tools.use import ToolUse
from parallm_openai.text.workers import Workers


@dataclass(frozen=True)
class RenderedPrompt:
    """A conversation as text, how far that text has begun the answer, and whether thoughts may come first."""

    text: str
    beginning: Beginning
    may_think: bool


async def render_prompt(
    tokenizer: Tokenizer,
    workers: Workers,
    description: ChatDescription,
    use: ToolUse,
    default_variables: Mapping[str, Any],
) -> RenderedPrompt:
    """The conversation, which has a message at least, in the model's own format.

    The template gets `default_variables` as far as the request does not set them, by their name or by its effort.
    Raises RequestError if the chat template refuses it.
    """
    variables = {**default_variables, **_template_variables(tokenizer, description)}
    messages = description.messages
    continues = _continues(description)
    render = partial(tokenizer.render, messages, tools=use.listed, continue_final=continues, variables=variables)
    try:
        text = await workers.render(render)
    except TemplateError as error:
        raise RequestError("{}", error, field="messages", kind="invalid_messages") from error
    format = tokenizer.chat_format
    beginning = format.beginning(text, message_text(messages[-1]) if continues else None)
    default = format.harmony or (format.thinking is not None and tokenizer.thinks_by_default)
    may_think = beginning is Beginning.THOUGHTS or bool(variables.get("enable_thinking", default))
    return RenderedPrompt(text, beginning, may_think)


def _template_variables(tokenizer: Tokenizer, description: ChatDescription) -> dict[str, Any]:
    variables = dict(description.chat_template_kwargs)
    if taken := tokenizer.template.reserved & variables.keys():
        field = f"chat_template_kwargs.{min(taken)}"
        raise RequestError("'{}' cannot be set: the server sets it itself.", Field(field), field=field)
    effort = description.reasoning_effort
    if effort is not None:
        if effort != "none" and not tokenizer.chat_format.reasons:
            raise unsupported("reasoning_effort", "cannot be used: this model does not reason")
        variables.setdefault("reasoning_effort", effort)
        variables.setdefault("enable_thinking", effort != "none")
    return variables


def _continues(description: ChatDescription) -> bool:
    """Whether the model continues the last message instead of answering it."""
    if description.continue_final_message is not None:
        return description.continue_final_message
    last = description.messages[-1]
    return last["role"] == "assistant" and not (last.get("tool_calls") or last.get("function_call"))


def message_text(message: Message) -> str:
    """The text of a message's content, which may be in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""
