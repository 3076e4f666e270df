"""What comes out under a grammar is in its language, whatever the model would rather say."""

from __future__ import annotations

import concurrent.futures
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.servers import RunningServer, demo_target

from parallm_openai.engine import row
from parallm_openai.engine.constraint import mask_words
from parallm_openai.text.grammar.token_grammar import GrammarError, TokenMatcher
from parallm_openai.text.schema.normalize import closed
from parallm_openai.text.tokenizer import Tokenizer

TARGET = demo_target()
TOKENIZER = Tokenizer(TARGET.tokenizer, TARGET.vocab_size)
GRAMMARS = TOKENIZER.grammars(TARGET.eos_token_ids)
EOS = next(iter(TARGET.eos_token_ids))

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def allowed(matcher: TokenMatcher, drafts: tuple[int, ...] = ()) -> list[int]:
    mask = matcher.allowed(drafts)
    assert mask is not None
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


@settings(max_examples=40)
@given(luck=st.randoms(use_true_random=False))
def test_any_walk_through_the_mask_ends_in_valid_json(luck: Any) -> None:
    matcher = GRAMMARS.json_schema(PERSON).matcher()
    tokens: list[int] = []
    while not matcher.finished:
        assert len(tokens) < 5000, "the walk does not come to an end"
        token = luck.choice(allowed(matcher))
        matcher.advance(token)
        assert matcher.error is None
        tokens.append(token)
    found = json.loads(TOKENIZER.decode(tokens))
    assert set(found) >= {"name", "age"}
    assert 0 <= found["age"] <= 120


@settings(max_examples=40)
@given(luck=st.randoms(use_true_random=False), depth=st.integers(1, 6))
def test_looking_ahead_along_drafts_is_what_committing_them_would_show(luck: Any, depth: int) -> None:
    matcher, ahead = (GRAMMARS.json_schema(PERSON).matcher() for _ in range(2))
    for _ in range(luck.randrange(20)):
        if matcher.finished:
            return
        token = luck.choice(allowed(matcher))
        matcher.advance(token)
        ahead.advance(token)
    drafts: tuple[int, ...] = ()
    while len(drafts) < depth and not ahead.finished:
        before = allowed(matcher)
        assert allowed(matcher, drafts) == allowed(ahead)
        assert allowed(matcher) == before
        drafts += (luck.choice(allowed(ahead)),)
        ahead.advance(drafts[-1])


def test_grammars_of_different_kinds_share_a_batch(server: RunningServer) -> None:
    bodies: list[dict[str, Any]] = [
        {"reasoning_effort": "low", "thinking_budget": 3},
        {"reasoning_effort": "low", "thinking_budget": 3, "guided_regex": "[a-z]{3}"},
        {"guided_regex": "[0-9]{3}"},
        {"response_format": {"type": "json_object"}},
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: ask(server, max_tokens=30, **body), bodies * 2))
    assert [answer.status_code for answer in answers] == [200] * 8


@pytest.mark.parametrize("extra", [0, 1, 31, 32])
def test_masks_are_as_long_as_the_vocabulary_however_it_is_padded(extra: int) -> None:
    size = TARGET.vocab_size + extra
    matcher = Tokenizer(TARGET.tokenizer, size).grammars(TARGET.eos_token_ids).regex("[0-9]{3}").matcher()
    mask = matcher.allowed(())
    assert mask is not None
    assert len(mask) == mask_words(size)


def test_a_draft_that_the_grammar_forbids_has_no_mask_after_it_and_leaves_no_trace() -> None:
    matcher = GRAMMARS.regex("[0-9]{3}").matcher()
    digit, letter = TOKENIZER.encode("7")[0], TOKENIZER.encode("x")[0]
    before = allowed(matcher)
    assert matcher.allowed((digit, letter)) is None
    assert matcher.allowed((letter,)) is None
    assert allowed(matcher) == before
    assert matcher.error is None


def test_the_end_may_come_where_the_grammar_may_end() -> None:
    matcher = GRAMMARS.regex("[0-9]{1,3}").matcher()
    digit = TOKENIZER.encode("7")[0]
    assert EOS not in allowed(matcher)
    assert EOS in allowed(matcher, (digit,))
    for _ in range(3):
        assert not matcher.finished
        matcher.advance(digit)
    assert matcher.finished


