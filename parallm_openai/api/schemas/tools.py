"""Tools and the choice among them, as OpenAI's clients send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

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


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice
FunctionChoice = Literal["none", "auto"] | FunctionName
