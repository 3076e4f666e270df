"""The families, and which one a chat template speaks.

Parsing of whole blocks is mlx-lm's where it knows the format.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import regex

from parallm_openai.text.tools.format import Parser, Tool, ToolCall, ToolFormat, Wording, json_arguments

_JSON_HEAD = r'\{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*'
_JSON_BEFORE = '{"name": "NAME", "arguments": '


def _library(module: str) -> Parser:
    """mlx-lm's parser of that name, loaded when it is first needed."""
    return partial(_library_calls, module)


def _library_calls(module: str, text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    parse = importlib.import_module(f"mlx_lm.tool_parsers.{module}").parse_tool_call
    try:
        found = parse(text, list(tools))
    except Exception as error:
        # Each of mlx-lm's parsers raises what its own code happens to raise.
        raise ValueError(f"not a {module} tool call: {error}") from error
    calls = found if isinstance(found, list) else [found]
    return [ToolCall(str(call["name"]), json_arguments(call.get("arguments", {}))) for call in calls]


def _dsml_calls(text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """DeepSeek V3.2's XML: values marked `string="true"` are text, others JSON."""
    calls = []
    for name, body in regex.findall(r'<｜DSML｜invoke name="([^"]+)">(.*?)</｜DSML｜invoke>', text, flags=regex.DOTALL):
        parts = [
            f"{json_arguments([key])[1:-1]}: {json_arguments([value])[1:-1] if kind == 'true' else value}"
            for key, kind, value in regex.findall(
                r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">(.*?)</｜DSML｜parameter>',
                body,
                flags=regex.DOTALL,
            )
        ]
        calls.append(ToolCall(name, "{" + ", ".join(parts) + "}"))
    if not calls:
        raise ValueError("no DSML invocation")
    return calls


def _xml(name: str, start: str, end: str) -> ToolFormat:
    return ToolFormat(name, start, end, parse=_library(name))


FORMATS: dict[str, ToolFormat] = {
    each.name: each
    for each in (
        ToolFormat(
            "hermes",
            "<tool_call>",
            "</tool_call>",
            head=regex.compile(_JSON_HEAD),
            parse=_library("json_tools"),
            wording=Wording("\n" + _JSON_BEFORE, "}\n", separator="\n", one_a_block=True),
        ),
        ToolFormat(
            "llama3_json",
            "",
            "",
            head=regex.compile(r"(?:<\|python_tag\|>\s*)?;?\s*" + _JSON_HEAD),
            opens=regex.compile(r"\s*(?:<\|python_tag\|>\s*)?" + _JSON_HEAD),
            wording=Wording('{"name": "NAME", "parameters": ', "}", single=True),
        ),
        ToolFormat(
            "llama_pythonic",
            "",
            "",
            parse=_library("pythonic"),
            opens=regex.compile(r"\s*(?:<\|python_tag\|>\s*)?\[\s*(?P<name>[\w.]+)\("),
        ),
        ToolFormat(
            "mistral",
            "[TOOL_CALLS]",
            "",
            head=regex.compile(rf"(?:{_JSON_HEAD}|(?P<name>[\w-]+)\s*(?:\[CALL_ID\]\w*)?\s*\[ARGS\]\s*)"),
            parse=_library("mistral"),
        ),
        ToolFormat(
            "nemotron",
            "<TOOLCALL>",
            "</TOOLCALL>",
            head=regex.compile(_JSON_HEAD),
            wording=Wording(_JSON_BEFORE, "}", separator=", ", opening="[", closing="]"),
        ),
        ToolFormat(
            "deepseek_v3",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            head=regex.compile(r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\s*"),
            wording=Wording("<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n", "\n```<｜tool▁call▁end｜>"),
        ),
        ToolFormat(
            "deepseek_v31",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            head=regex.compile(r"<｜tool▁call▁begin｜>(?P<name>[^\n<]+)<｜tool▁sep｜>\s*"),
            wording=Wording("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        ),
        ToolFormat("deepseek_v32", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", parse=_dsml_calls),
        ToolFormat(
            "kimi_k2",
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            head=regex.compile(
                r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[^\n:]+):\d+\s*<\|tool_call_argument_begin\|>\s*"
            ),
            parse=_library("kimi_k2"),
        ),
        ToolFormat(
            "command_r",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            head=regex.compile(
                r'\{\s*"tool_call_id"\s*:\s*"[^"]*"\s*,\s*"tool_name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"parameters"\s*:\s*'
            ),
        ),
        _xml("qwen3_coder", "<tool_call>", "</tool_call>"),
        _xml("glm47", "<tool_call>", "</tool_call>"),
        _xml("minimax_m2", "<minimax:tool_call>", "</minimax:tool_call>"),
        _xml("longcat", "<longcat_tool_call>", "</longcat_tool_call>"),
        _xml("muse_spark", "<atem:function_calls>", "</atem:function_calls>"),
        _xml("function_gemma", "<start_function_call>", "<end_function_call>"),
        _xml("gemma4", "<|tool_call>", "<tool_call|>"),
        _xml("pythonic", "<|tool_call_start|>", "<|tool_call_end|>"),
    )
}

# A format is known by what its templates must write to show a past call; the first that fits counts.
_SIGNS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("deepseek_v32", lambda text: "DSML" in text and "function_calls" in text),
    ("deepseek_v3", lambda text: "<｜tool▁calls▁begin｜>" in text and "```json" in text),
    ("deepseek_v31", lambda text: "<｜tool▁calls▁begin｜>" in text),
    ("minimax_m2", lambda text: "<minimax:tool_call>" in text),
    ("gemma4", lambda text: "<|tool_call>" in text and "<tool_call|>" in text),
    ("function_gemma", lambda text: "<start_function_call>" in text),
    ("longcat", lambda text: "<longcat_tool_call>" in text),
    ("muse_spark", lambda text: "<atem:function_calls>" in text),
    ("kimi_k2", lambda text: "<|tool_calls_section_begin|>" in text),
    ("command_r", lambda text: "<|START_ACTION|>" in text),
    ("glm47", lambda text: "<arg_key>" in text),
    ("pythonic", lambda text: "<|tool_list_start|>" in text or "<|tool_call_start|>" in text),
    ("qwen3_coder", lambda text: regex.search(r"<tool_call>(?:\\n|\s)*<function=", text) is not None),
    ("nemotron", lambda text: "<TOOLCALL>" in text),
    ("mistral", lambda text: "[TOOL_CALLS]" in text),
    ("hermes", lambda text: "<tool_call>" in text),
    ("llama3_json", lambda text: "ipython" in text and '"parameters"' in text),
    ("llama_pythonic", lambda text: "ipython" in text and "tools" in text),
)


def detect(template: str | None, vocabulary: Mapping[str, Any]) -> ToolFormat | None:
    """The format of a chat template, else the one whose marks are tokens of the vocabulary."""
    for name, fits in _SIGNS:
        if template and fits(template):
            return FORMATS[name]
    # Some conversions have the tokens but a template that never shows a call.
    if "<|tool_call_start|>" in vocabulary and "<|tool_call_end|>" in vocabulary:
        return FORMATS["pythonic"]
    return None
