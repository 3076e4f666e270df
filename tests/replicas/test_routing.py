"""Routing by prefix finds more of each prompt computed already than routing by load alone; a full queue is a 429.

What takes no row is answered all the same, and the end is an orderly one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.replicas import Cluster, cluster, wait_until

CONVERSATIONS, TURNS = 16, 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that looks at the load alone, with room for ten requests: in each replica four, and two before them."""
    flags = ["--replica-routing", "least-loaded", "--max-batch-size", "2", "--max-queue", "2"]
    with cluster(tmp_path_factory.mktemp("small") / "log", *flags) as made:
        yield made


def counts(made: Cluster) -> tuple[int, int]:
    """Prompt tokens that were found in a prefix cache, and those that were computed."""
    stats = made.stats().values()
    found = sum(each["prefix_cache"]["hit_tokens"] for each in stats)
    return found, sum(each["batching_stats"]["prompt_tokens"] for each in stats)


def share_found(made: Cluster) -> float:
    """The share of the prompt tokens of conversations that take turns which is found in a prefix cache."""
    found_before, computed_before = counts(made)
    histories = [
        [{"role": "system", "content": f"You are guide number {number}. " * 40}] for number in range(CONVERSATIONS)
    ]
    with made.client as client:
        for turn in range(TURNS):
            for history in histories:
                history.append({"role": "user", "content": f"Question {turn}?"})
                asked = {"messages": history, "max_tokens": 4, "temperature": 0}
                answer = client.post("/v1/chat/completions", json=asked).raise_for_status().json()
                history.append(answer["choices"][0]["message"])
    found, computed = counts(made)
    found, computed = found - found_before, computed - computed_before
    return found / (found + computed)


def test_prefix_routing_finds_more_computed(
    replicas: Cluster, small: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    replicas.wait_for_replicas(2)
    by_prefix = share_found(replicas)
    by_load = share_found(small)
    with capsys.disabled():
        print(f"\nprompt tokens found in a prefix cache: {by_prefix:.0%} by prefix, {by_load:.0%} by load")
    # All turns but the first find their conversation.
    assert by_prefix > 0.6
    assert by_prefix > by_load + 0.05


def test_requests_that_the_queue_has_no_room_for_are_refused(small: Cluster) -> None:
    small.wait_for_replicas(2)
    asked = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 200, "ignore_eos": True}
    with small.client as client, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/chat/completions", json=asked), range(24)))
    statuses = Counter(each.status_code for each in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 10
    refused = next(each for each in answers if each.status_code == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_what_takes_no_row_is_answered_however_many_wait(small: Cluster) -> None:
    asked = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 600, "ignore_eos": True}
    count = {"messages": asked["messages"], "model": "parallm-demo"}
    with small.client as client, ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(client.post, "/v1/chat/completions", json=asked) for _ in range(9)]
        wait_until(lambda: small.running_by_replica() == [4, 4], "both replicas to be full")
        for path in ("/health", "/v1/models", "/metrics"):
            assert client.get(path).status_code == 200
        assert client.post("/v1/messages/count_tokens", json=count).status_code == 200
        assert small.running_by_replica() == [4, 4]
        assert {each.result().status_code for each in answers} == {200}


def test_the_end_is_orderly(small: Cluster) -> None:
    """Requests that run are answered, and new ones are told to try again. It is the last test: the cluster ends."""
    asked = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 600, "ignore_eos": True}
    with small.client as client, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.post, "/v1/chat/completions", json=asked) for _ in range(4)]
        wait_until(lambda: small.running() == 4, "all requests to run")
        small.process.terminate()
        wait_until(lambda: client.get("/health").status_code == 503, "new requests to be refused")
        refused = client.post("/v1/chat/completions", json=asked)
        assert refused.json()["error"]["code"] == "unavailable"
        assert refused.headers["retry-after"]
        assert {each.result().status_code for each in answers} == {200}
    assert small.process.wait(60) == 0
