"""The formats of tool calls of all families, and how a chat template shows which one it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import regex

from parallm_openai.text.tools.calls import Calls
from parallm_openai.text.tools.format import ToolFormat, Wording
from parallm_openai.text.tools.json_calls import Headed, json_calls, json_objects, objects_or, plain_head
from parallm_openai.text.tools.literals import FUNCTION_GEMMA, GEMMA4
from parallm_openai.text.tools.markup import Markup
from parallm_openai.text.tools.pythonic import NamedValues
from parallm_openai.text.tools.source import LONGEST_WORD, NAME, SPACE, Source, Wait

_JSON_BEFORE = '{"name": "NAME", "arguments": '
_KIMI_ID = regex.compile(r"[a-zA-Z0-9_.:\-]*")
_WORD = regex.compile(r"\w*")
_GEMMA_KEY = regex.compile(r"[^:{}\[\],]*")


def _kimi_head(source: Source, calls: Calls) -> Wait[str]:
    """`functions.NAME:INDEX`."""
    yield from source.run(SPACE)
    word = yield from source.run(_KIMI_ID, LONGEST_WORD)
    yield from source.run(SPACE)
    yield from source.need("<|tool_call_argument_begin|>")
    name, colon, index = word.rpartition(":")
    if not colon or not index.isdigit():
        name = word
    bare = name.removeprefix("functions.")
    return bare if calls.tool(bare) is not None else name


def _mistral_head(source: Source, calls: Calls) -> Wait[str]:
    """`NAME[CALL_ID]id[ARGS]`, or NAME with the arguments right behind it."""
    name = yield from plain_head(source, calls)
    yield from source.run(SPACE)
    if calls.tool(name) is not None and (yield from source.peek()) == "{":
        return name
    if (yield from source.match("[CALL_ID]")):
        yield from source.run(_WORD, LONGEST_WORD)
        yield from source.run(SPACE)
    yield from source.need("[ARGS]")
    return name


_DEEPSEEK_END = "<｜tool▁call▁end｜>"
_DEEPSEEK_SEP = "<｜tool▁sep｜>"


def _deepseek_head(source: Source, calls: Calls) -> Wait[str]:
    """V3.1's NAME and a mark, or V3's type of tool, a mark, NAME."""
    yield from source.run(SPACE)
    word = yield from source.run(NAME, LONGEST_WORD)
    yield from source.run(SPACE)
    yield from source.need(_DEEPSEEK_SEP)
    known = calls.tool(word) is not None
    if known and (word != "function" or (yield from source.peek()) in ("{", '"', "`")):
        return word
    name = yield from plain_head(source, calls)
    if not known or calls.tool(name) is not None:
        return name
    source.put_back(name)
    return word


_DEEPSEEK = Headed(
    ("<｜tool▁calls▁begin｜>",),
    ("<｜tool▁calls▁end｜>",),
    "<｜tool▁call▁begin｜>",
    _deepseek_head,
    ("```", _DEEPSEEK_END),
    fenced=True,
)
_LLAMA_STARTS = ("<|python_tag|>", "<|python_start|>")
_LLAMA_END = "<|python_end|>"
_LLAMA_PYTHON = NamedValues(_LLAMA_STARTS, (_LLAMA_END,), listed=True)


def _llama(source: Source, calls: Calls) -> Wait[None]:
    """Objects, alone or in a list, or a list of Python's calls."""
    yield from source.run(SPACE)
    mark = (yield from source.match(*_LLAMA_STARTS)) or _LLAMA_STARTS[0]
    yield from source.run(SPACE)
    if (yield from source.match("[")):
        yield from source.run(SPACE)
        if (yield from source.peek()) != "{":
            yield from _LLAMA_PYTHON.calls(source, calls)
            return
    yield from json_objects(source, calls, mark, _LLAMA_END)


def _glm(prefix: str) -> Markup:
    return Markup(
        f"<{prefix}tool_call>",
        f"</{prefix}tool_call>",
        call="",
        call_end="",
        key=f"<{prefix}arg_key>",
        key_end=f"</{prefix}arg_key>",
        value=f"<{prefix}arg_value>",
        value_end=f"</{prefix}arg_value>",
    )


def _invocations(block: str, prefix: str) -> Markup:
    return Markup(
        f"<{block}>",
        f"</{block}>",
        call=f"<{prefix}invoke name=",
        call_end=f"</{prefix}invoke>",
        key=f"<{prefix}parameter name=",
        key_end=">",
        value="",
        value_end=f"</{prefix}parameter>",
        quoted=True,
    )


