"""`POST /v1/responses`, and what it shares with `POST /v1/responses/input_tokens`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from parallm_openai.api.errors import invalid, unsupported
from parallm_openai.api.leniency import Hint, Ignored
from parallm_openai.api.schemas.chat import FormatName, Schema
from parallm_openai.api.schemas.response_items import Item, Items
from parallm_openai.api.schemas.response_tools import (
    MAX_FUNCTIONS,
    MAX_TOOLS,
    AllowedResponseTools,
    Offered,
    Tool,
    ToolChoice,
    ignore_unusable,
    offered,
)
from parallm_openai.api.schemas.sampling import Body, Metadata, SamplingFields, StreamOptions, refuse
from parallm_openai.api.schemas.tools import OtherTool


def _input_form(value: Any) -> str:
    return "form=text" if isinstance(value, str) else "form=items"


Input = Annotated[Annotated[str, Tag("form=text")] | Annotated[Items, Tag("form=items")], Discriminator(_input_form)]


class TextFormat(Body):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: FormatName | None = None
    description: str | None = None
    json_schema: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: TextFormat | None = None
    # A hint, which no chat template takes.
    verbosity: Annotated[Literal["low", "medium", "high"], Hint] | None = None


Summary = Annotated[Literal["auto", "concise", "detailed"], Hint]


class ReasoningConfig(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
# The others are about built-in tools and images, which this server does not have: they can be ignored.
INCLUDABLE = (
    LOGPROBS,
    ENCRYPTED,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


class ConversationFields(Body):
    """The fields that a prompt is made of."""

    input: Input | None = None
    instructions: str | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Known to OpenAI's clients, not supported: refused by name unless they ask for nothing.
    conversation: Any = None

    @property
    def items(self) -> list[Item]:
        """The items of the input; none if it is a text."""
        return list(self.input) if isinstance(self.input, list) else []

    @property
    def functions(self) -> list[Offered]:
        """The tools that the model gets."""
        return list(offered(self.tools or []))

    def check(self, ignored: Ignored) -> None:
        """Raise ApiError for faults that the types do not rule out, and note what is ignored."""
        for index, item in enumerate(self.items):
            item.check(f"input[{index}]", ignored)
        self._check_tools(ignored)
        format = self.text.format if self.text is not None else None
        if format is not None and (format.type == "json_schema") == (format.json_schema is None or format.name is None):
            raise invalid("'text.format' of the type 'json_schema' needs 'name' and 'schema'.", "text.format")
        mode = self.reasoning.mode if self.reasoning is not None else None
        refuse({"conversation": self.conversation, "reasoning.mode": None if mode == "standard" else mode})

    def _check_tools(self, ignored: Ignored) -> None:
        ignore_unusable(self.tools or [], ignored)
        if len(self.functions) > MAX_FUNCTIONS:
            raise invalid(f"'tools' holds more than {MAX_FUNCTIONS} functions.", "tools")
        choice = self.tool_choice
        if isinstance(choice, OtherTool):
            raise choice.error("tool_choice")
        for place, named in enumerate(choice.tools if isinstance(choice, AllowedResponseTools) else ()):
            if isinstance(named, OtherTool):
                raise named.error(f"tool_choice.tools[{place}]")


class InputTokensRequest(ConversationFields):
    """`POST /v1/responses/input_tokens`."""

    model: str | None = None
    personality: Any = None

    def check(self, ignored: Ignored) -> None:
        super().check(ignored)
        refuse({"personality": self.personality})


class ResponsesRequest(ConversationFields, SamplingFields):
    model: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    thinking_budget: int | None = Field(None, ge=0)
    # Known to OpenAI's clients, not supported: refused by name unless they ask for nothing.
    background: bool | None = None
    background_options: Any = None
    context_management: Any = None
    prompt: Any = None
    moderation: Any = None
    image: Any = None
    access_programs: Any = None
    # Cannot change the answer; the first is only about OpenAI's built-in tools.
    max_tool_calls: int | None = Field(None, ge=1)
    metadata: Metadata | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Annotated[Literal["in_memory", "in-memory", "24h"], Hint] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or LOGPROBS in (self.include or [])

    @property
    def wants_sealed_thoughts(self) -> bool:
        """Whether the client must get its thoughts back sealed: without a store only it can keep them."""
        return self.store is False or ENCRYPTED in (self.include or [])

    @property
    def wants_obfuscation(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    def check(self, ignored: Ignored) -> None:
        super().check(ignored)
        check_include(self.include, ignored)
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed with 'stream'.", "stream_options")
        refuse(
            {
                "background": self.background,
                "background_options": self.background_options,
                "context_management": self.context_management,
                "prompt": self.prompt,
                "moderation": self.moderation,
                "image": self.image,
                "access_programs": self.access_programs,
            }
        )


def check_include(include: list[str] | None, ignored: Ignored) -> None:
    for place, wanted in enumerate(include or []):
        if wanted not in INCLUDABLE:
            reason = f"is '{wanted}', which this server does not support"
            ignored.add(f"include[{place}]", unsupported(f"include[{place}]", reason))
