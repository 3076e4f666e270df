"""Tools and the choice among them, as OpenAI's clients send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from parallm_openai.api.errors import ApiError, unsupported
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.sampling import Body

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


# Clients share tools among servers, with fields that are for others (cache_control, …).
IGNORE_OTHERS = ConfigDict(extra="ignore", strict=True)


class FunctionDefinition(Body):
    model_config = IGNORE_OTHERS

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    model_config = IGNORE_OTHERS

    type: Literal["function"]
    function: FunctionDefinition


class OtherTool(Body):
    """A tool of a type that this server cannot run."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str

    def error(self, where: str) -> ApiError:
        reason = f"is '{self.type}', which this server cannot run: it has tools of the type 'function' only"
        return unsupported(f"{where}.type", reason)


def ignore_others(tools: Sequence[Body], ignored: Ignored, where: str = "tools") -> None:
    """Note the tools that the model does not get."""
    for place, tool in enumerate(tools):
        if isinstance(tool, OtherTool):
            ignored.add(f"{where}[{place}]", tool.error(f"{where}[{place}]"))


# Tags that are no identifiers are left out of the paths that errors name (see `errors.path`).
def tool_kind(tool: Any) -> str:
    function = not isinstance(tool, dict) or tool.get("type") in ("function", None)
    return "type=function" if function else "type=other"


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("type=function")] | Annotated[OtherTool, Tag("type=other")], Discriminator(tool_kind)
]


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(choice: Any) -> str:
    if not isinstance(choice, dict):
        return "type=mode"
    return "type=allowed_tools" if choice.get("type") == "allowed_tools" else "type=name"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("type=mode")]
    | Annotated[NamedTool, Tag("type=name")]
    | Annotated[AllowedToolsChoice, Tag("type=allowed_tools")],
    Discriminator(_choice_kind),
]
FunctionChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("type=mode")] | Annotated[FunctionName, Tag("type=name")],
    Discriminator(lambda choice: "type=name" if isinstance(choice, (dict, FunctionName)) else "type=mode"),
]
