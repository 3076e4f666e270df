"""Tokens and templates can be looked at without generating anything."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from support.servers import RunningServer, demo_target

from parallm_openai.text.tokenizer import Tokenizer


def post(server: RunningServer, path: str, body: dict[str, Any]) -> Any:
    with server.client as client:
        return client.post(path, json=body)


def test_detokenize_undoes_tokenize(server: RunningServer) -> None:
    text = "The capital of Österreich is Wien. 🙂"
    tokens = post(server, "/tokenize", {"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == server.engine.context_length
    assert post(server, "/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}
    assert post(server, "/detokenize", {"tokens": []}).json() == {"prompt": ""}
    assert post(server, "/detokenize", {"tokens": [10**6]}).status_code == 400


def test_a_client_can_render_a_chat_by_what_it_is_told_of_the_tokenizer(server: RunningServer) -> None:
    with server.client as client:
        told = client.get("/tokenizer_info").json()
    assert told["model_max_length"] == server.engine.context_length
    assert [told[mark] for mark in ("bos_token", "eos_token", "unk_token")] == [None, "<|im_end|>", None]
    messages = [{"role": "user", "content": "Hello!"}]
    shown = post(server, "/v1/chat/completions/render", {"model": server.model.name, "messages": messages}).json()
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(told["chat_template"])
    assert template.render(messages=messages, add_generation_prompt=True) == shown["prompt"]


def test_of_several_templates_the_default_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = demo_target().tokenizer
    monkeypatch.setattr(wrapper._tokenizer, "chat_template", {"default": "plain", "tool_use": "other"})
    assert Tokenizer(wrapper, demo_target().vocab_size).description["chat_template"] == "plain"


def test_a_rendered_chat_is_the_prompt_that_it_would_be_answered_for(server: RunningServer) -> None:
    body = {"model": server.model.name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
    shown = post(server, "/v1/chat/completions/render", body).json()
    assert "Hello!" in shown["prompt"]
    assert shown["prompt"].endswith("assistant\n")
    answer = post(server, "/v1/chat/completions", body).json()
    assert shown["count"] == answer["usage"]["prompt_tokens"]
    again = post(server, "/v1/completions", {"model": server.model.name, "prompt": shown["tokens"], "max_tokens": 1})
    assert again.json()["usage"]["prompt_tokens"] == shown["count"]


def test_embeddings_are_a_404_that_says_why(server: RunningServer) -> None:
    answer = post(server, "/v1/embeddings", {"model": server.model.name, "input": "x"})
    assert answer.status_code == 404
    assert "embeddings" in answer.json()["error"]["message"]


def test_a_suffix_is_refused_where_the_model_cannot_fill_in(server: RunningServer) -> None:
    body = {"model": server.model.name, "prompt": "def f(", "suffix": "return x", "max_tokens": 4}
    answer = post(server, "/v1/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"


def test_a_suffix_is_put_into_the_models_own_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(demo_target().tokenizer, demo_target().vocab_size)
    ids = {"<fim_prefix>": 1, "<fim_suffix>": 2, "<fim_middle>": 3}
    monkeypatch.setattr(tokenizer, "token_id", ids.get)
    before, after = tokenizer.encode("def f("), tokenizer.encode("return x")
    assert tokenizer.infill("def f(", "return x") == [1, *before, 2, *after, 3]
