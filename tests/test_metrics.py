"""Metrics for Prometheus agree with what was asked and answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.servers import RunningServer, demo_draft, running_server

from parallm_openai.settings import ServerSettings

BODY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 20, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def fresh() -> Iterator[RunningServer]:
    with running_server(demo_draft(), draft_length=3) as server:
        yield server


def read(server: RunningServer) -> dict[str, float]:
    """Every sample by its name and the labels that are not the model's name."""
    with server.client as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "model_name"}
            assert sample.labels["model_name"] == server.model.name
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def read_once(server: RunningServer, name: str, value: float) -> dict[str, float]:
    """Once one of them has reached a value: a request is noted after its answer is out."""
    deadline = time.monotonic() + 30
    while True:
        found = read(server)
        if found[name] >= value:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_they_agree_with_the_requests(fresh: RunningServer) -> None:
    with fresh.client as client:
        usages = [client.post("/v1/completions", json=BODY | {"n": n}).json()["usage"] for n in (1, 2)]
    found = read_once(fresh, "vllm:time_to_first_token_seconds_count", 3)
    output = sum(usage["completion_tokens"] for usage in usages)
    assert found["vllm:generation_tokens_total"] == output == 60
    assert found["vllm:request_generation_tokens_sum"] == output
    assert found["vllm:e2e_request_latency_seconds_count"] == 3
    assert found["vllm:request_success_total length"] == 3
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    prompt = usages[0]["prompt_tokens"]
    assert found["vllm:request_prompt_tokens_sum"] == 3 * prompt
    assert found["vllm:prefix_cache_queries_total"] == 3 * prompt
    stats = fresh.engine.stats()["speculative_stats"]
    accepted = [value for name, value in found.items() if name.startswith("vllm:spec_decode_num_accepted_tokens_per_")]
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == stats["accepted_tokens"] == sum(accepted) > 0
    assert found["vllm:spec_decode_num_draft_tokens_total"] == stats["drafted_tokens"]


def test_a_refused_request_is_in_no_histogram(fresh: RunningServer) -> None:
    with fresh.client as client:
        client.post("/v1/completions", json=BODY | {"temperature": 9})
        client.post("/v1/completions", json=BODY)
    assert read_once(fresh, "vllm:e2e_request_latency_seconds_count", 1)["vllm:e2e_request_latency_seconds_count"] == 1


def test_they_need_a_key_where_one_is_set() -> None:
    with running_server(settings=ServerSettings(api_keys=("key",))) as server, server.client as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer key"}).status_code == 200
