"""Tools to call, calls of them as each family writes them, and the calls that a parser finds in a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.events import CallArguments, CallStart, Content, Event
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.tools.families import FORMATS
from support.parsing import read

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}},
            "required": ["city"],
        },
    },
}
NAMES = ("get_weather", "get_time", "my-tool", "mcp.search", "functions.x", "0.a-b_c", "x" * 64)
PROPERTIES: dict[str, Any] = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "share": {"type": "number"},
    "sure": {"type": "boolean"},
    "deep": {"type": "object"},
    "many": {"type": "array"},
    "note": {"type": ["string", "null"]},
    "other": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "third": {"oneOf": [{"$ref": "#/$defs/text"}, {"type": "null"}]},
    "either": {"type": ["string", "integer"]},
    "unit": {"enum": ["1", "2", "null"]},
    "rank": {"enum": ["low", 3, None]},
    "tree": {"$ref": "#/$defs/tree"},
}
DEFS = {"text": {"type": "string"}, "tree": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "object"}]}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "$defs": DEFS}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in NAMES]
# How each family writes a call that has JSON arguments.
JSON_CALLS: dict[str, Callable[[str, str], str]] = {
    "hermes": lambda name, text: f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>',
    "llama3_json": lambda name, text: f'{{"name": "{name}", "parameters": {text}}}',
    "mistral": lambda name, text: f"[TOOL_CALLS]{name}[ARGS]{text}",
    "nemotron": lambda name, text: f'<TOOLCALL>[{{"name": "{name}", "arguments": {text}}}]</TOOLCALL>',
    "command_r": lambda name, text: (
        f'<|START_ACTION|>[\n {{"tool_call_id": "0", "tool_name": "{name}", "parameters": {text}}}\n]<|END_ACTION|>'
    ),
    "deepseek_v3": lambda name, text: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{text}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": lambda name, text: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{text}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "kimi_k2": lambda name, text: (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{text}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    ),
}


def marked(start: str, call: str, key: str, after: str, end: str) -> Callable[[str, dict[str, str]], str]:
    def write(name: str, values: dict[str, str]) -> str:
        return start + call.format(name) + "".join(key.format(*item) + after for item in values.items()) + end

    return write


# How each of the others writes a call with arguments as bare text.
TEXT_CALLS: dict[str, Callable[[str, dict[str, str]], str]] = {
    "qwen3_coder": marked(
        "<tool_call>\n", "<function={}>\n", "<parameter={}>\n{}", "\n</parameter>\n", "</function>\n</tool_call>"
    ),
    "glm47": marked("<tool_call>", "{}\n", "<arg_key>{}</arg_key>\n<arg_value>{}", "</arg_value>\n", "</tool_call>"),
    "longcat": marked(
        "<longcat_tool_call>",
        "{}\n",
        "<longcat_arg_key>{}</longcat_arg_key>\n<longcat_arg_value>{}",
        "</longcat_arg_value>\n",
        "</longcat_tool_call>",
    ),
    "minimax_m2": marked(
        "<minimax:tool_call>\n",
        '<invoke name="{}">\n',
        '<parameter name="{}">{}',
        "</parameter>\n",
        "</invoke>\n</minimax:tool_call>",
    ),
    "muse_spark": marked(
        "<atem:function_calls>\n",
        '<atem:invoke name="{}">\n',
        '<atem:parameter name="{}">{}',
        "</atem:parameter>\n",
        "</atem:invoke>\n</atem:function_calls>",
    ),
}
GEMMAS = {"gemma4": ("<|tool_call>", '<|"|>', "<tool_call|>")} | {
    "function_gemma": ("<start_function_call>", "<escape>", "<end_function_call>")
}
Calls = list[tuple[str, str]]


def joined(events: list[Event]) -> tuple[str, Calls]:
    """The content, and each call's name and arguments as they were written."""
    content, calls = "", [[event.name, ""] for event in events if isinstance(event, CallStart)]
    for event in events:
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, CallArguments):
            calls[event.index][1] += event.text
    return content, [(name, text) for name, text in calls]


def content_and_calls(family: str, pieces: list[str]) -> tuple[str, Calls]:
    return joined(read(ChatFormat(tools=FORMATS[family]).parser(Beginning.FRESH, TOOLS), pieces))


def calls_in(family: str, text: str, content: str = "") -> list[tuple[str, Any]]:
    """The calls in the text, which are the same however it is cut."""
    found = content_and_calls(family, [text])
    assert content_and_calls(family, list(text)) == found
    assert found[0] == content
    return [(name, json.loads(arguments)) for name, arguments in found[1]]


def written_call(template: str, family: str, name: str, arguments: dict[str, Any]) -> str:
    """What a chat template writes for a call, from where the call begins."""
    id = f"functions.{name}:0" if family == "kimi_k2" else "call12345"
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text, _ = render_jinja_template(
        conversations=[messages], chat_template=template, tools=[TOOL], bos_token="", eos_token="</s>"
    )
    answer = str(text[0]).rpartition("QUESTION")[2]
    bare = {"llama3_json": "{", "llama_pythonic": "["}
    return answer[answer.index(FORMATS[family].start or bare[family]) :]
