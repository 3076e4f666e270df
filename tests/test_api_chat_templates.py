"""Over HTTP: conversations go on whatever the template, and nothing that a client sends keeps a template busy."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from support.chat_templates import EACH, NAMES, call, function, published, source, tokenizer_with, wrapper_with
from support.servers import RunningServer, demo_target, running_server

from parallm_openai.api.chat_answer import ChatChoice
from parallm_openai.engine.request import FinishReason
from parallm_openai.settings import ServerSettings
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning
from parallm_openai.text.output import OutputDelta

WEATHER = function(
    "get_weather",
    description="Get the current weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
# A quarter of an hour of loops, were they let.
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
PICKY = "{% if 'loop' in messages[0].content %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"


def chat(server: RunningServer, path: str = "", **body: Any) -> httpx.Response:
    defaults = {"model": server.model.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with server.client as client:
        return client.post(f"/v1/chat/completions{path}", json=defaults | body)


def error(response: httpx.Response, param: str) -> str:
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    return str(response.json()["error"]["message"])


def with_template(template: str) -> Any:
    return replace(demo_target(), tokenizer=wrapper_with(template))


def answered(tokenizer: Any, messages: list[dict[str, Any]], *events: Event) -> dict[str, Any]:
    """This server's own message for an answer that said so."""
    ids = tokenizer.call_ids(messages)
    named = [
        replace(each, id=ids.new(each.index, each.name)) if isinstance(each, CallStart) else each for each in events
    ]
    choice = ChatChoice(tokenizer, logprobs=False, legacy=False)
    choice.read(OutputDelta((*named, Finish(FinishReason.STOP))))
    return choice.message()


CALL: list[Event] = [CallStart(0, "get_weather"), CallArguments(0, '{"city": "Rome"}')]
SPOKEN: dict[str, list[Event]] = {
    "a call": CALL,
    "two calls": [*CALL, CallStart(1, "get_weather"), CallArguments(1, '{"city": "Oslo"}')],
    "all at once": [Reasoning("I think."), Content("I look."), *CALL],
    "thoughts and a call": [Reasoning("I think."), *CALL],
    "cut in its arguments": [CallStart(0, "get_weather"), CallArguments(0, '{"city": "Ro')],
    "cut before its arguments": [CallStart(0, "get_weather")],
}
# Kimi's is the version that transformers' sandbox refuses; Command R+'s cannot do without tools of its own.
WITHOUT = {"Kimi-K2-Thinking", "CohereForAI-c4ai-command-r-plus-tool_use"}


@pytest.mark.parametrize("name", [each for name, each in zip(NAMES, EACH, strict=True) if name not in WITHOUT])
@pytest.mark.parametrize("kind", SPOKEN)
def test_the_turns_after_this_servers_own_answers_are_rendered(name: str, kind: str) -> None:
    tokenizer = tokenizer_with(source(name))
    messages: list[dict[str, Any]] = [QUESTION]
    made: set[str] = set()
    for _ in range(2):
        messages.append(answered(tokenizer, messages, *SPOKEN[kind]))
        ids = [each["id"] for each in messages[-1]["tool_calls"]]
        assert made.isdisjoint(ids)
        made.update(ids)
        messages += [{"role": "tool", "tool_call_id": id, "content": "It rains."} for id in ids]
        assert tokenizer.render(messages, tools=[WEATHER])
        messages += [{"role": "assistant", "content": "It rains."}, QUESTION]
        assert tokenizer.render(messages, tools=[WEATHER])


@pytest.mark.parametrize(
    "name",
    ["mistral", *map(published, ("Mistral-Small-3.2-24B-Instruct-2506", "mistralai-Mistral-Nemo-Instruct-2407"))],
)
def test_a_conversation_with_ids_from_elsewhere_goes_on(start_server: Callable[..., RunningServer], name: str) -> None:
    server = start_server(model=with_template(source(name)))
    cut = call("call_0123456789abcdef01234567", "get_weather", '{"city": "Par')
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [cut], "annotations": [], "reasoning": "Hm."},
        {"role": "tool", "tool_call_id": "call_0123456789abcdef01234567", "content": "It rains."},
    ]
    assert chat(server, messages=messages, tools=[WEATHER]).status_code == 200
    tokenizer = tokenizer_with(source(name))
    assert len(tokenizer.call_ids([]).new(0, "f")) == 9


