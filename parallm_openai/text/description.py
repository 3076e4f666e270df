"""A request described without HTTP: each surface translates its bodies into one, and `prepare.py` does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from parallm_openai.engine.request import SamplingParams
from parallm_openai.text.call_ids import Message

Prompt = str | Sequence[int]
"""Text, or token ids."""

Tool = Mapping[str, Any]
"""A function that may be called, in OpenAI's form: `{"type": "function", "function": {"name", "parameters", …}}`."""


@dataclass(frozen=True)
class AnswerFormat:
    """What an answer must be: JSON of a schema, a match of a regular expression, or text of a Lark grammar.

    `field` is the field of the request that asks for it.
    """

    kind: Literal["json_schema", "regex", "lark"]
    value: Any
    field: str


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools may or must be called, and which of them (None: any). With the mode `named` there is one name."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every request may say of its answers.

    Each of `n` choices gets `sampling` with a seed of its own. If `sampling.max_tokens` is None, an answer may have
    `default_max_tokens` or as many as fit; if it is set, the context must have room for that many, unless
    `cut_to_context`. Requests share computed prefixes only with those of the same `salt`. At most one of `formats` may
    be there.
    """

    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=None))
    default_max_tokens: int | None = None
    cut_to_context: bool = False
    n: int = 1
    stops: tuple[str, ...] = ()
    formats: tuple[AnswerFormat, ...] = ()
    salt: str = ""


@dataclass(frozen=True, kw_only=True)
class ChatDescription(Options):
    """A conversation to answer. Messages and tools are in OpenAI's form.

    The model continues the last message instead of answering it if `continue_final_message`; None lets it do so if
    that message is the assistant's own and calls no tools. `chat_template_kwargs` are variables of the chat template.
    A message describes the tools of the names in `described`, so that the prompt's list of tools leaves them out.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    described: frozenset[str] = frozenset()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    thinking_budget: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TextDescription(Options):
    """Prompts to continue as they are. Each must be a Prompt; one that is not makes an error of its own.

    With `suffix`, each answer is what stands between its prompt and that text. An empty prompt stands for the start
    of a text if `empty_is_start`, and is an error otherwise.
    """

    prompts: Sequence[Any]
    suffix: str | None = None
    empty_is_start: bool = True
