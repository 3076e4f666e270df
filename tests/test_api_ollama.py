"""Ollama's routes over HTTP: streamed or whole, the answer is the same; errors have Ollama's shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chat_requests import TIMER, WEATHER
from support.servers import RunningServer

from parallm_openai.settings import ServerSettings

GREEDY = {"temperature": 0}
SUM = "What is 123 + 345?"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["n"]}
TIMES = ("created_at", "total_duration", "prompt_eval_duration", "eval_duration")


def chat(question: str, **more: Any) -> dict[str, Any]:
    body = {"model": "parallm-demo", "messages": [{"role": "user", "content": question}], "options": GREEDY}
    return {**body, **more}


def generate(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "parallm-demo", "prompt": prompt, "options": GREEDY, **more}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("chat", chat("Hello!")),
    "a call": ("chat", chat("What is the weather in Paris?", tools=[WEATHER])),
    "two calls": ("chat", chat("What is the weather in Rome and Paris?", tools=[WEATHER, TIMER])),
    "thoughts": ("chat", chat(SUM, think=True)),
    "thoughts by effort": ("chat", chat(SUM, think="low")),
    "cut short": ("chat", chat("Tell me a story.", options={**GREEDY, "num_predict": 3})),
    "a stop string": ("chat", chat("What is the capital of France?", options={**GREEDY, "stop": ["France"]})),
    "a format": ("chat", chat("Hello!", format=SCHEMA)),
    "a prompt": ("generate", generate("What is the capital of France?", system="Be brief.")),
    "a prompt with thoughts": ("generate", generate(SUM, think=True)),
    "a raw prompt": ("generate", generate("Once upon a time", raw=True, options={**GREEDY, "num_predict": 9})),
}


def whole(server: RunningServer, route: str, body: dict[str, Any]) -> dict[str, Any]:
    with server.client as client:
        answer = client.post(f"/api/{route}", json={**body, "stream": False})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def lines_of(server: RunningServer, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with server.client as client:
        answer = client.post(f"/api/{route}", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def put_together(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer that the lines tell of."""
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    told: dict[str, Any] = {}
    for line in lines:
        for name, value in line.get("message", line).items():
            if name in ("content", "response", "thinking", "tool_calls"):
                told[name] = told[name] + value if name in told else value
    if "message" in lines[-1]:
        return {**lines[-1], "message": {"role": "assistant", **told}}
    return {**lines[-1], **told}


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    for name in TIMES:
        assert answer.pop(name)
    for call in answer.get("message", {}).get("tool_calls", []):
        assert call.pop("id")
    return answer


@pytest.mark.parametrize("case", CASES)
def test_the_lines_put_together_are_the_answer_as_a_whole(server: RunningServer, case: str) -> None:
    route, body = CASES[case]
    assert comparable(put_together(lines_of(server, route, body))) == comparable(whole(server, route, body))


@pytest.mark.slow
def test_the_cases_show_what_they_are_named_for(server: RunningServer) -> None:
    answers = {case: whole(server, *CASES[case]) for case in CASES}
    assert answers["text"]["message"]["content"]
    [call] = answers["a call"]["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    assert [call["function"]["index"] for call in answers["two calls"]["message"]["tool_calls"]] == [0, 1]
    assert answers["thoughts"]["message"]["thinking"]
    assert answers["a prompt with thoughts"]["thinking"]
    assert (answers["cut short"]["done_reason"], answers["cut short"]["eval_count"]) == ("length", 3)
    assert answers["a stop string"]["message"]["content"] == "The capital of "
    assert set(json.loads(answers["a format"]["message"]["content"])) == {"n"}
    assert "Paris" in answers["a prompt"]["response"]


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.sampled_from(["Hello!", "What is the weather in Paris?", SUM, "Tell me a story."]),
    options=st.fixed_dictionaries(
        {
            "num_predict": st.sampled_from([1, 9, 60]),
            "seed": st.integers(1, 99),
            "temperature": st.sampled_from([0, 1]),
        },
        optional={"stop": st.sampled_from([["."], "e"]), "min_p": st.just(0.1), "num_ctx": st.just(64)},
    ),
    more=st.fixed_dictionaries({}, optional={"tools": st.just([WEATHER]), "think": st.sampled_from([True, False])}),
)
def test_any_request_streams_what_it_gets_as_a_whole(
    server: RunningServer, question: str, options: dict[str, Any], more: dict[str, Any]
) -> None:
    body = chat(question, options=options, **more)
    told, message = comparable(put_together(lines_of(server, "chat", body))), comparable(whole(server, "chat", body))
    assert told == message