def test_a_call_of_the_model_is_answered_in_the_same_prompt(server: RunningServer) -> None:
    asked: dict[str, Any] = {"messages": [QUESTION], "tools": [WEATHER], "temperature": 0, "max_tokens": 120}
    message = chat(server, **asked).json()["choices"][0]["message"]
    [made] = message["tool_calls"]
    messages = [QUESTION, message, {"role": "tool", "tool_call_id": made["id"], "content": "21"}]
    first, second = (chat(server, "/render", messages=sent, tools=[WEATHER]).json() for sent in ([QUESTION], messages))
    assert second["prompt"].startswith(first["prompt"])


RESERVED = (
    "chat_template tokenize return_dict add_generation_prompt continue_final_message tools documents conversation "
    "conversations messages max_length return_tensors tokenizer_kwargs padding truncation return_assistant_tokens_mask "
    "bos_token eos_token self namespace raise_exception"
)


@pytest.mark.parametrize("key", RESERVED.split())
def test_what_is_no_template_variable_is_refused_by_its_name(server: RunningServer, key: str) -> None:
    for path in ("", "/render"):
        for value in ("{{ 'a' * 50000000 }}", None, True):
            field = f"chat_template_kwargs.{key}"
            assert field in error(chat(server, path, chat_template_kwargs={key: value}), field)
    with server.client as client:
        body = {"model": server.model.name, "input": "Hello", "chat_template_kwargs": {key: 1}}
        error(client.post("/v1/responses", json=body), f"chat_template_kwargs.{key}")


def test_template_variables_reach_the_template(start_server: Callable[..., RunningServer]) -> None:
    shown = "{{ enable_thinking }} {{ reasoning_effort }} {{ builtin_tools | tojson }} {{ messages[0].content }}"
    server = start_server(model=with_template(shown))
    options = {"enable_thinking": True, "reasoning_effort": "high", "builtin_tools": [{"a": None}], "anything": 1.5}
    rendered = chat(server, "/render", chat_template_kwargs=options).json()["prompt"]
    assert rendered == 'True high [{"a": null}] Hello'


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_values_that_a_template_cannot_take_are_a_400(server: RunningServer) -> None:
    assert "nested" in error(chat(server, "/render", chat_template_kwargs={"x": nested(600)}), "chat_template_kwargs")


STRICT = """
{%- for message in messages %}
    {%- if message.role not in ("user", "assistant") %}
        {{- raise_exception("This model knows no " + message.role + " messages!") }}
    {%- endif %}
    {{- message.role + ": " + message.content + "\\n" }}
{%- endfor %}"""


def test_what_a_template_refuses_is_a_400_in_its_own_words(start_server: Callable[..., RunningServer]) -> None:
    # A strict server does not move instructions to the user's messages.
    server = start_server(model=with_template(STRICT), settings=ServerSettings(strict=True, graceful_timeout=2))
    ruled = [{"role": "system", "content": "RULES"}, QUESTION]
    words = "This model knows no system messages!"
    for path, more in (("", {}), ("", {"stream": True}), ("", {"n": 2}), ("/render", {})):
        assert words in error(chat(server, path, messages=ruled, **more), "messages")
    with server.client as client:
        body = {"model": server.model.name, "input": "Hello", "instructions": "RULES", "max_output_tokens": 16}
        assert words in error(client.post("/v1/responses", json=body), "input")
        assert client.post("/v1/responses", json=body | {"instructions": None}).status_code == 200
    assert chat(server, messages=[QUESTION]).status_code == 200


def test_a_template_that_does_not_end_is_a_400(start_server: Callable[..., RunningServer]) -> None:
    settings = ServerSettings(template_timeout=0.5, graceful_timeout=1)
    server = start_server(model=with_template(PICKY), settings=settings)
    for path in ("", "/render"):
        assert "0.5 seconds" in error(chat(server, path, messages=[{"role": "user", "content": "loop"}]), "messages")
    assert chat(server).status_code == 200


