"""Instructions in the middle of a conversation reach the model, whatever the template makes of their role."""

from __future__ import annotations

from typing import Any

import pytest
from support.chat_templates import EACH, NAMES, source, tokenizer_with

from parallm_openai.text.history import TemplateTraits, adapted
from parallm_openai.text.templates import TemplateError

LATE = {"role": "system", "content": "SECRET"}


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "after the question": [said("user", "FIRST"), LATE],
    "after an answer": [said("user", "FIRST"), said("assistant", "Hi"), LATE],
    "before the next question": [said("user", "FIRST"), said("assistant", "Hi"), LATE, said("user", "NEXT")],
    "after others": [said("system", "BEFORE"), said("user", "FIRST"), LATE],
    "twice": [said("user", "FIRST"), LATE, said("assistant", "Hi"), said("user", "NEXT"), LATE],
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_they_are_in_the_prompt_with_all_that_is_said(name: str, case: str) -> None:
    tokenizer = tokenizer_with(source(name))
    messages = CONVERSATIONS[case]
    try:
        tokenizer.render([message for message in messages if message is not LATE])
    except TemplateError:
        pytest.skip("the template refuses plain conversations")
    prompt = tokenizer.render(messages)
    for message in messages:
        assert prompt.count(message["content"]) >= messages.count(message), message


def test_templates_of_both_kinds_are_among_them() -> None:
    found = {tokenizer_with(source(name)).template.traits(False).late_system for name in NAMES}
    assert found == {True, False}


def test_they_become_the_users_own_words_beside_the_users() -> None:
    traits = TemplateTraits(late_system=False)
    start = said("system", "A")
    user, answer = said("user", "B"), said("assistant", "C")
    assert adapted([start, start, user, answer], traits) == [start, start, user, answer]
    assert adapted([start, user, LATE, LATE], traits) == [start, said("user", "B\n\nSECRET\n\nSECRET")]
    assert adapted([user, LATE, answer, LATE, user], traits) == [
        said("user", "B\n\nSECRET"),
        answer,
        said("user", "SECRET\n\nB"),
    ]
    # What the user says in two messages stays two.
    assert adapted([user, user], traits) == [user, user]
