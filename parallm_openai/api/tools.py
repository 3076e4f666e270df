"""Which tools an answer may call, must call, and how it is made to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from parallm_openai.api import errors
from parallm_openai.api.grammar import compile_off_thread, off_thread
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.schemas.tools import AllowedToolsChoice, FunctionName, NamedTool
from parallm_openai.api.server import Server
from parallm_openai.engine.constraint import Grammar
from parallm_openai.text.grammar import GrammarError, TokenGrammar
from parallm_openai.text.plain_tools import without_nulls
from parallm_openai.text.tools.grammar import (
    Schema,
    SchemaFault,
    ToolsNotEnforceable,
    arguments,
    checked_calls,
    fault,
    forced_calls,
    free_calls,
)


@dataclass(frozen=True)
class ToolUse:
    """What a request says of tools: `shown` ones are in the prompt, of which `callable` may be called."""

    shown: tuple[dict[str, Any], ...] = ()
    callable: tuple[dict[str, Any], ...] = ()
    required: bool = False
    many: bool = True
    legacy: bool = False

    @property
    def described(self) -> list[dict[str, Any]]:
        """The tools as the model is shown them: what is enforced of them is not its business."""
        return [
            {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
            for tool in self.shown
        ]

    @property
    def strict(self) -> bool:
        return any(tool["function"].get("strict") for tool in self.callable)

    @property
    def narrowed(self) -> bool:
        """Whether a call that the model makes of its own accord must be held to something."""
        return self.strict or len(self.callable) < len(self.shown)

    def parameters_field(self, name: str) -> str:
        """Where the request has the schema of that tool's arguments."""
        index = next(index for index, tool in enumerate(self.shown) if tool["function"]["name"] == name)
        return _parameters_field(index, self.legacy)


def tool_use(server: Server, body: ChatRequest) -> ToolUse:
    """The request's tools, old style or new. Raises ApiError for a choice that names none of them."""
    legacy = body.functions is not None or body.function_call is not None
    if legacy and (body.tools is not None or body.tool_choice is not None):
        raise errors.invalid("'functions' is the old form of 'tools'; send one of them.", "functions")
    field = "functions" if legacy else "tools"
    shown = tuple(_definitions(body, legacy))
    names = [tool["function"]["name"] for tool in shown]
    if len(set(names)) < len(names):
        raise errors.invalid(f"The names of '{field}' must differ.", field)
    choice_field = "function_call" if legacy else "tool_choice"
    mode, wanted = _choice(body)
    if wanted is not None and (unknown := [name for name in wanted if name not in names]):
        raise errors.invalid(f"'{choice_field}' names '{unknown[0]}', which is not among the {field}.", choice_field)
    if not shown:
        if mode == "required":
            raise errors.invalid(f"'{choice_field}' needs '{field}'.", choice_field)
        return ToolUse(legacy=legacy)
    if mode == "none":
        return ToolUse(legacy=legacy)
    if not server.tokenizer.chat_format.calls_tools:
        raise errors.unsupported(field, "cannot be used: this model's chat template has no way to call tools")
    callable = tuple(tool for tool in shown if wanted is None or tool["function"]["name"] in wanted)
    many = not legacy and body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    return ToolUse(shown, callable, mode == "required", many, legacy)


def _definitions(body: ChatRequest, legacy: bool) -> list[dict[str, Any]]:
    """The tools as the client sent them: nested deeper than pydantic would dump them, if need be."""
    functions = body.functions or [tool.function for tool in body.tools or []]
    definitions = [{name: value for name, value in each if value is not None} for each in functions]
    for index, definition in enumerate(definitions):
        if "parameters" in definition:
            definition["parameters"] = without_nulls(definition["parameters"])
            _check_parameters(definition["parameters"], _parameters_field(index, legacy))
    return [{"type": "function", "function": definition} for definition in definitions]