@pytest.mark.server
def test_templates_that_do_not_end_keep_no_one_waiting_nor_the_server_from_its_end() -> None:
    settings = ServerSettings(template_timeout=600, graceful_timeout=1)
    with ThreadPoolExecutor(3) as pool:
        with running_server(model=with_template(PICKY), settings=settings) as server:
            stuck = [pool.submit(chat, server, messages=[{"role": "user", "content": "loop"}]) for _ in range(3)]
            while sum(thread.name == "timed-work" for thread in threading.enumerate()) < 3:
                time.sleep(0.01)
            assert chat(server, response_format={"type": "json_object"}).status_code == 200
            assert not any(request.done() for request in stuck)
        for request in stuck:
            assert request.result().status_code == 503


def test_more_messages_than_the_context_has_tokens_are_not_even_rendered(server: RunningServer) -> None:
    many = [{"role": "user", "content": ""}] * (server.engine.context_length + 1)
    response = chat(server, messages=many)
    error(response, "messages")
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_text_that_no_tokens_could_shorten_enough_is_not_even_encoded(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(model=with_template("{{ messages[0].content * 9999 }}"))
    response = chat(server, messages=[{"role": "user", "content": "Hello " * 999}])
    assert "characters" in error(response, "messages")
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "reasoning_content": "I had no time to"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": "", "tool_calls": [], "function_call": None},
        {"role": "assistant", "content": "Yes.", "tool_calls": None, "audio": None},
    ],
)
def test_an_answer_without_calls_is_sent_back_as_it_came(server: RunningServer, message: dict[str, Any]) -> None:
    assert chat(server, messages=[QUESTION, message, QUESTION]).status_code == 200


def test_what_clients_keep_beside_a_call_is_nothing_to_the_model(server: RunningServer) -> None:
    bare = call("x", "get_weather", "{}")
    kept = {**bare, "index": 0, "function": {**bare["function"], "parsed_arguments": {}}}
    first, second = (
        chat(server, "/render", messages=[QUESTION, {"role": "assistant", "content": None, "tool_calls": [each]}])
        for each in (bare, kept)
    )
    assert first.status_code == 200
    assert first.json() == second.json()


def test_an_answer_of_nothing_at_all_is_refused(server: RunningServer) -> None:
    empty: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    error(chat(server, messages=[QUESTION, empty, QUESTION]), "messages[1].content")


def test_an_old_call_at_the_end_is_not_gone_on_with(server: RunningServer) -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}}
    new = {"role": "assistant", "content": None, "tool_calls": [call("x", "get_weather", "{}")]}
    assert (
        chat(server, "/render", messages=[QUESTION, old]).json()
        == chat(server, "/render", messages=[QUESTION, new]).json()
    )


def test_halves_of_surrogate_pairs_are_served(server: RunningServer) -> None:
    cut = call("x", "get_weather", '{"city": "\\ud83d')
    whole = call("y", "get_weather", '{"city": "\\ud83d\\ude00", "half": "\\ude00"}')
    messages = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [cut, whole]}]
    prompt = chat(server, "/render", messages=messages).json()["prompt"]
    assert "😀" in prompt
    assert "\ufffd" in prompt
    assert chat(server, messages=messages).status_code == 200


def test_the_sdk_streams_ids_that_come_back(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    tools: Any = [WEATHER]
    messages: Any = [QUESTION]
    ids: set[str | None] = {None}
    for _ in range(2):
        stream = client.chat.completions.create(
            model=server.model.name,
            messages=messages,
            tools=tools,
            tool_choice="required",
            stream=True,
            max_tokens=99,
            temperature=0,
        )
        pieces = [piece for chunk in stream for choice in chunk.choices for piece in choice.delta.tool_calls or []]
        text = "".join(piece.function.arguments or "" for piece in pieces if piece.function is not None)
        assert pieces[0].id not in ids, "an id is given once"
        ids.add(pieces[0].id)
        assert isinstance(json.loads(text), dict)
        made = call(pieces[0].id, "get_weather", text)
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "tool_call_id": made["id"], "content": "It rains."},
        ]
