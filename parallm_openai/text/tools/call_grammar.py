"""Grammars that make a model call tools, or that make the calls which it chooses to make valid.

Written in llguidance's Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex

from parallm_openai.text.grammar.token_grammar import GrammarError
from parallm_openai.text.schema.normalize import SchemaError, schema_text
from parallm_openai.text.tools.format import Tool, ToolFormat, Wording

Schema = Mapping[str, Any]
TokenId = Callable[[str], int | None]
_FAULT = regex.compile(
    r"at (?P<line>\d+)\(\d+\): failed to compile JSON schema: (?P<reason>.*?)(?:\n +\d+ \||$)", regex.DOTALL
)
_MARK = regex.compile(r"<[|｜][^<>]*[|｜]>")


class ToolsNotEnforceable(ValueError):
    """There is no grammar for this family's way of writing calls."""


class SchemaFault(GrammarError):
    """A schema cannot be enforced: that of the parameters of `tool`, or that of the answer if `tool` is None."""

    def __init__(self, tool: str | None, reason: str) -> None:
        super().__init__(reason)
        self.tool = tool


def forced_calls(
    format: ToolFormat, tools: Sequence[Tool], many: bool, token_id: TokenId, answer: Schema | None = None
) -> str:
    """A call of one of `tools`, or several if `many`; or, if there is a schema `answer`, JSON of that.

    Raises ToolsNotEnforceable or SchemaFault.
    """
    return _Writer(format, tools, token_id).forced(many, answer)


def free_calls(format: ToolFormat, token_id: TokenId, answer: Schema) -> str:
    """JSON of the schema `answer`, or any text that begins as a call does: for formats without a wording of calls.

    Raises ToolsNotEnforceable or SchemaFault.
    """
    if not format.start:
        raise ToolsNotEnforceable(format.name)
    rules = ["start: answer | call", f"call: {_literal(format.start, token_id)} rest", "rest: <[*]>*"]
    return "\n".join([*rules, _answer(answer), ""])


def checked_calls(format: ToolFormat, tools: Sequence[Tool], many: bool, token_id: TokenId) -> str:
    """Any text in which every call is of one of `tools` and has arguments of that tool's schema.

    Raises ToolsNotEnforceable or SchemaFault.
    """
    return _Writer(format, tools, token_id).checked(many)


def fault(grammar: str, tools: Sequence[Tool], error: GrammarError) -> GrammarError:
    """An error of llguidance in one of the grammars above, as a fault of the schema that caused it."""
    found = _FAULT.match(str(error))
    if found is None:
        return error
    reason = found["reason"].strip()
    rule = grammar.splitlines()[int(found["line"]) - 1].partition(":")[0]
    return SchemaFault(tools[int(rule.removeprefix("call_"))]["function"]["name"] if rule != "answer" else None, reason)


def arguments(tool: Tool) -> str:
    """Only the arguments of a call of `tool`, with nothing around them."""
    return f"start: call_0\ncall_0: %json {_arguments_schema(tool)}\n"


class _Writer:
    def __init__(self, format: ToolFormat, tools: Sequence[Tool], token_id: TokenId) -> None:
        if format.wording is None:
            raise ToolsNotEnforceable(format.name)
        self._format = format
        self._wording: Wording = format.wording
        self._tools = tools
        self._token_id = token_id

    def forced(self, many: bool, answer: Schema | None) -> str:
        rules = [f"start: {self._blocks(many)}" + (" | answer" if answer is not None else ""), *self._rules()]
        if answer is not None:
            rules.append(_answer(answer))
        return "\n".join([*rules, ""])

    def checked(self, many: bool) -> str:
        start = self._format.start
        if not start:
            raise ToolsNotEnforceable(self._format.name)
        count = "*" if many else "?"
        body = f"{self._body(many)} {self._literal(self._format.end)}"
        token = self._token_id(start)
        if token is not None:
            rules = [f"start: TEXT (<[{token}]> {body} TEXT){count}"]
        else:
            rules = [f"start: (trigger {body}){count} TEXT", f"trigger[lazy]: TEXT {json.dumps(start)}"]
        # The mark must not be written letter by letter either: the grammar of calls would not see it.
        rules.append(f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{regex.escape(start, literal_spaces=True)}(.|\\n)*/")
        return "\n".join([*rules, *self._rules(), ""])

    def _blocks(self, many: bool) -> str:
        block = f"{self._literal(self._format.start)} {self._body(many)} {self._literal(self._format.end)}"
        if many and self._wording.one_a_block:
            return f"{block} ({self._literal(self._wording.separator)} {block})*"
        return block

    def _body(self, many: bool) -> str:
        wording = self._wording
        calls = "call"
        if many and not wording.one_a_block and not wording.single:
            calls += f" ({self._literal(wording.separator)} call)*"
        return f"{self._literal(wording.opening)} {calls} {self._literal(wording.closing)}"

    def _rules(self) -> list[str]:
        names = [f"call_{index}" for index in range(len(self._tools))]
        rules = ["call: " + " | ".join(names)]
        for name, tool in zip(names, self._tools, strict=True):
            before = self._wording.before.replace("NAME", tool["function"]["name"])
            rules.append(
                f"{name}: {self._literal(before)} %json {_arguments_schema(tool)} {self._literal(self._wording.after)}"
            )
        return rules

    def _literal(self, text: str) -> str:
        return _literal(text, self._token_id)


def _literal(text: str, token_id: TokenId) -> str:
    """Text as Lark. A mark that is a single token is given by its id."""
    if not text:
        return ""
    if (token := token_id(text)) is not None and len(text) > 1:
        return f"<[{token}]>"
    pieces = [piece for piece in regex.split(f"({_MARK.pattern})", text) if piece]
    if len(pieces) > 1:
        return " ".join(_literal(piece, token_id) for piece in pieces)
    return json.dumps(text, ensure_ascii=False)


def _answer(schema: Schema) -> str:
    try:
        return f"answer: %json {schema_text(schema)}"
    except SchemaError as error:
        raise SchemaFault(None, str(error)) from error


def _arguments_schema(tool: Tool) -> str:
    """The schema of the arguments; what cannot be enforced is skipped unless the tool is strict."""
    function = tool["function"]
    # Arguments are an object, even if the schema allows something else.
    schema = {**(function.get("parameters") or {}), "type": "object"}
    try:
        return schema_text(schema, lenient=not function.get("strict"))
    except SchemaError as error:
        raise SchemaFault(function["name"], str(error)) from error
