"""Items become the chat messages that say the same, whoever made them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.responses import ResponseInputItemParam, ResponseItem
from pydantic import TypeAdapter
from support.chat_templates import published, source
from transformers.utils.chat_template_utils import render_jinja_template

from parallm_openai.api.response_input import ChatMessage, chat_messages
from parallm_openai.api.response_truncation import possible_cuts, without
from parallm_openai.api.schemas.response_items import STORED_ITEMS, sealed, unsealed

USER = {"role": "user", "content": "Sum?"}
THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "add",
    "arguments": '{"a":1}',
    "status": "completed",
}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "2"}
ANSWER = {
    "type": "message",
    "role": "assistant",
    "id": "msg_1",
    "status": "completed",
    "phase": "final_answer",
    "content": [{"type": "output_text", "text": "It is 2.", "annotations": []}],
}
SHELL = {"type": "exec", "command": ["ls"], "env": {}}
RAN = {"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
# Each kind of item that OpenAI's clients send, and what the model is told of it: calls and answers.
TOLD: list[tuple[dict[str, Any], list[Any]]] = [
    ({**CALL, "namespace": "crm"}, [("c1", "crm__add", {"a": 1})]),
    ({"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "2"}]}, [("c1", "2")]),
    (
        {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "SELECT 1"},
        [("c", "sql", {"input": "SELECT 1"})],
    ),
    ({"type": "custom_tool_call_output", "call_id": "c", "output": "1"}, [("c", "1")]),
    (
        {"type": "local_shell_call", "id": "i", "call_id": "c", "action": SHELL, "status": "completed"},
        [("c", "local_shell", SHELL)],
    ),
    ({"type": "local_shell_call_output", "id": "c", "output": "a.txt"}, [("c", "a.txt")]),
    ({"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}}, [("c", "shell", {"commands": ["ls"]})]),
    (
        {"type": "shell_call_output", "call_id": "c", "output": [RAN], "max_output_length": 100},
        [("c", json.dumps([RAN]))],
    ),
    (
        {
            "type": "apply_patch_call",
            "call_id": "c",
            "status": "completed",
            "operation": {"type": "delete_file", "path": "a"},
        },
        [("c", "apply_patch", {"type": "delete_file", "path": "a"})],
    ),
    ({"type": "apply_patch_call_output", "call_id": "c", "status": "failed"}, [("c", "failed")]),
    (
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "mlx"}},
        [("w", "web_search", {"type": "search", "query": "mlx"}), ("w", "completed")],
    ),
    (
        {
            "type": "file_search_call",
            "id": "f",
            "status": "completed",
            "queries": ["mlx"],
            "results": [{"text": "MLX"}],
        },
        [("f", "file_search", {"queries": ["mlx"]}), ("f", '[{"text": "MLX"}]')],
    ),
    (
        {
            "type": "code_interpreter_call",
            "id": "i",
            "status": "completed",
            "code": "1",
            "container_id": "x",
            "outputs": None,
        },
        [("i", "code_interpreter", {"code": "1"}), ("i", "completed")],
    ),
    (
        {
            "type": "mcp_call",
            "id": "m",
            "name": "look",
            "arguments": '{"q":"x"}',
            "server_label": "s",
            "output": "found",
        },
        [("m", "look", {"q": "x"}), ("m", "found")],
    ),
    ({"type": "mcp_list_tools", "id": "l", "server_label": "s", "tools": []}, []),
]


def messages_of(*items: dict[str, Any]) -> list[ChatMessage]:
    return chat_messages(STORED_ITEMS.validate_python(list(items)))


def told(messages: list[ChatMessage]) -> list[Any]:
    found: list[Any] = []
    for message in messages:
        if message["role"] == "tool":
            found.append((message["tool_call_id"], message["content"]))
        calls = [(call["id"], call["function"]) for call in message.get("tool_calls", [])]
        found += [(id, function["name"], json.loads(function["arguments"])) for id, function in calls]
    return found


@pytest.mark.parametrize(("item", "expected"), TOLD, ids=lambda value: value["type"] if isinstance(value, dict) else "")
def test_items_of_earlier_turns_are_told_as_calls_and_their_outputs(item: dict[str, Any], expected: list[Any]) -> None:
    TypeAdapter(ResponseInputItemParam).validate_python(item)
    assert told(messages_of(item)) == expected
    [parsed] = STORED_ITEMS.validate_python([item])
    stored = {"id": "x", **parsed.stored()}
    TypeAdapter(ResponseItem).validate_python(stored)
    assert messages_of(stored) == messages_of(item)


def test_thoughts_stand_with_the_calls_that_they_led_to() -> None:
    assert messages_of(USER, THOUGHT, CALL, OUTPUT, THOUGHT, ANSWER) == [
        {"role": "user", "content": "Sum?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "It is 2.", "reasoning_content": "Hm."},
    ]


def test_text_and_calls_of_one_turn_are_one_message_with_all_its_thoughts() -> None:
    more = {**THOUGHT, "content": [{"type": "reasoning_text", "text": "Add."}]}
    _, answer, _ = messages_of(USER, THOUGHT, ANSWER, more, CALL, more, {**CALL, "call_id": "c2"}, OUTPUT)
    assert answer["content"] == "It is 2."
    assert answer["reasoning_content"] == "Hm.\nAdd.\nAdd."
    assert [call["id"] for call in answer["tool_calls"]] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": [{"type": "reasoning_text", "text": "a"}, {"type": "reasoning_text", "text": "b"}]}, "ab"),
        ({"content": [], "summary": [{"type": "summary_text", "text": "short"}]}, "short"),
        ({"summary": [{"type": "summary_text", "text": "short"}], "encrypted_content": "gAAAAABo"}, "short"),
        ({"summary": [], "encrypted_content": sealed("whole")}, "whole"),
        ({"summary": [{"type": "summary_text", "text": "short"}], "encrypted_content": sealed("whole")}, "whole"),
        ({"summary": [], "encrypted_content": "gAAAAABo"}, None),
        ({"summary": [], "encrypted_content": "parallm.%%%"}, None),
        ({"summary": [], "content": None, "encrypted_content": None}, None),
    ],
)
def test_thoughts_are_read_from_whichever_form_holds_them(fields: dict[str, Any], text: str | None) -> None:
    [message] = messages_of({"id": "rs_1", "type": "reasoning", **fields}, ANSWER)
    assert message.get("reasoning_content") == text


@given(st.text())
def test_sealed_thoughts_open_again(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert unsealed(sealed(text)) == text
    assert unsealed(text) == ""


def test_thoughts_that_led_to_nothing_are_a_turn_of_their_own_before_the_next_question_and_end_with_the_input() -> None:
    assert [message["role"] for message in messages_of(USER, THOUGHT, USER, THOUGHT)] == ["user", "assistant", "user"]


@pytest.mark.parametrize("name", ["thinking", published("Qwen-Qwen3-0.6B")])
def test_a_template_shows_the_thoughts_of_a_tool_loop_and_leaves_out_those_before_the_last_question(name: str) -> None:
    def prompt(*items: dict[str, Any]) -> str:
        messages = [{**message, "content": message["content"] or ""} for message in messages_of(*items)]
        for message in messages:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        [text], _ = render_jinja_template(conversations=[messages], chat_template=source(name))
        return text

    assert "<think>\nHm.\n</think>" in prompt(USER, THOUGHT, CALL, OUTPUT)
    assert "Hm." not in prompt(USER, THOUGHT, CALL, OUTPUT, ANSWER, USER)


ITEMS = st.lists(
    st.sampled_from([USER, ANSWER, CALL, OUTPUT, THOUGHT, {"role": "developer", "content": "Rule"}]), max_size=14
)


# A tool's output whose call is cut off, and one that never had a call.
@example([USER, CALL, OUTPUT, USER])
@example([OUTPUT, USER])
@given(ITEMS)
def test_each_cut_goes_further_and_keeps_instructions_the_last_question_and_calls_with_their_outputs(
    items: list[dict[str, Any]],
) -> None:
    messages = messages_of(*items)
    versions = [without(messages, cut) for cut in possible_cuts(messages)]
    assert all(len(longer) >= len(shorter) for longer, shorter in pairwise(versions))
    users = [message for message in messages if message["role"] == "user"]
    rules = [message for message in messages if message["role"] == "developer"]
    for version in versions:
        assert [message for message in version if message["role"] == "developer"] == rules
        assert [message for message in version if message["role"] == "user"][-1:] == users[-1:]
        assert version[-1:] == messages[-1:]
        # What a tool said never stands without the assistant's call, unless it did before.
        first = next(
            (place for place, message in enumerate(version) if message["role"] not in ("developer", "user")), None
        )
        if first is not None and version[first]["role"] == "tool":
            place = next(place for place, message in enumerate(messages) if message is version[first])
            before = [message["role"] for message in messages[:place] if message["role"] != "developer"]
            assert before[-1:] in ([], ["user"], ["tool"])