def test_ollamas_own_defaults_hold(server: RunningServer) -> None:
    """Ollama samples with these unless told otherwise."""
    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    answers = [
        whole(server, "chat", chat("Tell me a story.", options={"seed": 7, "num_predict": 30, **more}))
        for more in ({}, options)
    ]
    assert answers[0]["message"] == answers[1]["message"]


def test_the_answer_is_that_of_chat_completions(server: RunningServer) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]
    with server.client as client:
        answer = client.post("/v1/chat/completions", json={"messages": turns, "temperature": 0}).json()
    assert whole(server, "chat", chat("", messages=turns))["message"] == {
        "role": "assistant",
        "content": answer["choices"][0]["message"]["content"],
    }


def test_a_tool_loop_comes_to_an_answer(server: RunningServer) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    called = whole(server, "chat", chat("", messages=turns, tools=[WEATHER]))["message"]
    turns += [called, {"role": "tool", "tool_name": "get_weather", "content": '{"temperature": 21}'}]
    assert "21" in whole(server, "chat", chat("", messages=turns, tools=[WEATHER]))["message"]["content"]


@pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), ("5m", "load"), (0, "unload")])
def test_a_request_without_a_question_only_loads_the_model(server: RunningServer, keep_alive: Any, reason: str) -> None:
    bodies: dict[str, dict[str, Any]] = {"chat": {"messages": []}, "generate": {}}
    for route, body in bodies.items():
        answer = whole(server, route, {"model": "parallm-demo", "keep_alive": keep_alive, **body})
        assert (answer["done"], answer["done_reason"]) == (True, reason)


def test_bodies_are_read_whatever_their_type_is_said_to_be(server: RunningServer) -> None:
    with server.client as client:
        for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
            content = json.dumps(chat("Hi", stream=False))
            answer = client.post("/api/chat", content=content, headers={"content-type": kind})
            assert answer.json()["done"]
        assert client.post("/api/chat", content=json.dumps(chat("Hi", stream=False))).json()["done"]


@pytest.mark.parametrize("name", ["parallm-demo", "parallm-demo:latest", None])
def test_a_model_has_its_name_with_a_tag_or_without(server: RunningServer, name: str | None) -> None:
    assert whole(server, "chat", chat("Hi", model=name))["model"] == (name or "parallm-demo")
    with server.client as client:
        assert client.post("/api/show", json={"model": name}).status_code == 200


def test_clients_find_the_model_and_what_it_can_do(server: RunningServer) -> None:
    with server.client as client:
        [listed] = client.get("/api/tags").json()["models"]
        [running] = client.get("/api/ps").json()["models"]
        shown = client.post("/api/show", json={"model": listed["name"]}).json()
        assert client.get("/api/version").json()["version"]
    assert listed["name"] == "parallm-demo:latest"
    assert listed.items() <= running.items()
    assert running["context_length"] == server.engine.context_length
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == server.engine.context_length


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])


