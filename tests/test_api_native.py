"""The native routes."""

from __future__ import annotations

import json
from collections.abc import Callable

from support.servers import RunningServer

from parallm_openai.settings import EngineConfig


def test_generate_answers_with_text_usage_latency_and_what_was_speculated(server: RunningServer) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "top_p": 0.9}
    with server.client as client, server.configured(draft_length=3):
        answer = client.post("/v1/generate", json=body | {"use_speculative": True}).json()
        plain = client.post("/v1/generate", json=body | {"use_speculative": False}).json()
    assert answer["text"] == plain["text"]
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] <= 40
    assert answer["latency"] > 0
    assert answer["speculative"]["drafted"] >= answer["speculative"]["accepted"] > 0
    assert "speculative" not in plain


def test_generate_streams_the_same_text(server: RunningServer) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 25, "seed": 4}
    with server.client as client:
        whole = client.post("/v1/generate", json=body).json()
        lines = client.post("/v1/generate", json=body | {"stream": True}).text.splitlines()
    frames = [line.removeprefix("data: ") for line in lines if line]
    assert frames[-1] == "[DONE]"
    pieces = [json.loads(frame) for frame in frames[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1]["finish_reason"] == whole["finish_reason"]
    assert pieces[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_generate_batch_answers_in_order_with_errors_in_their_place(server: RunningServer) -> None:
    prompts = ["Once upon a time", 7, [1, 2, 3], [10**9], "x " * 9000, "The capital of"]
    with server.client as client:
        answer = client.post("/v1/generate_batch", json={"prompts": prompts, "max_tokens": 5, "temperature": 0}).json()
        single = client.post("/v1/generate", json={"prompt": prompts[5], "max_tokens": 5, "temperature": 0}).json()
    results = answer["results"]
    assert [result["index"] for result in results] == list(range(6))
    assert ["error" in result for result in results] == [False, True, False, True, True, False]
    assert results[1]["error"]["param"] == "prompts[1]"
    assert results[3]["error"]["param"] == "prompts[3]"
    assert results[4]["error"]["code"] == "context_length_exceeded"
    assert results[5]["text"] == single["text"]


def test_a_bad_parameter_of_a_batch_is_an_error_of_the_request(server: RunningServer) -> None:
    with server.client as client:
        assert client.post("/v1/generate_batch", json={"prompts": []}).status_code == 400
        bad = client.post("/v1/generate_batch", json={"prompts": ["x"], "logit_bias": {"-1": 1}})
        assert bad.status_code == 400
        assert bad.json()["error"]["param"] == "logit_bias"


def test_stats_count_what_was_done(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    with server.client as client:
        before = client.get("/v1/stats").json()
        assert before["total_requests"] == 0
        prompts = ["Once upon", "Hello", "1, 2"]
        answer = client.post("/v1/generate_batch", json={"prompts": prompts, "max_tokens": 8, "ignore_eos": True})
        after = client.get("/v1/stats").json()
    assert after["total_requests"] == 3
    assert after["average_latency"] > 0
    assert after["batching_stats"]["total_tokens"] == answer.json()["usage"]["completion_tokens"] == 24
    # The first of eight tokens comes with the prompt.
    assert after["batching_stats"]["total_batches"] >= 7
    assert 1 <= after["batching_stats"]["avg_batch_size"] <= 3
    assert {"acceptance_rate", "draft_length"} <= set(after["speculative_stats"])


def test_configure_answers_with_the_whole_configuration_and_takes_effect(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server()
    with server.client as client:
        answer = client.post("/v1/configure", params={"max_batch_size": "3", "use_speculative_decoding": "false"})
        assert set(answer.json()) == set(EngineConfig.model_fields)
        assert answer.json()["max_batch_size"] == 3
        assert server.engine.config.max_batch_size == 3
        assert server.engine.config.use_speculative_decoding is False
        for params, name in (
            ({"max_batch_size": "0"}, "max_batch_size"),
            ({"max_batch_size": "5", "batch_timeout_ms": "soon"}, "batch_timeout_ms"),
            ({"speed": "11"}, "speed"),
        ):
            refused = client.post("/v1/configure", params=params)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == name
        # A body would be lost silently.
        refused = client.post("/v1/configure", json={"max_batch_size": 5})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "body"
        assert client.post("/v1/configure").json() == answer.json()
        assert client.post("/v1/configure", json={}).json() == answer.json()


def test_the_documentation_of_configure_has_every_setting_with_its_range(server: RunningServer) -> None:
    with server.client as client:
        operation = client.get("/openapi.json").json()["paths"]["/v1/configure"]["post"]
    documented = {each["name"]: each for each in operation["parameters"]}
    assert set(documented) == set(EngineConfig.model_fields)
    assert documented["max_batch_size"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1024}
    for name, field in EngineConfig.model_fields.items():
        assert documented[name]["description"] == field.description
        # What is left out stays as it is.
        assert not documented[name]["required"]
        assert "default" not in documented[name]["schema"]