def _xml(name: str, marks: Markup) -> ToolFormat:
    return ToolFormat(name, marks.start, marks.end, marks, openings=(marks.call,) if marks.call else ())


def _named(name: str, calls: NamedValues) -> ToolFormat:
    return ToolFormat(name, calls.starts[0], calls.ends[0], calls, inner=(calls.style.raw,))


FORMATS: dict[str, ToolFormat] = {
    each.name: each
    for each in (
        ToolFormat(
            "hermes",
            "<tool_call>",
            "</tool_call>",
            json_calls("<tool_call>", "</tool_call>"),
            wording=Wording("\n" + _JSON_BEFORE, "}\n", separator="\n", one_a_block=True),
        ),
        ToolFormat(
            "llama3_json",
            "",
            "",
            _llama,
            openings=_LLAMA_STARTS,
            inner=(_LLAMA_END,),
            wording=Wording('{"name": "NAME", "parameters": ', "}", single=True),
        ),
        ToolFormat(
            "llama_pythonic",
            "",
            "",
            _LLAMA_PYTHON,
            openings=_LLAMA_STARTS,
            inner=(_LLAMA_END,),
        ),
        ToolFormat(
            "mistral",
            "[TOOL_CALLS]",
            "",
            objects_or(Headed((), (), "", _mistral_head), "[TOOL_CALLS]"),
            inner=("[CALL_ID]", "[ARGS]"),
        ),
        ToolFormat(
            "nemotron",
            "<TOOLCALL>",
            "</TOOLCALL>",
            json_calls("<TOOLCALL>", "</TOOLCALL>"),
            wording=Wording(_JSON_BEFORE, "}", separator=", ", opening="[", closing="]"),
        ),
        ToolFormat(
            "deepseek_v3",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            _DEEPSEEK,
            openings=("<｜tool▁call▁begin｜>",),
            inner=(_DEEPSEEK_SEP, _DEEPSEEK_END, "```"),
            wording=Wording("<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n", "\n```<｜tool▁call▁end｜>"),
        ),
        ToolFormat(
            "deepseek_v31",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            _DEEPSEEK,
            openings=("<｜tool▁call▁begin｜>",),
            inner=(_DEEPSEEK_SEP, _DEEPSEEK_END, "```"),
            wording=Wording("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        ),
        _xml("deepseek_v32", _invocations("｜DSML｜function_calls", "｜DSML｜")),
        ToolFormat(
            "kimi_k2",
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            Headed(
                ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
                ("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
                "<|tool_call_begin|>",
                _kimi_head,
                ("<|tool_call_end|>",),
            ),
            openings=("<|tool_call_begin|>", "<|tool_call_section_begin|>"),
            inner=("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_call_section_end|>"),
        ),
        ToolFormat(
            "command_r",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            json_calls("<|START_ACTION|>", "<|END_ACTION|>"),
        ),
        _xml(
            "qwen3_coder",
            Markup(
                "<tool_call>",
                "</tool_call>",
                call="<function=",
                call_end="</function>",
                key="<parameter=",
                key_end=">",
                value="",
                value_end="</parameter>",
                lines=True,
            ),
        ),
        _xml("glm47", _glm("")),
        _xml("longcat", _glm("longcat_")),
        _xml("minimax_m2", _invocations("minimax:tool_call", "")),
        _xml("muse_spark", _invocations("atem:function_calls", "atem:")),
        _named(
            "function_gemma",
            NamedValues(
                ("<start_function_call>",), ("<end_function_call>",), "call:", "{", ":", "}", FUNCTION_GEMMA, _GEMMA_KEY
            ),
        ),
        _named("gemma4", NamedValues(("<|tool_call>",), ("<tool_call|>",), "call:", "{", ":", "}", GEMMA4, _GEMMA_KEY)),
        _named("pythonic", NamedValues(("<|tool_call_start|>",), ("<|tool_call_end|>",))),
    )
}

# A format is recognised by marks that its templates need to show a past call; the first that fits counts.
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
    """The format that a chat template uses; else one whose marks are tokens of the vocabulary."""
    for name, fits in _SIGNS:
        if template and fits(template):
            return FORMATS[name]
    # Some converted models have the tokens, but a template that never shows a call.
    if "<|tool_call_start|>" in vocabulary and "<|tool_call_end|>" in vocabulary:
        return FORMATS["pythonic"]
    return None
