"""Ids of tool calls get the form that a model knows; calls and answers stay together, different calls apart."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chat_templates import call

from parallm_openai.text.call_ids import KIMI, OPENAI, SHORT, CallIdForm, CallIds, rename_calls

FORMS = [OPENAI, SHORT, KIMI]
SHAPES = {
    OPENAI: re.compile(r".+", re.DOTALL),
    SHORT: re.compile(r"[a-zA-Z0-9]{9}"),
    KIMI: re.compile(r"functions\..+:\d+"),
}
names = st.sampled_from(["get_weather", "f", "a.b-c"])
ids = st.one_of(
    st.text(min_size=1, max_size=12),
    st.sampled_from(["call_0", "toolu_01", "functions.f:0", "functions.f:1", "aB3dE6gH9", "chatcmpl-tool-1", "\ud83d"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns of calls with different ids in each, answered in any order, some of them never."""
    messages: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 5))):
        turn = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
        messages.append({"role": "user", "content": "Hello"})
        calls = [call(id, draw(names), "{}") for id in turn]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        answered = draw(st.permutations(turn))[: draw(st.integers(0, len(turn)))]
        messages += [{"role": "tool", "tool_call_id": id, "content": ""} for id in answered]
    return messages


def renamed(messages: list[dict[str, Any]], form: CallIdForm) -> list[dict[str, Any]]:
    copied = copy.deepcopy(messages)
    rename_calls(copied, form)
    return copied


def call_ids(messages: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for message in messages for each in message.get("tool_calls", [])]


@pytest.mark.parametrize("form", FORMS)
@given(conversation=conversations())
def test_calls_get_different_ids_of_the_form_and_their_answers_the_same(
    form: CallIdForm, conversation: list[dict[str, Any]]
) -> None:
    after = renamed(conversation, form)
    assert all(SHAPES[form].fullmatch(id) for id in call_ids(after))
    assert len(set(call_ids(after))) == len(call_ids(after))
    for place, message in enumerate(conversation):
        if message["role"] != "tool":
            continue
        # By the book: the newest call of that id.
        turn = max(at for at in range(place) if "tool_calls" in conversation[at])
        index = [each["id"] for each in conversation[turn]["tool_calls"]].index(message["tool_call_id"])
        assert after[place]["tool_call_id"] == after[turn]["tool_calls"][index]["id"]


@pytest.mark.parametrize("form", FORMS)
@given(conversation=conversations(), length=st.integers(0, 20))
def test_a_conversation_keeps_its_ids_when_it_goes_on(
    form: CallIdForm, conversation: list[dict[str, Any]], length: int
) -> None:
    assert call_ids(renamed(conversation[:length], form)) == call_ids(renamed(conversation, form)[:length])


@pytest.mark.parametrize("form", FORMS)
@given(conversation=conversations())
def test_ids_that_have_the_form_stay(form: CallIdForm, conversation: list[dict[str, Any]]) -> None:
    once = renamed(conversation, form)
    assert renamed(once, form) == once


@pytest.mark.parametrize("form", FORMS)
@given(conversation=conversations())
def test_an_answers_own_ids_have_the_form_and_are_new_in_the_conversation(
    form: CallIdForm, conversation: list[dict[str, Any]]
) -> None:
    before = renamed(conversation, form)
    maker = CallIds(form, before)
    made = [maker.new(index, "get_weather") for index in range(3)]
    assert all(SHAPES[form].fullmatch(id) for id in made)
    assert len({*made, *call_ids(before)}) == 3 + len(call_ids(before))
    turn = {"role": "assistant", "content": "", "tool_calls": [call(id, "get_weather", "{}") for id in made]}
    assert call_ids(renamed([*before, turn], form))[-3:] == made


def test_kimis_calls_are_counted_over_the_conversation() -> None:
    first = {"role": "assistant", "content": "", "tool_calls": [call("x", "f", "{}"), call("y", "g", "{}")]}
    second = {"role": "assistant", "content": "", "tool_calls": [call("x", "f", "{}")]}
    assert call_ids(renamed([first, second], KIMI)) == ["functions.f:0", "functions.g:1", "functions.f:2"]
    assert CallIds(KIMI, [first, second]).new(1, "h") == "functions.h:4"
    assert CallIds(KIMI, []).new(0, "h") == "functions.h:0"


def answers(*ids: str | None) -> list[str]:
    """The ids that answers with these get, after calls of `a` and `b`."""
    calls = [call("a", "f", "{}"), call("b", "g", "{}")]
    tools = [{"role": "tool", "content": "", "tool_call_id": id} for id in ids]
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": calls}, *tools]
    return [message["tool_call_id"] for message in renamed(messages, KIMI)[1:]]


def test_an_answer_to_nothing_is_that_of_a_call_without_one() -> None:
    a, b = "functions.f:0", "functions.g:1"
    assert answers("unknown", "a") == [b, a]
    assert answers("one", "other") == [a, b]
    assert answers(None, None) == [a, b]
    assert answers("a", "b", "unknown") == [a, b, "functions.unknown:2"]


def test_an_old_functions_answer_goes_by_its_name() -> None:
    calls = [call(None, "f", "{}"), call(None, "g", "{}")]
    answer = {"role": "tool", "name": "g", "content": ""}
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": calls}, answer]
    assert renamed(messages, KIMI)[1]["tool_call_id"] == "functions.g:1"
