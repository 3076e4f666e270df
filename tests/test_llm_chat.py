"""`LLM.chat` on the bundled pair: the same prompts, tools, formats and errors as over HTTP, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import demo_draft, demo_target

from parallm_openai.llm import LLM, ChatResult, RequestError, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=120)
HOT = SamplingParams(temperature=1.8, seed=3, max_tokens=120)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIMER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 99}},
            "required": ["minutes"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(demo_target(), draft_model=demo_draft(), draft_length=3) as made:
        yield made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def calls_of(result: ChatResult) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in result.tool_calls]


@pytest.mark.slow
def test_an_answer_is_text_that_the_model_itself_ends(llm: LLM) -> None:
    [answer] = llm.chat([user("Hello!")], GREEDY)
    assert answer.content
    assert answer.content == answer.content.strip()
    assert "<|" not in answer.content
    assert (answer.finish_reason, answer.tool_calls, answer.reasoning) == ("stop", (), "")
    assert answer.prompt_tokens > len("Hello!") / 4
    assert answer.drafted >= answer.accepted > 0
    assert answer.as_dict()["content"] == answer.content


def test_a_chat_is_the_rendered_prompt_continued(llm: LLM) -> None:
    [answer] = llm.chat([user("Hello!")], GREEDY)
    [continued] = llm.generate(llm.tokenizer.render([user("Hello!")]), GREEDY, use_tqdm=False)
    assert (answer.content, answer.token_ids) == (continued.text, continued.token_ids)


def test_tools_are_called_if_they_help(llm: LLM) -> None:
    [called] = llm.chat([user("What is the weather in Paris?")], GREEDY, tools=[WEATHER])
    assert calls_of(called) == [("get_weather", {"city": "Paris"})]
    assert (called.content, called.finish_reason) == ("", "tool_calls")
    assert called.tool_calls[0].id.startswith("call_")
    [talked] = llm.chat([user("Hello!")], GREEDY, tools=[WEATHER])
    assert (talked.tool_calls, talked.finish_reason) == ((), "stop")
    assert talked.content


def test_a_required_call_and_a_named_one_are_made_whatever_the_question(llm: LLM) -> None:
    [required] = llm.chat([user("Hello!")], HOT, tools=[TIMER], tool_choice="required", parallel_tool_calls=False)
    [(name, arguments)] = calls_of(required)
    assert name == "set_timer"
    assert 1 <= arguments["minutes"] <= 99
    [named] = llm.chat([user("Hello!")], GREEDY, tools=[WEATHER, TIMER], tool_choice="set_timer")
    assert [name for name, _ in calls_of(named)] == ["set_timer"]


@pytest.mark.slow
def test_an_answer_follows_its_format_even_from_a_hot_model(llm: LLM) -> None:
    results = llm.chat([[user("Hello!")]] * 4, HOT, json_schema=PERSON)
    whole = [json.loads(result.content) for result in results if result.finish_reason == "stop"]
    assert whole
    assert all(person.keys() == {"name", "age"} and isinstance(person["age"], int) for person in whole)
    [matched] = llm.chat([user("Hello!")], HOT, regex="[0-9]{3}")
    assert len(matched.content) == 3
    assert matched.content.isdigit()
    [parsed] = llm.chat([user("Hello!")], HOT, grammar='start: "yes" | "no"')
    assert parsed.content in ("yes", "no")


@pytest.mark.slow
def test_conversations_are_answered_in_their_order_as_each_would_be_alone(llm: LLM) -> None:
    conversations = [
        [user("Hello!")],
        [user("What is the capital of France?")],
        [user("Hi"), {"role": "assistant", "content": "Hello!"}, user("Tell me a joke.")],
    ]
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=40) for seed in range(3)]
    together = llm.chat(conversations, params)
    alone = [llm.chat(each, own)[0] for each, own in zip(conversations, params, strict=True)]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert len({answer.content for answer in together}) == 3


def test_an_assistants_last_message_is_continued(llm: LLM) -> None:
    messages = [user("What is the capital of France?"), {"role": "assistant", "content": "The capital of"}]
    [answer] = llm.chat(messages, GREEDY)
    [anew] = llm.chat(messages, GREEDY, continue_final_message=False)
    assert "France" in answer.content
    assert answer.prompt_tokens < anew.prompt_tokens


def test_thoughts_are_kept_apart_and_within_their_budget(llm: LLM) -> None:
    options: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
    [free] = llm.chat([user("What is 3 plus 4?")], GREEDY, **options)
    assert free.reasoning
    assert free.content
    assert "think>" not in free.reasoning + free.content
    [bound] = llm.chat([user("What is 3 plus 4?")], GREEDY, thinking_budget=0, **options)
    assert not bound.reasoning


def test_a_stop_string_ends_an_answer_before_it(llm: LLM) -> None:
    [whole] = llm.chat([user("Hello!")], GREEDY)
    stop = whole.content.split()[1]
    [cut] = llm.chat([user("Hello!")], GREEDY, stop=[stop])
    assert cut.content == whole.content.partition(stop)[0]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"tools": [WEATHER], "tool_choice": "fly"}, "tool_choice", "'tool_choice' names 'fly'"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "must differ"),
        ({"json_schema": {"type": "nothing"}}, "json_schema", "Invalid value for 'json_schema'"),
        ({"regex": "(", "json_schema": PERSON}, "json_schema", "cannot be used together"),
        ({"grammar": "start: nowhere"}, "grammar", "Invalid value for 'grammar'"),
        ({"tools": [WEATHER], "regex": "a"}, "tools", "cannot be used together with tools"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "cannot be set"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_names_the_argument(
    llm: LLM, options: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(RequestError) as found:
        llm.chat([user("Hello!")], GREEDY, **options)
    assert found.value.field == field
    assert reason in str(found.value)


def test_prompts_that_cannot_be_read_are_errors_before_anything_starts(llm: LLM) -> None:
    with pytest.raises(RequestError, match="'messages' must not be empty"):
        llm.chat([[user("Hello!")], []], GREEDY)
    with pytest.raises(RequestError, match="maximum context length"):
        llm.chat([user("word " * 40_000)], GREEDY)
    with pytest.raises(RequestError, match="not a token id"):
        llm.chat([user("Hello!")], SamplingParams(logit_bias={10**6: 1.0}))
    with pytest.raises(ValueError, match="2 sampling parameters for 1 conversations"):
        llm.chat([user("Hello!")], [GREEDY, GREEDY])
    assert llm.stats()["batching_stats"]["running"] == 0


def test_no_conversations_have_no_answers(llm: LLM) -> None:
    assert llm.chat([], GREEDY) == []


@pytest.mark.parametrize(
    ("messages", "options", "field"),
    [
        ("hi", {}, "messages"),
        (["hi"], {}, "messages"),
        ([{"content": "x"}], {}, "messages[0].role"),
        ([{"role": "zz", "content": "x"}], {}, "messages[0].role"),
        ([{"role": "user", "content": None}], {}, "messages[0].content"),
        ([{"role": "user", "content": 3}], {}, "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], {}, "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "messages[0].content[0].text"),
        ([{"role": "assistant"}], {}, "messages[0].content"),
        ([{"role": "user", "content": "x"}], {"tools": [{"x": 1}]}, "tools[0]"),
        ([{"role": "user", "content": "x"}], {"tools": ["x"]}, "tools[0]"),
        ([{"role": "user", "content": "x"}], {"tool_choice": None}, "tool_choice"),
        ([{"role": "user", "content": "x"}], {"stop": [3]}, "stop"),
    ],
)
def test_what_the_model_cannot_read_is_refused_by_its_name(
    llm: LLM, messages: Any, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        llm.chat(messages, **options)
    assert refusal.value.field == field


def test_one_stop_string_need_not_be_in_a_list(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(max_tokens=20, temperature=0)
    [whole] = llm.chat(question, params)
    cut = whole.content[5:9]
    [stopped] = llm.chat(question, params, stop=cut)
    assert stopped.content == whole.content[: whole.content.index(cut)]
    assert llm.chat(question, params, stop=[cut])[0].content == stopped.content
