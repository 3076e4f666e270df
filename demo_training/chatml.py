"""The chat format: the Jinja template shipped with the model, and the same in Python for training."""

from __future__ import annotations

import json
from typing import Any

from demo_training.sample import Sample

END_OF_TEXT = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END)
MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TOOLS_HEAD = "# Tools\n\nYou may call these functions:\n<tools>"
TOOLS_FOOT = (
    "\n</tools>\n\nTo call one, answer:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

# `enable_thinking` marks every user turn with ` /think`; the model then opens its turn with
# `<think>`. A mark on all of them keeps the prompt of one turn a prefix of the next one's.
TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is not none -%}
{%- for part in content -%}
{%- if part is string -%}{{ part }}{%- elif part.text is defined -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role in ['system', 'developer'] -%}
{%- if tools or has_system -%}
{{- '<|im_start|>system\\n' -}}
{%- if has_system -%}{{- text(messages[0].content) -}}{%- endif -%}
{%- if tools -%}
{%- if has_system -%}{{- '\\n\\n' -}}{%- endif -%}
{{- TOOLS_HEAD -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- TOOLS_FOOT -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- set said = text(message.content) -%}
{%- if '</think>' in said -%}{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{{- '<|im_start|>assistant\\n' + said -}}
{%- for tool_call in message.tool_calls or [] -%}
{%- if tool_call.function is defined -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
{%- if not loop.first or said -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' -}}
{{- tool_call.arguments if tool_call.arguments is string else (tool_call.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'user' -%}
{{- '<|im_start|>user\\n' + text(message.content) -}}
{{- (' /think' if enable_thinking else '') + '<|im_end|>\\n' -}}
{%- elif not (loop.first and has_system) -%}
{{- '<|im_start|>system\\n' + text(message.content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".replace("TOOLS_HEAD", repr(TOOLS_HEAD)).replace("TOOLS_FOOT", repr(TOOLS_FOOT))

Span = tuple[str, bool]
"""A stretch of text, and whether the model is to write it."""


def call_text(call: dict[str, Any]) -> str:
    """One tool call as the model writes it."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'


def answer_text(message: dict[str, Any]) -> str:
    """What an assistant message says, tool calls included."""
    calls = "\n".join(call_text(call) for call in message.get("tool_calls", ()))
    said: str = message["content"]
    return f"{said}\n{calls}" if said and calls else said or calls


def spans(sample: Sample) -> list[Span]:
    """A sample as text, cut into what is given and what the model is to write.

    The last span is the answer that evaluation compares; it includes the mark that ends it.
    """
    if sample.raw:
        return [(sample.prompt, False), (sample.completion + END_OF_TEXT, True)]
    parts: list[Span] = []
    given = _system_text(sample)
    messages = sample.messages
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            last = index == len(messages) - 1
            think = f"<think>\n{sample.think}\n</think>\n\n" if sample.thinking and last else ""
            parts.append((given + f"{START}assistant\n", False))
            parts.append((think + answer_text(message) + END, True))
            given = "\n"
        elif role == "tool":
            follows = messages[index - 1]["role"] == "tool"
            given += "" if follows else f"{START}user"
            given += f"\n<tool_response>\n{message['content']}\n</tool_response>"
            given += "" if messages[index + 1]["role"] == "tool" else f"{END}\n"
        elif role == "user":
            given += f"{START}user\n{message['content']}{' /think' if sample.thinking else ''}{END}\n"
    return parts


def _system_text(sample: Sample) -> str:
    first = sample.messages[0]
    told = first["content"] if first["role"] == "system" else ""
    if sample.tools:
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in sample.tools)
        told += ("\n\n" if told else "") + TOOLS_HEAD + lines + TOOLS_FOOT
    return f"{START}system\n{told}{END}\n" if told else ""
