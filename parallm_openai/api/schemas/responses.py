"""`POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from parallm_openai.api.errors import invalid, unsupported
from parallm_openai.api.schemas.sampling import Body, SamplingFields, StreamOptions, refuse
from parallm_openai.api.schemas.tools import Name


class _Open(Body):
    # Items of an answer are sent back whole, with fields that mean nothing in a prompt.
    model_config = ConfigDict(extra="allow", strict=True)


class InputPart(_Open):
    type: str
    text: str | None = None
    refusal: str | None = None


class InputMessage(_Open):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]


class FunctionCallItem(_Open):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(_Open):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]


class ReasoningItem(_Open):
    type: Literal["reasoning"]


class OtherItem(_Open):
    type: str


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if kind in ("message", "function_call", "function_call_output", "reasoning") else "other"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[OtherItem, Tag("other")],
    Discriminator(_kind),
]


class ResponseTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponseTool(Body):
    type: Literal["function"]
    name: str


class AllowedResponseTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedResponseTool] = Field(min_length=1)


class TextFormat(Body):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


LOGPROBS = "message.output_text.logprobs"
# What there is to include is included anyway; encrypted thoughts there are none.
INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")


class ResponsesRequest(SamplingFields):
    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: list[ResponseTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | AllowedResponseTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] | None = None
    thinking_budget: int | None = Field(None, ge=0)
    chat_template_kwargs: dict[str, Any] | None = None
    # Known to OpenAI's clients, not supported: refused by name unless they ask for nothing.
    background: bool | None = None
    background_options: Any = None
    conversation: Any = None
    context_management: Any = None
    prompt: Any = None
    max_tool_calls: int | None = None
    moderation: Any = None
    image: Any = None
    access_programs: Any = None
    # Cannot change the answer.
    metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or LOGPROBS in (self.include or [])

    def check(self) -> None:
        """Raise ApiError for what the types do not say."""
        for index, item in enumerate(self.input if isinstance(self.input, list) else []):
            _check_item(item, f"input[{index}]")
        for place, wanted in enumerate(self.include or []):
            if wanted not in INCLUDABLE:
                raise unsupported(f"include[{place}]", f"is '{wanted}', which this server has not got")
        format = self.text.format if self.text is not None else None
        if format is not None and (format.type == "json_schema") == (format.json_schema is None or format.name is None):
            raise invalid("'text.format' of the type 'json_schema' needs 'name' and 'schema'.", "text.format")
        reasoning = self.reasoning or ReasoningConfig()
        refuse(
            {
                "background": self.background,
                "background_options": self.background_options,
                "conversation": self.conversation,
                "context_management": self.context_management,
                "prompt": self.prompt,
                "max_tool_calls": self.max_tool_calls,
                "moderation": self.moderation,
                "image": self.image,
                "access_programs": self.access_programs,
                "truncation": None if self.truncation == "disabled" else self.truncation,
                "text.verbosity": None if self.text is None or self.text.verbosity == "medium" else self.text.verbosity,
                "reasoning.mode": None if reasoning.mode == "standard" else reasoning.mode,
            }
        )


def _check_item(item: Any, where: str) -> None:
    if isinstance(item, OtherItem):
        raise unsupported(f"{where}.type", f"is '{item.type}', which this server cannot read")
    content = item.output if isinstance(item, FunctionCallOutput) else getattr(item, "content", None)
    if not isinstance(item, (InputMessage, FunctionCallOutput)) or not isinstance(content, list):
        return
    field = "output" if isinstance(item, FunctionCallOutput) else "content"
    for place, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            raise unsupported(f"{where}.{field}[{place}].type", f"is '{part.type}': this model reads text only")
        if part.text is None and part.refusal is None:
            raise invalid(f"Missing required parameter: '{where}.{field}[{place}].text'.", f"{where}.{field}[{place}]")
