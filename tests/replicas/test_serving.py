"""Two replicas are one server to its clients: streams, errors, keys, stored responses, settings, metrics."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from support.replicas import ADMIN, KEY, Cluster, wait_until

QUESTION = [{"role": "user", "content": "Tell me a story."}]


def sdk(replicas: Cluster, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{replicas.url}/v1", api_key=key, max_retries=0)


def test_the_sdk_streams_from_both_replicas(replicas: Cluster) -> None:
    def answer(number: int) -> tuple[str, str]:
        raw = sdk(replicas).chat.completions.with_raw_response.create(
            model="parallm-demo",
            messages=[{"role": "user", "content": "Tell me a story."}],
            seed=5,
            max_tokens=60,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in raw.parse()]
        return raw.headers["x-parallm-replica"], "".join(pieces)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(16)))
    assert len({replica for replica, _ in answers}) == 2
    assert len({text for _, text in answers}) == 1
    assert len(answers[0][1]) > 50


def test_requests_have_one_id(replicas: Cluster) -> None:
    with replicas.client as client:
        answer = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert answer.headers.get_list("x-request-id") == ["mine"]
        assert len(client.get("/v1/models").headers.get_list("x-request-id")) == 1


def test_errors_are_what_the_sdk_knows(replicas: Cluster) -> None:
    with pytest.raises(openai.AuthenticationError):
        sdk(replicas, "wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk(replicas).chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as caught:
        sdk(replicas).chat.completions.create(
            model="parallm-demo", messages=[{"role": "user", "content": "x"}], temperature=9
        )
    assert caught.value.param == "temperature"
    with httpx.Client(base_url=replicas.url, headers={"Authorization": f"Bearer {KEY}"}) as user:
        assert user.post("/v1/configure").json()["error"]["code"] == "admin_key_required"
        assert user.post("/v1/messages", json={"messages": 1}).json()["type"] == "error"
        assert isinstance(user.post("/api/chat", json={"messages": 1}).json()["error"], str)


def test_other_surfaces_stream_too(replicas: Cluster) -> None:
    with replicas.client as client:
        asked = {"messages": QUESTION, "max_tokens": 20, "stream": True}
        with client.stream("POST", "/v1/messages", json=asked) as answer:
            events = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
        assert (events[0], events[-1]) == ("message_start", "message_stop")
        with client.stream("POST", "/api/chat", json={"messages": QUESTION}) as answer:
            lines = [json.loads(line) for line in answer.iter_lines()]
        assert lines[-1]["done"]
        assert len(lines) > 5


def test_a_client_that_leaves_frees_its_row(replicas: Cluster) -> None:
    asked = {"messages": QUESTION, "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with replicas.client as client, client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        # Without the name, the iterator would close the connection.
        lines = answer.iter_lines()
        next(lines)
        wait_until(lambda: replicas.running() == 1, "the row to run", 30)
    wait_until(lambda: replicas.running() == 0, "the row to be freed", 30)


def test_a_stored_response_is_known_to_every_replica(replicas: Cluster) -> None:
    client = sdk(replicas)
    replicas.wait_for_replicas(2)
    made, last = set(), None
    for number in range(4):
        raw = client.responses.with_raw_response.create(
            model="parallm-demo", input=f"Say {number}.", max_output_tokens=8, previous_response_id=last
        )
        made.add(raw.headers["x-parallm-replica"])
        last = raw.parse().id
    # The conversation stays where its beginning is computed, and all replicas know it.
    assert len(made) == 1
    assert last is not None
    read = [client.responses.with_raw_response.retrieve(last) for _ in range(30)]
    assert len({each.headers["x-parallm-replica"] for each in read}) == 2
    assert {each.parse().id for each in read} == {last}
    assert len(client.responses.input_items.list(last, limit=100).data) == 7
    with pytest.raises(openai.NotFoundError):
        sdk(replicas, ADMIN).responses.retrieve(last)
    client.responses.delete(last)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(last)


def test_headers_for_ray_do_nothing(replicas: Cluster) -> None:
    asked = {"messages": QUESTION, "max_tokens": 200, "ignore_eos": True}
    with replicas.client as client:
        answer = client.post("/v1/chat/completions", json=asked, headers={"x-request-timeout-seconds": "0.001"})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 200


def test_settings_and_responses_survive_the_loss_of_replicas(replicas: Cluster) -> None:
    replicas.wait_for_replicas(2)
    stored = sdk(replicas).responses.create(model="parallm-demo", input="Remember me.", max_output_tokens=8)
    with replicas.client as client:
        answer = client.post("/v1/configure", params={"max_batch_size": 9}).raise_for_status()
        assert answer.json()["max_batch_size"] == 9
        sizes = {name: each["batching_stats"]["max_batch_size"] for name, each in replicas.stats().items()}
        assert list(sizes.values()) == [9, 9]
        for process in replicas.processes():
            process.kill()
        # A replica that starts later takes the changed settings over.
        wait_until(lambda: len(replicas.stats().keys() - sizes.keys()) == 2, "two new replicas")
        assert [each["batching_stats"]["max_batch_size"] for each in replicas.stats().values()] == [9, 9]
        client.post("/v1/configure", params={"max_batch_size": 16}).raise_for_status()
    assert sdk(replicas).responses.retrieve(stored.id).output_text == stored.output_text


def test_metrics_tell_the_replicas_apart(replicas: Cluster) -> None:
    replicas.wait_for_replicas(2)
    with replicas.client as client:
        lines = client.get("/metrics").text.splitlines()
    running = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    assert {line.split('replica="')[1].split('"')[0] for line in running} == set(replicas.stats())