def _check_parameters(parameters: dict[str, Any], field: str) -> None:
    """Refuse what describes no arguments, enforced or not: chat templates could not show it to the model."""
    types = parameters.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise errors.invalid(f"Invalid value for '{field}': 'type' must be 'object', as arguments are.", field)
    if not isinstance(parameters.get("properties", {}), dict):
        raise errors.invalid(f"Invalid value for '{field}': 'properties' must be an object.", field)
    required = parameters.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise errors.invalid(f"Invalid value for '{field}': 'required' must be a list of names.", field)


def _parameters_field(index: int, legacy: bool) -> str:
    return f"functions[{index}].parameters" if legacy else f"tools[{index}].function.parameters"


def _choice(body: ChatRequest) -> tuple[str, list[str] | None]:
    """The mode, and the names that may be called where the request narrows them down."""
    choice = body.tool_choice if body.function_call is None else body.function_call
    match choice:
        case None:
            return "auto", None
        case NamedTool():
            return "required", [choice.function.name]
        case FunctionName():
            return "required", [choice.name]
        case AllowedToolsChoice():
            return choice.allowed_tools.mode, [tool.function.name for tool in choice.allowed_tools.tools]
        case _:
            return choice, None


async def tool_grammar(server: Server, use: ToolUse, answer: Schema | None) -> TokenGrammar | None:
    """What makes an answer call a tool, or call it as its schema says; None where nothing is enforced.

    With `answer`, what is no call is JSON of that schema. Raises ApiError where something should be
    enforced and this model's way of writing calls has no grammar.
    """
    if not use.callable or not (use.required or use.narrowed or answer is not None):
        return None
    field = "tool_choice" if use.required else "tools" if answer is None else "response_format"
    try:
        return await off_thread(server, partial(_compiled, server, use, answer))
    except ToolsNotEnforceable as error:
        reason = f"cannot be enforced together with this model's way of calling tools ({error})"
        raise errors.unsupported(field, reason) from error
    except SchemaFault as error:
        field = "response_format" if error.tool is None else use.parameters_field(error.tool)
        raise errors.invalid(f"Invalid value for '{field}': {error}", field) from error
    except GrammarError as error:
        raise errors.invalid(f"Invalid value for '{field}': {error}", field) from error


def _compiled(server: Server, use: ToolUse, answer: Schema | None) -> TokenGrammar:
    lark = _lark(server, use, answer)
    try:
        return server.grammars.lark(lark)
    except GrammarError as error:
        raise fault(lark, use.callable, error) from error


def _lark(server: Server, use: ToolUse, answer: Schema | None) -> str:
    format, token_id = server.tokenizer.chat_format.tools, server.tokenizer.token_id
    if format is None:
        raise ToolsNotEnforceable("harmony")
    if answer is not None and format.wording is None and not use.narrowed:
        return free_calls(format, token_id, answer)
    if use.required or answer is not None:
        return forced_calls(format, use.callable, use.many, token_id, answer)
    return checked_calls(format, use.callable, use.many, token_id)


CallGrammars = Mapping[str, Grammar | None]


async def call_grammars(server: Server, use: ToolUse, *, enforced: bool) -> CallGrammars:
    """Each callable tool with what binds its arguments, if calls are required, narrowed, strict or `enforced`.

    For formats whose calls stand in messages of their own. Raises ApiError.
    """
    names = [tool["function"]["name"] for tool in use.callable]
    if not (enforced or use.required or use.narrowed):
        return dict.fromkeys(names)
    return {
        name: await compile_off_thread(server, use.parameters_field(name), partial(_arguments, server, tool))
        for name, tool in zip(names, use.callable, strict=True)
    }


def _arguments(server: Server, tool: dict[str, Any]) -> TokenGrammar:
    lark = arguments(tool)
    try:
        return server.grammars.lark(lark)
    except GrammarError as error:
        raise fault(lark, [tool], error) from error
