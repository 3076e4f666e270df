"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from parallm_openai.api.errors import invalid
from parallm_openai.api.leniency import Hint, Ignored
from parallm_openai.api.schemas.sampling import Body, Metadata, SamplingFields, StreamOptions, refuse
from parallm_openai.api.schemas.tools import (
    AnyTool,
    FunctionChoice,
    FunctionDefinition,
    FunctionTool,
    ToolChoice,
    ignore_others,
)
from parallm_openai.api.unreadable import unreadable

# No conversation has more, and checking each takes time.
MAX_MESSAGES = 16_384


class ContentPart(Body):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None

    @property
    def readable(self) -> bool:
        return self.type in ("text", "refusal")


def _arguments_text(value: Any) -> Any:
    """Arguments as JSON text; some clients send them as an object, or leave them out."""
    return "{}" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


Arguments = Annotated[str, BeforeValidator(_arguments_text)]


class FunctionCall(Body):
    # Clients send calls back with fields of their own, which the model did not write (an index, …).
    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    arguments: Arguments = "{}"


class ToolCall(Body):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    # Clients send answers back unchanged, with fields that mean nothing in a prompt (annotations, …).
    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall] | None, AfterValidator(lambda calls: calls or None)] = Field(
        None, max_length=MAX_MESSAGES, fail_fast=True
    )
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None

    @property
    def unreadable_results(self) -> dict[int, ContentPart]:
        """What a tool returned that the model cannot read, by its place."""
        parts = self.content if self.role in ("tool", "function") and isinstance(self.content, list) else []
        return {place: part for place, part in enumerate(parts) if not part.readable}


FormatName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


# Not a union with bool, so that errors name the fault itself.
Schema = Annotated[dict[str, Any], BeforeValidator(lambda schema: {} if schema is True else schema)]


class JsonSchema(Body):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    name: FormatName
    description: str | None = None
    json_schema: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(SamplingFields):
    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: list[AnyTool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = Field(None, min_length=1, max_length=128)
    function_call: FunctionChoice | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_budget: int | None = Field(None, ge=0)
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_speculative: bool | None = None
    # Known to OpenAI's clients, not supported yet: refused by name unless they ask for nothing.
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    moderation: Any = None
    # A hint, which no chat template takes.
    verbosity: Annotated[Literal["low", "medium", "high"], Hint] | None = None
    # Cannot change the answer.
    prediction: dict[str, Any] | None = None
    user: str | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @property
    def function_tools(self) -> dict[int, FunctionTool]:
        """The tools that the model gets, by their place in the request."""
        return {place: tool for place, tool in enumerate(self.tools or []) if isinstance(tool, FunctionTool)}

    def check(self, ignored: Ignored) -> None:
        """Raise ApiError for faults that the types do not rule out, and note what is ignored."""
        ignore_others(self.tools or [], ignored)
        for index, message in enumerate(self.messages):
            for place, part in message.unreadable_results.items():
                name = f"messages[{index}].content[{place}]"
                ignored.add(name, unreadable(name, part.type))
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise invalid("'max_tokens' and 'max_completion_tokens' differ; send one of them.", "max_tokens")
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed with 'stream'.", "stream_options")
        if self.return_speculative and not self.stream:
            raise invalid("'return_speculative' is only allowed with 'stream'.", "return_speculative")
        if (wanted := self.response_format) is not None and (wanted.json_schema is None) == (
            wanted.type == "json_schema"
        ):
            raise invalid(
                "'response_format.json_schema' goes with the type 'json_schema', and only with that.",
                "response_format.json_schema",
            )
        self._refuse_unsupported()

    def _refuse_unsupported(self) -> None:
        refuse(
            {
                "modalities": None if self.modalities == ["text"] else self.modalities,
                "audio": self.audio,
                "web_search_options": self.web_search_options,
                "moderation": self.moderation,
            }
        )
