"""The tools of `/v1/responses`, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from parallm_openai.api.errors import unsupported
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.schemas.tools import IGNORE_OTHERS, Name, OtherTool, ignore_others, tool_kind

MAX_TOOLS = 128
# Programs that gather the tools of many servers put each server's into a namespace.
MAX_FUNCTIONS = 1024


class ResponseTool(Body):
    model_config = IGNORE_OTHERS

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    # Only the default is supported: the model calls all tools itself.
    allowed_callers: list[Literal["direct"]] | None = None


FunctionOrOther = Annotated[
    Annotated[ResponseTool, Tag("type=function")] | Annotated[OtherTool, Tag("type=other")],
    Discriminator(tool_kind),
]


class Namespace(Body):
    """Functions under a common name, for instance those of an MCP server."""

    model_config = IGNORE_OTHERS

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: Annotated[list[FunctionOrOther], Field(max_length=MAX_FUNCTIONS, fail_fast=True)]


def _kind(tool: Any) -> str:
    namespace = isinstance(tool, dict) and tool.get("type") == "namespace"
    return "type=namespace" if namespace else tool_kind(tool)


Tool = Annotated[
    Annotated[ResponseTool, Tag("type=function")]
    | Annotated[Namespace, Tag("type=namespace")]
    | Annotated[OtherTool, Tag("type=other")],
    Discriminator(_kind),
]


@dataclass(frozen=True)
class Offered:
    """A function that the model gets, and the field of the request that it stands in."""

    tool: ResponseTool
    field: str
    namespace: str | None = None

    @property
    def name(self) -> str:
        """What the model calls it by."""
        return called_by(self.tool.name, self.namespace)


def called_by(name: str, namespace: str | None) -> str:
    """The model's name for a function, as MCP clients join them."""
    return name if namespace is None else f"{namespace}__{name}"


def offered(tools: Sequence[Body]) -> Iterator[Offered]:
    for place, tool in enumerate(tools):
        if isinstance(tool, ResponseTool):
            yield Offered(tool, f"tools[{place}]")
        elif isinstance(tool, Namespace):
            for inner, function in enumerate(tool.tools):
                if isinstance(function, ResponseTool):
                    yield Offered(function, f"tools[{place}].tools[{inner}]", tool.name)


def ignore_unusable(tools: Sequence[Body], ignored: Ignored) -> None:
    """Note the tools that the model does not get, and those that it gets sooner than asked for."""
    ignore_others(tools, ignored)
    for place, tool in enumerate(tools):
        if isinstance(tool, Namespace):
            ignore_others(tool.tools, ignored, f"tools[{place}].tools")
    for each in offered(tools):
        if each.tool.defer_loading:
            field = f"{each.field}.defer_loading"
            ignored.add(field, unsupported(field, "is not supported: the model knows all tools from the start"))


class NamedResponseTool(Body):
    type: Literal["function"]
    name: str


NamedTool = Annotated[
    Annotated[NamedResponseTool, Tag("type=function")] | Annotated[OtherTool, Tag("type=other")],
    Discriminator(tool_kind),
]


class AllowedResponseTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, fail_fast=True)]


def _choice_kind(choice: Any) -> str:
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return "type=allowed_tools"
    return tool_kind(choice) if isinstance(choice, dict) else "type=mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("type=mode")]
    | Annotated[NamedResponseTool, Tag("type=function")]
    | Annotated[AllowedResponseTools, Tag("type=allowed_tools")]
    | Annotated[OtherTool, Tag("type=other")],
    Discriminator(_choice_kind),
]
