"""The bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from parallm_openai.api.anthropic.blocks import BY_ROLE, TEXTS, Content, check_blocks, references
from parallm_openai.api.errors import invalid, unsupported
from parallm_openai.api.leniency import Hint, Ignored
from parallm_openai.api.schemas.chat import MAX_MESSAGES, Schema
from parallm_openai.api.schemas.sampling import Body, StopList
from parallm_openai.api.schemas.tools import IGNORE_OTHERS

# Programs that gather the tools of many servers send more than OpenAI allows.
MAX_TOOLS = 1024

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Message(Body):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["user", "assistant", "system"]
    content: Content


class Tool(Body):
    """A tool that the client carries out."""

    model_config = IGNORE_OTHERS

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    defer_loading: bool | None = None

    @property
    def function(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        given = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
            "strict": self.strict,
        }
        return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


class ServerTool(Body):
    """A tool that Anthropic defines, by a type of its own."""

    model_config = IGNORE_OTHERS

    type: str
    name: str | None = None


def _tool_kind(tool: Any) -> str:
    own = not isinstance(tool, dict) or tool.get("type") in ("custom", None)
    return "type=custom" if own else "type=server"


AnyTool = Annotated[
    Annotated[Tool, Tag("type=custom")] | Annotated[ServerTool, Tag("type=server")], Discriminator(_tool_kind)
]


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Annotated[Literal["summarized", "omitted"], Hint] | None = None


class OutputFormat(Body):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    type: Literal["json_schema"]
    json_schema: Schema = Field(alias="schema")
    name: str | None = None


class OutputConfig(Body):
    effort: Effort | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Body):
    """The fields that a prompt is made of."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: Content | None = None
    tools: Annotated[list[AnyTool], Field(fail_fast=True)] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    # The older name of `output_config.format`.
    output_format: OutputFormat | None = None
    # Cannot change the answer.
    cache_control: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None

    @property
    def custom_tools(self) -> dict[int, Tool]:
        """The tools that the model gets, by their place in the request."""
        own = {place: tool for place, tool in enumerate(self.tools or []) if isinstance(tool, Tool)}
        if not self.defers:
            return own
        loaded = {name for message in self.messages for name in references(message.content)}
        return {place: tool for place, tool in own.items() if not tool.defer_loading or tool.name in loaded}

    @property
    def defers(self) -> bool:
        """Whether tools that are marked so wait until the result of a call refers to them.

        With a search of Anthropic's own, which this server cannot run, nothing would ever refer to them.
        """
        hosted = [tool.type for tool in self.tools or [] if isinstance(tool, ServerTool)]
        return not any(kind.startswith("tool_search_tool") for kind in hosted)

    @property
    def format(self) -> OutputFormat | None:
        return self.output_format or (None if self.output_config is None else self.output_config.format)

    def check(self, ignored: Ignored) -> None:
        """Raise ApiError for faults that the types do not rule out, and note what is ignored."""
        check_blocks(self.system or "", "system", ignored, TEXTS)
        for place, message in enumerate(self.messages):
            check_blocks(message.content, f"messages[{place}].content", ignored, BY_ROLE[message.role])
        for place, tool in enumerate(self.tools or []):
            if isinstance(tool, ServerTool):
                reason = f"is '{tool.type}', which this server cannot run: it has tools of the type 'custom' only"
                ignored.add(f"tools[{place}]", unsupported(f"tools[{place}].type", reason))
        if (choice := self.tool_choice) is not None and (choice.type == "tool") == (choice.name is None):
            raise invalid("'tool_choice.name' goes with the type 'tool', and only with that.", "tool_choice.name")
        if (thinking := self.thinking) is not None and (thinking.type == "enabled") == (thinking.budget_tokens is None):
            reason = "'thinking.budget_tokens' goes with the type 'enabled', and only with that."
            raise invalid(reason, "thinking.budget_tokens")


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    stop_sequences: StopList | None = None
    stream: bool | None = None
    # Cannot change the answer.
    metadata: dict[str, Any] | None = None
    service_tier: Any = None
    inference_geo: Any = None
    diagnostics: Any = None
    anthropic_beta: Any = None