@pytest.mark.parametrize(
    ("schema", "named"),
    [({"not": {"type": "string"}}, "not"), ({"type": "array", "uniqueItems": True}, "uniqueItems")],
)
def test_a_keyword_that_cannot_be_enforced_is_refused_by_name(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        GRAMMARS.json_schema(schema)


def test_broken_patterns_and_grammars_are_refused() -> None:
    with pytest.raises(GrammarError, match="unclosed"):
        GRAMMARS.regex("[a-z")
    with pytest.raises(GrammarError, match="unknown name"):
        GRAMMARS.lark('start: "a" b')


def test_objects_that_leave_their_properties_open_are_closed() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    schema = {"$defs": {"i": inner}, "properties": {"a": inner, "b": {"$ref": "#/$defs/i"}, "c": {"type": "object"}}}
    shut = inner | {"additionalProperties": False}
    assert closed(schema) == {
        "$defs": {"i": shut},
        "properties": {"a": shut, "b": {"$ref": "#/$defs/i"}, "c": {"type": "object"}},
        "additionalProperties": False,
    }
    assert closed({"allOf": [inner, inner]}) == {"allOf": [inner, inner]}
    assert closed(inner | {"additionalProperties": True}) == inner | {"additionalProperties": True}
    assert closed({"enum": [{"properties": {}}]}) == {"enum": [{"properties": {}}]}


def ask(server: RunningServer, **body: Any) -> httpx.Response:
    defaults = {"model": server.model.name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 120}
    with server.client as client:
        return client.post("/v1/chat/completions", json=defaults | body)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1.4, "seed": 3}, {"temperature": 0, "use_speculative": False}]
)
def test_a_schema_holds_for_a_model_that_would_say_something_else(
    server: RunningServer, options: dict[str, Any]
) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    choice = ask(server, response_format=format, **options).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert {"name", "age"} <= set(json.loads(choice["message"]["content"]))


def test_one_rows_grammar_never_binds_its_neighbours(server: RunningServer) -> None:
    prompts = [{"prompt": "The capital of France is", "max_tokens": 24, "temperature": 0, "ignore_eos": True}] * 3
    with server.client as client:
        alone = client.post("/v1/generate", json=prompts[0]).json()["text"]

    def send(body: dict[str, Any]) -> str:
        with server.client as client:
            return str(client.post("/v1/generate", json=body).json()["text"])

    bound = {"guided_regex": "[0-9]{20}"}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(send, [body | extra for body in prompts for extra in ({}, bound)]))
    assert texts[0::2] == [alone] * 3
    assert all(re.fullmatch("[0-9]{20}", text) for text in texts[1::2])


def test_json_object_regex_and_lark_through_the_api(server: RunningServer) -> None:
    answer = ask(server, response_format={"type": "json_object"}, temperature=0).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert isinstance(json.loads(answer["message"]["content"]), dict)
    regex = ask(server, guided_regex="(yes|no), [a-z]{3}").json()["choices"][0]
    assert re.fullmatch("(yes|no), [a-z]{3}", regex["message"]["content"])
    lark = ask(server, grammar='start: "<" WORD ">"\nWORD: /[a-z]{2,5}/').json()["choices"][0]
    assert re.fullmatch("<[a-z]{2,5}>", lark["message"]["content"])


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"guided_regex": "[a-z"}, "guided_regex", "unclosed"),
        ({"grammar": "start: missing"}, "grammar", "unknown name"),
        ({"guided_regex": "a", "grammar": 'start: "a"'}, "guided_regex", "together"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}},
            "response_format",
            "not",
        ),
    ],
)
def test_what_cannot_be_enforced_is_a_400_that_names_it(
    server: RunningServer, body: dict[str, Any], param: str, words: str
) -> None:
    answer = ask(server, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_fails_in_the_middle_is_told_by_its_field(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(row, "SLOWEST_MASK", -1.0)
    body = {"model": "parallm-demo", "prompt": "Count: ", "guided_regex": "[0-9]{9}", "stream": stream}
    with server.client as client:
        answer = client.post("/v1/completions", json=body)
    if stream:
        *_, last, done = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert done == "[DONE]"
    else:
        assert answer.status_code == 400
    error = json.loads(last if stream else answer.text)["error"]
    assert (error["param"], error["type"]) == ("guided_regex", "invalid_request_error")