@pytest.mark.parametrize(
    ("route", "body", "status", "words"),
    [
        ("chat", chat("Hi", options={"temperature": 9}), 400, "options.temperature"),
        ("chat", chat("Hi", format="yaml"), 400, "format"),
        ("chat", chat("Hi", format={"not": {}}), 400, "format"),
        ("chat", chat("Hi", think="a lot"), 400, "think"),
        ("chat", chat("Hi", messages=[{"role": "user", "content": "x", "images": ["AAAA"]}]), 400, "text only"),
        ("chat", chat("Hi", messages=[{"role": "robot", "content": "x"}]), 400, "messages[0].role"),
        ("chat", chat("Hi", tools=[{"type": "function", "function": {"name": "f", "parameters": 3}}]), 400, "tools[0]"),
        ("chat", chat("word " * 9000), 400, "context length"),
        ("chat", chat("Hi", model="llama3"), 404, "parallm-demo"),
        ("generate", generate("Hi", images=["AAAA"]), 400, "text only"),
        ("generate", generate("Hi", template="{{ .Prompt }}"), 400, "template"),
        ("generate", generate("Hi", suffix="end"), 400, "suffix"),
        ("show", {"model": "llama3"}, 404, "parallm-demo"),
        ("pull", {"model": "llama3"}, 400, "started with"),
        ("create", {"model": "mine", "from": "llama3"}, 400, "started with"),
        ("copy", {}, 400, "started with"),
        ("push", {}, 400, "started with"),
        ("delete", {}, 400, "started with"),
        ("embed", {"model": "parallm-demo", "input": "x"}, 404, "embedding"),
        ("nothing", {}, 404, "/api/nothing"),
    ],
)
def test_what_cannot_be_done_is_said_in_ollamas_shape(
    server: RunningServer, route: str, body: dict[str, Any], status: int, words: str
) -> None:
    with server.client as client:
        assert words in error(client.post(f"/api/{route}", json=body), status)


def test_what_it_does_not_know_is_named_in_a_header(server: RunningServer) -> None:
    body = chat("Hi", options={**GREEDY, "mirostat": 1}, logprobs=True, tools=[{"type": "web_search"}])
    with server.client as client:
        ignored = client.post("/api/chat", json=body).headers["x-parallm-ignored"]
        assert set(ignored.split(", ")) == {"options.mirostat", "logprobs", "tools[0]"}
        answer = client.post("/api/generate", json=generate("Hi", context=[1, 2]))
        assert answer.headers["x-parallm-ignored"] == "context"


WRONG: list[Any] = [3, "x", True, [], [[]], [3], {}, {"type": 3}, [{"role": "user"}], -1.5]


@pytest.mark.parametrize("route", ["chat", "generate", "show"])
@pytest.mark.parametrize("body", [None, 3, "x", [], [{}]])
def test_a_body_of_another_type_is_a_bad_request(server: RunningServer, route: str, body: Any) -> None:
    with server.client as client:
        error(client.post(f"/api/{route}", content=json.dumps(body)), 400)


@pytest.mark.parametrize("field", "model messages tools options format think stream".split())
def test_wrong_types_are_bad_requests_or_mean_something(server: RunningServer, field: str) -> None:
    refused = 0
    with server.client as client:
        for wrong in WRONG:
            answer = client.post("/api/chat", json=chat("Hi", options={"num_predict": 1}) | {field: wrong})
            if answer.status_code == 200:
                assert "done" in answer.text
            else:
                refused += 1
                error(answer, 404 if answer.status_code == 404 else 400)
    assert refused >= 4


@pytest.mark.parametrize("option", "temperature top_k top_p min_p seed stop num_predict repeat_penalty".split())
def test_options_of_the_wrong_type_are_bad_requests(server: RunningServer, option: str) -> None:
    with server.client as client:
        wrongs: list[Any] = [{}, [[]], "hot" if option != "stop" else 3, True]
        for wrong in wrongs:
            answer = client.post("/api/chat", json=chat("Hi", options={option: wrong}))
            assert f"options.{option}" in error(answer, 400)


def test_keys_are_asked_for(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(api_keys=("right",), graceful_timeout=1))
    with server.client as client:
        error(client.get("/api/tags"), 401)
        assert client.get("/api/tags", headers={"Authorization": "Bearer right"}).status_code == 200


def test_an_engine_failure_is_a_line(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    core = server.engine._engine.core
    monkeypatch.setattr(core.target, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    [line] = lines_of(server, "chat", chat("Hi"))
    assert "out of memory" in line["error"]
    with server.client as client:
        assert "out of memory" in error(client.post("/api/chat", json=chat("Hi", stream=False)), 500)


def test_a_client_that_leaves_ends_its_rows(server: RunningServer) -> None:
    endless = chat("Tell me a story.", options={"temperature": 1.5, "num_predict": 5000, "top_k": 0})
    with server.client as client:
        request = client.build_request(
            "POST", "/api/chat", json={**endless, "format": {"type": "array", "minItems": 900}}
        )
        running = client.send(request, stream=True)
        next(running.iter_lines())
        running.close()
    server.wait_until_idle()
