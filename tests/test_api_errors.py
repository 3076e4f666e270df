"""Bad input is refused by name, in OpenAI's shape, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from support.servers import RunningServer

from parallm_openai.settings import ServerSettings

CHAT: dict[str, Any] = {"model": "parallm-demo", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "parallm-demo", "prompt": "Hi"}


def check(response: httpx.Response, status: int, param: str | None, code: str | None = None) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return str(error["message"])


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat", {"temperature": 2.1}, "temperature"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"top_p": -0.1}, "top_p"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"presence_penalty": 3}, "presence_penalty"),
        ("chat", {"logit_bias": {"99999999": 1}}, "logit_bias"),
        ("chat", {"logit_bias": {"x": 1}}, "logit_bias"),
        ("chat", {"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ("chat", {"stop_token_ids": [-1]}, "stop_token_ids"),
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("chat", {"max_tokens": 0}, "max_tokens"),
        ("chat", {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat", {"messages": "Hi"}, "messages"),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("chat", {"audio": {"voice": "x"}}, "audio"),
        ("text", {"prompt": []}, "prompt"),
        ("text", {"prompt": [999999]}, "prompt"),
        ("text", {"prompt": [[1], [-5]]}, "prompt[1]"),
        ("text", {"prompt": [1.5]}, "prompt"),
        ("text", {"logprobs": 21}, "logprobs"),
        ("text", {"best_of": 1, "n": 2}, "best_of"),
        ("text", {"best_of": 2, "stream": True}, "best_of"),
        ("text", {"suffix": "end"}, "suffix"),
        ("text", {"max_tokens": 0}, "max_tokens"),
        ("text", {"min_p": 2}, "min_p"),
        ("text", {"repetition_penalty": 0}, "repetition_penalty"),
        ("text", {"seed": 2**64}, "seed"),
    ],
)
def test_a_bad_value_is_refused_by_name(server: RunningServer, path: str, change: dict[str, Any], param: str) -> None:
    url, body = ("/v1/chat/completions", CHAT) if path == "chat" else ("/v1/completions", TEXT)
    with server.client as client:
        for stream in (False, True) if "stream_options" not in change else (False,):
            response = client.post(url, json={**body, "stream": stream, **change})
            check(response, 400, param)


def test_a_missing_field_is_named(server: RunningServer) -> None:
    with server.client as client:
        response = client.post("/v1/chat/completions", json={"model": "parallm-demo"})
        check(response, 400, "messages", "missing_required_parameter")


def test_an_unknown_model_is_not_found(server: RunningServer) -> None:
    with server.client as client:
        check(client.post("/v1/completions", json=TEXT | {"model": "gpt-9"}), 404, "model", "model_not_found")
        check(client.get("/v1/models/gpt-9"), 404, "model", "model_not_found")


def test_a_prompt_that_does_not_fit_says_by_how_much(server: RunningServer) -> None:
    limit = server.engine.context_length
    with server.client as client:
        for url, body in (
            ("/v1/completions", TEXT | {"prompt": [5] * 100, "max_tokens": limit}),
            ("/v1/completions", TEXT | {"prompt": [5] * limit}),
            ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "word " * limit}]}),
        ):
            message = client.post(url, json=body).json()["error"]["message"]
            response = client.post(url, json=body | {"stream": True})
            check(response, 400, "messages" if "chat" in url else "prompt", "context_length_exceeded")
            assert str(limit) in message


def test_malformed_bodies_and_unknown_paths_have_the_same_shape(server: RunningServer) -> None:
    with server.client as client:
        as_a_form = client.post(
            "/v1/completions", content=b"{}", headers={"content-type": "application/x-www-form-urlencoded"}
        )
        assert "Content-Type: application/json" in check(as_a_form, 400, None, "invalid_content_type")
        check(client.post("/v1/completions", content=b"{", headers={"content-type": "application/json"}), 400, None)
        check(client.get("/v1/nothing"), 404, None)
        check(client.get("/v1/completions"), 405, None)


def test_a_template_that_refuses_is_a_bad_request(server: RunningServer) -> None:
    with server.client as client:
        body = CHAT | {"chat_template_kwargs": {"messages": 3}}
        assert client.post("/v1/chat/completions", json=body).status_code == 400


def test_every_answer_has_an_id_and_a_duration(server: RunningServer) -> None:
    with server.client as client:
        own = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert own.headers["x-request-id"] == "mine"
        assert client.get("/nowhere").headers["x-request-id"].startswith("req_")
        assert int(own.headers["openai-processing-ms"]) >= 0


def test_keys_body_limit_and_origins(start_server: Callable[..., RunningServer]) -> None:
    settings = ServerSettings(
        api_keys=("first", "second"),
        max_body_size=4096,
        cors_origins=("http://page.example",),
        served_model_names=("alias",),
        graceful_timeout=1,
    )
    server = start_server(settings=settings)
    with server.client as client:
        assert client.get("/health").status_code == 200
        check(client.get("/v1/models"), 401, None, "invalid_api_key")
        check(client.get("/v1/models", headers={"Authorization": "Bearer third"}), 401, None, "invalid_api_key")
        key = {"Authorization": "Bearer second"}
        assert [m["id"] for m in client.get("/v1/models", headers=key).json()["data"]] == ["alias", "parallm-demo"]
        assert client.post("/v1/completions", json=TEXT | {"model": "alias"}, headers=key).status_code == 200
        large = TEXT | {"prompt": "x" * 5000}
        check(client.post("/v1/completions", json=large, headers=key), 413, None)
        pieces = (b'{"model": "', b"x" * 5000, b'"}')
        unsized = client.post(
            "/v1/completions", content=iter(pieces), headers=key | {"content-type": "application/json"}
        )
        check(unsized, 413, None)
        preflight = client.options(
            "/v1/chat/completions",
            headers={"Origin": "http://page.example", "Access-Control-Request-Method": "POST"},
        )
        assert preflight.headers["access-control-allow-origin"] == "http://page.example"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_a_full_queue_is_a_429_with_retry_after(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(max_batch_size=1, max_queue=0)
    with server.client as client:
        first = client.build_request(
            "POST", "/v1/completions", json=TEXT | {"max_tokens": 4000, "ignore_eos": True, "stream": True}
        )
        running = client.send(first, stream=True)
        refused = client.post("/v1/completions", json=TEXT)
        check(refused, 429, None, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        check(client.post("/v1/completions", json=TEXT | {"stream": True}), 429, None)
        running.close()
        server.wait_until_idle()
        assert client.post("/v1/completions", json=TEXT).status_code == 200


def test_an_engine_failure_is_a_500_that_is_not_retried(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    core = server.engine._engine.core
    monkeypatch.setattr(core.target, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with server.client as client:
        response = client.post("/v1/completions", json=TEXT)
        assert "out of memory" in check(response, 500, None)
        assert response.headers["x-should-retry"] == "false"
    sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with pytest.raises(openai.APIError, match="out of memory"):
        list(sdk.completions.create(**TEXT, stream=True))
    monkeypatch.undo()
    assert sdk.completions.create(**TEXT).choices[0].text is not None
