"""Which of a request's tools the model sees, which it may call, and whether it must."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.description import ChatDescription, Tool
from parallm_openai.text.request_error import Field, RequestError, invalid_value, unsupported
from parallm_openai.text.tools.plain import without_nulls


@dataclass(frozen=True)
class ToolUse:
    """The tools that are `shown` in the prompt, and those of them that are `callable`.

    An answer must call one if `required`, and may call several if `many`. Those of the names in `elsewhere` are shown
    by a message, the others in the prompt's list of tools.
    """

    shown: tuple[dict[str, Any], ...] = ()
    callable: tuple[dict[str, Any], ...] = ()
    required: bool = False
    many: bool = True
    elsewhere: frozenset[str] = frozenset()

    @property
    def listed(self) -> list[dict[str, Any]]:
        """The tools as the prompt lists them. `strict` is left out: it is for the server, not for the model."""
        return [
            {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
            for tool in self.shown
            if tool["function"]["name"] not in self.elsewhere
        ]

    @property
    def strict(self) -> bool:
        return any(tool["function"].get("strict") for tool in self.callable)

    @property
    def restricted(self) -> bool:
        """Whether a call that the model need not make must still be of certain tools or follow a schema."""
        return self.strict or len(self.callable) < len(self.shown)

    def parameters_field(self, name: str) -> str:
        """The field with the schema of that tool's arguments."""
        return _parameters_field([tool["function"]["name"] for tool in self.shown].index(name))


def tool_use(description: ChatDescription, format: ChatFormat) -> ToolUse:
    """What a conversation says of tools. Raises RequestError, for instance for a choice that names none of them."""
    shown = tuple(_checked(description.tools))
    names = [tool["function"]["name"] for tool in shown]
    if len(set(names)) < len(names):
        raise RequestError("The names of '{}' must differ.", Field("tools"), field="tools")
    choice = description.tool_choice
    _check_names(choice.names or (), frozenset(names))
    required = choice.mode in ("required", "named")
    if not shown and required:
        raise RequestError("'{}' needs '{}'.", Field("tool_choice"), Field("tools"), field="tool_choice")
    if not shown or choice.mode == "none":
        return ToolUse()
    if not format.calls_tools:
        raise unsupported("tools", f"cannot be used: {format.why_no_tools}")
    # As many names as a client likes: a tuple would be read to its end for each tool.
    allowed = frozenset(names if choice.names is None else choice.names)
    callable = tuple(tool for tool in shown if tool["function"]["name"] in allowed)
    many = description.parallel_tool_calls and choice.mode != "named"
    return ToolUse(shown, callable, required, many, description.described)


def _check_names(chosen: Sequence[str], names: Collection[str]) -> None:
    unknown = [name for name in chosen if name not in names]
    if unknown:
        sentence = "'{}' names '{}', which is not among the {}."
        raise RequestError(sentence, Field("tool_choice"), unknown[0], Field("tools"), field="tool_choice")


def _checked(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools, with parameters that describe an object and have no nulls."""
    checked: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        described = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
            raise invalid_value(f"tools[{index}]", "expected a function with a name.")
        function = dict(described)
        if "parameters" in function:
            function["parameters"] = without_nulls(function["parameters"])
            _check_parameters(function["parameters"], _parameters_field(index))
        checked.append({**tool, "function": function})
    return checked


def _check_parameters(parameters: Mapping[str, Any], field: str) -> None:
    """Refuse a schema that describes no arguments, enforced or not: chat templates could not show it to the model."""
    types = parameters.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise invalid_value(field, "'type' must be 'object', as arguments are.")
    if not isinstance(parameters.get("properties", {}), dict):
        raise invalid_value(field, "'properties' must be an object.")
    required = parameters.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise invalid_value(field, "'required' must be a list of names.")


def _parameters_field(index: int) -> str:
    return f"tools[{index}].function.parameters"
