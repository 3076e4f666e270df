"""Every chat template takes what clients send, or refuses it for a reason that stands here."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from mlx_lm.chat_templates import deepseek_v32
from mlx_lm.tokenizer_utils import TokenizerWrapper
from support.chat_templates import (
    EACH,
    NAMES,
    PUBLISHED,
    call,
    function,
    published,
    source,
    tokenizer_with,
    wrapper_with,
)

from parallm_openai.text.templates import LONGEST_REASON, TemplateError
from parallm_openai.text.tokenizer import Tokenizer

WEATHER = function(
    "get_weather",
    description="The weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
# Names a format, so that these templates show calls in their own form, which no reader knows.
OWN_FORM = "hermes"
BARE = [function("bare"), function("barer", parameters={}), function("barest", parameters={"type": "object"})]
ROME = '{"city": "Rome"}'
OWN = "call_0123456789abcdef01234567"


def user(content: Any = "QUESTION") -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any = "ANSWER", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def called(*calls: dict[str, Any], content: Any = None, **more: Any) -> dict[str, Any]:
    return said(content, tool_calls=list(calls), **more)


def result(id: str, content: Any = "RESULT") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def arguments(text: str) -> list[dict[str, Any]]:
    return [user(), called(call("x", "get_weather", text)), result("x")]


def round_trip(id: str) -> list[dict[str, Any]]:
    return [user(), called(call(id, "get_weather", ROME)), result(id)]


PLAIN: dict[str, list[dict[str, Any]]] = {
    "a question": [user()],
    "a question in parts": [user([{"type": "text", "text": "QUES"}, {"type": "text", "text": "TION"}])],
    "several turns": [user(), said(), user()],
    "an answer with thoughts": [user(), said(reasoning="THOUGHTS"), user()],
    "an answer with no calls": [user(), said(tool_calls=[], function_call=None), user()],
    "system": [{"role": "system", "content": "RULES"}, user()],
    "developer": [{"role": "developer", "content": "RULES"}, user()],
    "two systems": [{"role": "system", "content": "RULES"}, {"role": "system", "content": "MORE"}, user()],
    "a late system": [user(), said(), {"role": "system", "content": "RULES"}, user()],
    "two questions": [user(), user()],
    "an answer first": [said(), user()],
}
CALLS: dict[str, list[dict[str, Any]]] = {
    "own ids": round_trip(OWN),
    "ids of Anthropic": round_trip("toolu_01A09q90qw90lq917835lq9"),
    "ids of vLLM": round_trip("chatcmpl-tool-1a2b3c"),
    "ids of Mistral": round_trip("aB3dE6gH9"),
    "ids of Kimi": round_trip("functions.get_weather:0"),
    "a turn after calls": [*round_trip(OWN), said(), user()],
    "two calls": [
        user(),
        called(call("a", "get_weather", ROME), call("b", "get_weather", '{"city": "Oslo"}')),
        result("b", "COLD"),
        result("a"),
    ],
    "the old form": [
        user(),
        said(None, function_call={"name": "get_weather", "arguments": ROME}),
        {"role": "function", "name": "get_weather", "content": "RESULT"},
    ],
    "thoughts, content and a call": [
        user(),
        called(call(OWN, "get_weather", ROME), content="I LOOK", reasoning_content="THOUGHTS", reasoning="THOUGHTS"),
        result(OWN),
    ],
    "thoughts and a call": [user(), called(call(OWN, "get_weather", ROME), thinking="THOUGHTS"), result(OWN)],
    "content in parts": [
        user(),
        called(call(OWN, "get_weather", ROME), content=[{"type": "text", "text": "I LOOK"}]),
        result(OWN, [{"type": "text", "text": "RESULT"}]),
    ],
    "no content": [user(), {"role": "assistant", "tool_calls": [call(OWN, "get_weather", ROME)]}, result(OWN)],
    "an answer to another id": [user(), called(call(OWN, "get_weather", ROME)), result("call_unknown")],
    "an answer too many": [*round_trip(OWN), result("call_unknown", "MORE")],
}
ODD = [
    '{"city": "Ro',
    '{"city": "Rome", "days": [1, {"a',
    "Rome",
    "",
    " ",
    "null",
    '""',
    "[]",
    "5",
    '"Rome"',
    "[1]",
    "NaN",
]
ODD += ['"{\\"city\\": \\"Rome\\"}"', '{"city": "\\ud83d', '{"city": "\\ud83d"}', "[" * 5000, "9" * 5000, "{"]
CALLS |= {f"arguments {text[:40]}": arguments(text) for text in ODD}

# Names of templates that list tools, but never show a call.
CALLS_NOTHING = {"LFM2-8B-A1B"}
MISTRAL = {name for name in NAMES if "istral" in name}
ALTERNATE = "roles must alternate"


def refusal(name: str, conversation: str) -> str | None:
    """Why this template does not take that conversation, in its own words."""
    if name == "strict" and conversation in ("two questions", "an answer first"):
        return "must take turns"
    if name == "mistral" and conversation in ("two questions", "an answer first", "two systems"):
        return "must take turns"
    if name == "google-gemma-2-2b-it" and conversation in ("two questions", "an answer first"):
        return ALTERNATE
    if name == "Kimi-K2-Thinking" and conversation in CALLS:
        # This version appends to a list, which transformers' sandbox forbids; Kimi's own, as below, does not.
        return "'append' of 'list' object is unsafe"
    if name in MISTRAL and conversation in ("two questions", "an answer first"):
        return ALTERNATE
    if name in MISTRAL and conversation == "two systems":
        return "Only user, assistant and tool roles" if "Ministral" in name else ALTERNATE
    if name == "Qwen3.5-4B" and conversation == "two systems":
        return "System message must be at the beginning"
    return None


def tokenizer_of(name: str) -> Tokenizer:
    """Those that can do nothing but tools come with another for conversations without."""
    if name.endswith("-tool_use") and "r7b" not in name:
        return tokenizer_with({"default": source("Qwen-Qwen2.5-7B-Instruct"), "tool_use": source(name)})
    return tokenizer_with(source(name))


@pytest.fixture(scope="module", params=EACH)
def named(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, tokenizer_of(request.param)


def check(named: tuple[str, Tokenizer], kind: str, messages: list[dict[str, Any]], tools: Any) -> str | None:
    name, tokenizer = named
    before = copy.deepcopy(messages)
    reason = refusal(name, kind)
    if reason is not None:
        with pytest.raises(TemplateError, match=re.escape(reason)):
            tokenizer.render(messages, tools=tools)
        return None
    try:
        prompt = tokenizer.render(messages, tools=tools)
    except TemplateError as error:
        pytest.fail(f"{kind}: {error}")
    assert messages == before
    assert prompt == tokenizer.render(messages, tools=tools)
    prompt.encode()
    return prompt


def test_conversations_without_tools_are_rendered_or_refused_for_a_known_reason(named: tuple[str, Tokenizer]) -> None:
    for kind, messages in PLAIN.items():
        if (prompt := check(named, kind, messages, None)) is not None:
            assert prompt.count("QUESTION") == sum(message["role"] == "user" for message in messages), kind


def test_conversations_with_calls_are_rendered_whole(named: tuple[str, Tokenizer]) -> None:
    name, _ = named
    for kind, messages in CALLS.items():
        prompt = check(named, kind, messages, [WEATHER])
        if prompt is None or name in CALLS_NOTHING:
            continue
        assert "RESULT" in prompt, kind
        assert prompt.count("Rome") == json.dumps(messages).count("Rome"), kind
        assert "{'city': " not in prompt, kind
        for other in ("Oslo", "COLD"):
            assert (other in prompt) == (kind == "two calls"), kind


def test_tools_need_neither_description_nor_parameters(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    prompt = tokenizer.render([user()], tools=BARE)
    assert "QUESTION" in prompt
    assert tokenizer.render([user()], tools=[function("f", parameters={"properties": {"city": {}}})])


@pytest.mark.parametrize("types", [["string", "null"], ["string", "integer", "null"], "null", "date", "object"])
def test_a_parameter_may_be_of_any_type(named: tuple[str, Tokenizer], types: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"type": types, "description": "Where?"}}}
    tool = {"type": "function", "function": {"name": "get_weather", "description": "It rains.", "parameters": schema}}
    assert "QUESTION" in named[1].render([user()], tools=[tool])
    assert schema["properties"] == {"city": {"type": types, "description": "Where?"}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"g": True, "h": False, "i": {"description": None, "type": "string"}}},
        {"properties": None, "required": None, "description": None},
        {"properties": {"a": {"properties": None, "required": None, "items": None}}, "required": ["a"]},
    ],
)
def test_a_parameter_may_be_true_or_false_and_say_nothing(named: tuple[str, Tokenizer], parameters: Any) -> None:
    prompt = named[1].render([user()], tools=[function("f", parameters={"type": "object", **parameters})])
    assert "QUESTION" in prompt
    for keyword in ("description", "properties", "required", "items"):
        assert not re.search(rf"{keyword}\W{{1,3}}(null|None)\b", prompt)


def test_arguments_cut_short_are_shown_as_far_as_they_go(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    if name in CALLS_NOTHING or refusal(name, "own ids"):
        return
    for text in ('{"city": "Reykjav', '{"city": "Reykjavik", "da'):
        assert "Reykjav" in tokenizer.render(arguments(text), tools=[WEATHER])


def rendered_ids(name: str, messages: list[dict[str, Any]]) -> str:
    return tokenizer_of(name).render(messages, tools=[WEATHER])


@pytest.mark.parametrize("name", ["mistral", published("Mistral-Small-3.2-24B-Instruct-2506")])
def test_mistral_gets_short_ids_the_same_for_a_call_and_its_answer(name: str) -> None:
    prompt = rendered_ids(name, CALLS["two calls"])
    [a, b] = [part[:9] for part in prompt.split("[CALL_ID]")[1:]]
    assert a != b
    results = [part[:9] for part in prompt.split("[TOOL_RESULTS]")[1:]]
    assert results == [b, a]
    own = rendered_ids(name, CALLS["ids of Mistral"])
    assert own.count("aB3dE6gH9") == 2


ONE_AT_A_TIME = ["llama3_json", "harmony"]
ONE_AT_A_TIME += [published(name) for name in NAMES if name.startswith("meta-llama-Llama-3")]


@pytest.mark.parametrize("name", [*ONE_AT_A_TIME, published("openai-gpt-oss-120b")])
def test_where_a_message_shows_one_call_each_gets_its_own_with_its_answer(name: str) -> None:
    prompt = tokenizer_of(name).render(CALLS["two calls"], tools=[WEATHER])
    places = [prompt.index(text) for text in ("Rome", "RESULT", "Oslo", "COLD")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["harmony", published("openai-gpt-oss-120b")])
def test_gpt_oss_gets_content_and_thoughts_of_a_call_in_one(name: str) -> None:
    prompt = tokenizer_of(name).render(CALLS["thoughts, content and a call"], tools=[WEATHER])
    assert "<|channel|>analysis<|message|>THOUGHTS\n\nI LOOK<|end|>" in prompt


THINKERS = ("openai-gpt-oss-120b", "google-gemma-4-31B-it", "Qwen-Qwen3-0.6B", "GLM-4.6", "MiniMax-M2")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("name", ["harmony", "gemma4", "thinking", "glm47", "minimax_m2", *map(published, THINKERS)])
def test_thoughts_are_read_under_any_name(name: str, field: str) -> None:
    thinking = called(call(OWN, "get_weather", ROME), **{field: "THOUGHTS"})
    assert "THOUGHTS" in tokenizer_of(name).render([user(), thinking, result(OWN)], tools=[WEATHER])
    nonsense = called(call(OWN, "get_weather", ROME), **{field: [{"type": "text"}]})
    assert "RESULT" in tokenizer_of(name).render([user(), nonsense, result(OWN)], tools=[WEATHER])


def test_a_developer_is_one_only_where_the_template_knows_the_role() -> None:
    known = {name for name in NAMES if tokenizer_of(name).template.traits(False).developer}
    assert "gemma4" in known
    assert not known & {"hermes", "mistral", "llama3_json"}
    assert known & set(PUBLISHED) == set(PUBLISHED) & {"openai-gpt-oss-120b", "google-gemma-4-31B-it"}


@pytest.mark.parametrize("name", [published("CohereForAI-c4ai-command-r-plus-tool_use"), "only tools"])
def test_what_a_template_takes_does_not_hang_on_the_first_conversation_that_it_sees(name: str) -> None:
    described = function("f", parameters={"properties": {"city": {"type": "string"}}})
    tokenizer = tokenizer_with(ONLY_TOOLS if name == "only tools" else source(name), OWN_FORM)
    with pytest.raises(TemplateError):
        tokenizer.render([user()])
    assert tokenizer.render([user()], tools=[described])


ONLY_TOOLS = (
    "{% for tool in tools %}{{ tool.function.parameters.properties | length }}{% endfor %}{{ messages[0].content }}"
)
LOOP = "{% for m in messages %}{{ m.role }}:{{ m.content }}"
END = "{% endfor %}"
CALL = "{% for c in m.tool_calls or [] %}CALL{% endfor %}".replace
TEXT = LOOP + CALL("CALL", "{{ '<' + c.function.name + '|' + c.function.arguments + '>' }}") + END
BARE_TEXT = LOOP + CALL("CALL", "<{{ c.function.name }}|{{ c.function.arguments }}>") + END
ITEMS = (
    LOOP
    + CALL("CALL", "<{{ c.function.name }}{% for k, v in c.function.arguments.items() %}|{{ k }}={{ v }}{% endfor %}>")
    + END
)
KIMI = (
    LOOP
    + CALL("CALL", "<|tool_calls_section_begin|>{{ c.id }}{{ c.function.arguments | tojson }}")
    + "{{ m.tool_call_id }}"
    + END
)


@pytest.mark.parametrize("template", [TEXT, BARE_TEXT])
def test_a_template_that_wants_text_gets_arguments_as_the_client_wrote_them(template: str) -> None:
    tokenizer = tokenizer_with(template, OWN_FORM)
    for text in ('{"city":  "Rome"}', '{"city": "Ro', "[1]", "Rome"):
        assert f"<get_weather|{text}>" in tokenizer.render(arguments(text))
    for text in ("", "null", "[]"):
        assert "<get_weather|{}>" in tokenizer.render(arguments(text))


def test_a_template_that_wants_objects_gets_one_whatever_was_written() -> None:
    tokenizer = tokenizer_with(ITEMS, OWN_FORM)
    wanted = {
        ROME: "|city=Rome",
        '{"city": "Ro': "|city=Ro",
        "[1]": "|arguments=[1]",
        "Rome": "|arguments=Rome",
        "": "",
        "null": "",
        '"{\\"city\\": \\"Rome\\"}"': "|city=Rome",
    }
    for text, shown in wanted.items():
        assert f"<get_weather{shown}>" in tokenizer.render(arguments(text))


def test_a_renderer_of_mlx_lm_gets_the_json_that_it_reads() -> None:
    bare = wrapper_with(None)._tokenizer
    tokenizer = Tokenizer(TokenizerWrapper(bare, chat_template=deepseek_v32.apply_chat_template), 2048)
    for text in (ROME, '{"city": "Rome', '"{\\"city\\": \\"Rome\\"}"'):
        prompt = tokenizer.render(arguments(text), tools=BARE)
        assert 'parameter name="city" string="true">Rome<' in prompt


def test_a_form_that_the_first_conversations_did_not_show_is_tried_before_a_refusal() -> None:
    later = "{{ c.function.arguments | tojson if messages | length < 5 else 'text: ' + c.function.arguments }}"
    tokenizer = tokenizer_with(LOOP + CALL("CALL", later) + END, OWN_FORM)
    assert tokenizer.template.traits(False).objects
    assert f"text: {ROME}" in tokenizer.render([*arguments(ROME), said(), user()])


def test_kimi_gets_ids_counted_over_the_conversation() -> None:
    tokenizer = tokenizer_with(KIMI)
    prompt = tokenizer.render([*CALLS["two calls"], said(), *round_trip("call_x")])
    for number in range(3):
        assert prompt.count(f"functions.get_weather:{number}") == 2
    assert tokenizer.call_ids(CALLS["two calls"]).new(0, "f") == "functions.f:2"


@pytest.mark.parametrize(
    "expression",
    [
        "1 // 0",
        "[][0].a",
        "'a' * 10 ** 30",
        "10.0 ** 400",
        "'\ud83d'.encode('utf-8')",
        "''.__class__.__mro__",
        "1 + ''",
        "namespace(a=1).c.d",
        "range(10 ** 9)",
        "raise_exception('No. ' * 999)",
        "'%d' | format('x')",
        "messages | no_such_filter",
    ],
)
def test_whatever_a_template_raises_is_a_refusal_of_some_hundred_characters(expression: str) -> None:
    with pytest.raises(TemplateError, match="refuses these messages") as caught:
        tokenizer_with("{{ " + expression + " }}").render([user()])
    assert len(str(caught.value)) < LONGEST_REASON + 100


def test_a_template_that_calls_itself_for_ever_is_a_refusal() -> None:
    with pytest.raises(TemplateError, match="RecursionError"):
        tokenizer_with("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").render([user()])


def test_a_model_without_a_template_is_a_refusal() -> None:
    with pytest.raises(TemplateError, match="/v1/completions"):
        Tokenizer(wrapper_with(None), 2048).render([user()])


def test_of_several_templates_the_one_for_tools_is_found_out_by_itself() -> None:
    tokenizer = tokenizer_with({"default": ITEMS, "tool_use": TEXT}, OWN_FORM)
    assert "<get_weather|city=Rome>" in tokenizer.render(arguments(ROME))
    assert f"<get_weather|{ROME}>" in tokenizer.render(arguments(ROME), tools=[WEATHER])
    quoted = tokenizer_with({"default": "x", "tool_use": 'ipython "parameters" tools'})
    assert quoted.chat_format.tools is not None
    assert quoted.chat_format.tools.name == "llama3_json"
