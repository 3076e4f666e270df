"""Any combination of features: streamed or whole, speculated or not, alone or among others, the answer is the same."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.chat_requests import TIMER, WEATHER, streamed, whole
from support.servers import RunningServer

QUESTIONS = ["Hello!", "What is the weather in Paris?", "What is 12 + 30?", "Tell me a story.", "Count from 3 to 9."]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
formats = st.sampled_from(
    [
        {},
        {},
        FORMAT,
        {"guided_regex": "[a-z]{2,9}( [0-9]+)?"},
        {"tools": [WEATHER, TIMER]},
        {"tools": [WEATHER, TIMER], "tool_choice": "required"},
        {"tools": [WEATHER], "parallel_tool_calls": False},
        {"functions": [WEATHER["function"]]},
        {"reasoning_effort": "low"},
        {"reasoning_effort": "low", "thinking_budget": 5},
    ]
)
requests = st.fixed_dictionaries(
    {
        "messages": st.sampled_from(QUESTIONS).map(lambda text: [{"role": "user", "content": text}]),
        "seed": st.integers(0, 1000),
        "temperature": st.sampled_from([0, 0.6, 1.2]),
        "max_tokens": st.sampled_from([1, 7, 40]),
        "n": st.sampled_from([1, 1, 3]),
    },
    optional={
        "top_p": st.sampled_from([0.5, 0.95]),
        "top_k": st.sampled_from([1, 20]),
        "frequency_penalty": st.sampled_from([-0.5, 0.7]),
        "repetition_penalty": st.just(1.2),
        "stop": st.sampled_from([".", [" the", "\n"], "e"]),
        "min_tokens": st.just(5),
        "logit_bias": st.just({"300": -100, "65": 2}),
    },
)


REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "seed": 1,
    "temperature": 0,
    "max_tokens": 40,
    "n": 1,
}
# Each rule of `_fits` binds an answer to these.
EVERY_RULE: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    (REQUEST, FORMAT, False),
    (REQUEST, {"tools": [WEATHER, TIMER], "tool_choice": "required"}, True),
]


@pytest.mark.slow
@example(drawn=EVERY_RULE)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(st.tuples(requests, formats, st.booleans()), min_size=1, max_size=4))
def test_an_answer_is_the_same_however_it_is_asked_for(
    server: RunningServer, drawn: list[tuple[dict[str, Any], dict[str, Any], bool]]
) -> None:
    bodies = [
        {"model": server.model.name, **request, **format, **({"logprobs": True, "top_logprobs": 2} if scored else {})}
        for request, format, scored in drawn
    ]
    alone = [whole(server, body | {"use_speculative": False}) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: whole(server, body), bodies))
        in_pieces = list(pool.map(lambda body: streamed(server, body), bodies))
    assert together == alone
    assert in_pieces == alone
    held = Counter[str]()
    for body, (request, format, _), choices in zip(bodies, drawn, alone, strict=True):
        for choice in choices:
            held.update(_fits(request, format, choice))
        _holds_no_half_character_of_its_own(server, body, choices)
    if drawn == EVERY_RULE:
        assert set(held) == {"no markup", "in its format", "called"}


def _holds_no_half_character_of_its_own(
    server: RunningServer, body: dict[str, Any], choices: list[dict[str, Any]]
) -> None:
    """U+FFFD stands only where the tokens' own bytes are no character: a hot or biased sampler draws such."""
    if not any("\ufffd" in choice["content"] for choice in choices):
        return
    with server.client as client:
        scored = client.post("/v1/chat/completions", json=body | {"logprobs": True}).json()["choices"]
    for choice, again in zip(choices, scored, strict=True):
        raw = b"".join(bytes(entry["bytes"] or ()) for entry in again["logprobs"]["content"])
        assert choice["content"].count("\ufffd") <= raw.decode(errors="replace").count("\ufffd")


def _is_call(text: str) -> bool:
    """A model may also write what nobody could carry out; that stays text."""
    try:
        return "name" in json.loads(text.partition("</tool_call>")[0])
    except (ValueError, TypeError):
        return False


def _fits(request: dict[str, Any], format: dict[str, Any], choice: dict[str, Any]) -> list[str]:
    """Holds the choice against the rules that bind it; returns which they were."""
    held = []
    if "tools" in format and choice["finish_reason"] != "length" and "stop" not in request:
        assert not any(map(_is_call, choice["content"].split("<tool_call>")[1:]))
        held.append("no markup")
    ended = choice["finish_reason"] == "stop" and "stop" not in request
    if "response_format" in format and ended:
        assert set(json.loads(choice["content"])) == {"n", "ok"}
        held.append("in its format")
    if format.get("tool_choice") == "required" and "stop" not in request:
        assert choice["finish_reason"] != "stop"
        held.append("called")
    return held
