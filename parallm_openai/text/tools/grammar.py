"""Grammars that make a model call tools, or call them rightly where it does.

Written in llguidance's Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex

from parallm_openai.text.grammar import JSON_OPTIONS, closed
from parallm_openai.text.tools.format import Tool, ToolFormat, Wording

Schema = Mapping[str, Any]
TokenId = Callable[[str], int | None]
_MARK = regex.compile(r"<[|｜][^<>]*[|｜]>")


class ToolsNotEnforceable(ValueError):
    """This family's way of writing calls has no grammar here."""


def forced_calls(
    format: ToolFormat, tools: Sequence[Tool], many: bool, token_id: TokenId, answer: Schema | None = None
) -> str:
    """One call of one of `tools`, or with `many` one or more; or else JSON of the schema `answer`, if there is one.

    Raises ToolsNotEnforceable.
    """
    return _Writer(format, tools, token_id).forced(many, answer)


def checked_calls(format: ToolFormat, tools: Sequence[Tool], many: bool, token_id: TokenId) -> str:
    """Any text in which every call is of one of `tools`, with arguments as its schema says.

    Raises ToolsNotEnforceable.
    """
    return _Writer(format, tools, token_id).checked(many)


def arguments(tool: Tool) -> str:
    """The arguments of a call of `tool` and nothing around them."""
    return f"start: %json {_arguments_schema(tool)}\n"


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
            rules.append(f"answer: %json {_bounded(answer, lenient=False)}")
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
        # The mark must not be spelt out either, letter by letter, where no grammar would follow it.
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
        """Text as Lark; a mark that is a token of its own by its id."""
        if not text:
            return ""
        if (token := self._token_id(text)) is not None and len(text) > 1:
            return f"<[{token}]>"
        pieces = [piece for piece in regex.split(f"({_MARK.pattern})", text) if piece]
        if len(pieces) > 1:
            return " ".join(map(self._literal, pieces))
        return json.dumps(text, ensure_ascii=False)


def _arguments_schema(tool: Tool) -> str:
    """The schema of the arguments; what cannot be enforced is skipped unless the tool is strict."""
    function = tool["function"]
    return _bounded({"type": "object", **(function.get("parameters") or {})}, lenient=not function.get("strict"))


def _bounded(schema: Schema, lenient: bool) -> str:
    return json.dumps({**closed(schema), "x-guidance": {**JSON_OPTIONS, "lenient": lenient}}, ensure_ascii=False)
