"""A replica that is killed under load takes no request with it: others answer from the beginning, or go on.

If the ingress is killed, its answers end with an error, and no row goes on for nobody.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from support.replicas import ADMIN, Cluster, wait_until

CHAT = "/v1/chat/completions"
STREAMS = 12
TOKENS = 300


def body(number: int, **more: Any) -> dict[str, Any]:
    """A request whose answer is a function of it: every second one samples, by a seed."""
    sampling = {"temperature": 0} if number % 2 else {"seed": number}
    return {
        "messages": [{"role": "user", "content": f"Tell me story {number}."}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        **sampling,
        **more,
    }


def streamed(url: str, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of all events of a stream that must end as it should."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.stream("POST", f"{url}{path}", json=asked, headers=headers, timeout=120) as response:
        assert response.status_code == 200, response.read()
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


def text_of(events: list[dict[str, Any]]) -> str:
    assert all("error" not in event for event in events), events[-1]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def test_streams_go_on_from_another_replica_word_for_word(replicas: Cluster) -> None:
    replicas.wait_for_replicas(2)
    asked = [body(number, stream=True) for number in range(STREAMS)]
    # These draw a seed at the ingress, so that nobody can say what they should answer; but they end as they should.
    unseeded = [{**each, "temperature": 1, "seed": None} for each in asked[:4]]
    with ThreadPoolExecutor(STREAMS + len(unseeded)) as pool:
        expected = list(pool.map(lambda each: text_of(streamed(replicas.url, CHAT, each)), asked))
        resumed = replicas.count("streams_resumed")
        answers = [pool.submit(streamed, replicas.url, CHAT, each) for each in asked + unseeded]
        wait_until(lambda: replicas.running() == len(answers), "all streams to run")
        replicas.kill_a_replica()
        events = [each.result() for each in answers]
    assert list(map(text_of, events[:STREAMS])) == expected
    assert all(text_of(each) for each in events)
    assert all(len({event["id"] for event in each}) == 1 for each in events)
    assert all(each[-1]["choices"][0]["finish_reason"] == "length" for each in events)
    assert replicas.count("streams_resumed") > resumed
    assert replicas.count("requests_lost") == 0


def test_requests_that_have_sent_nothing_are_answered_by_another_replica(replicas: Cluster) -> None:
    replicas.wait_for_replicas(2)
    asked = [body(number) for number in range(STREAMS)]
    with replicas.client as client, ThreadPoolExecutor(STREAMS) as pool:

        def answer(each: dict[str, Any]) -> Any:
            found = client.post(CHAT, json=each)
            assert found.status_code == 200, found.text
            return found.json()["choices"]

        expected = list(pool.map(answer, asked))
        retried = replicas.count("requests_retried")
        answers = [pool.submit(answer, each) for each in asked]
        wait_until(lambda: replicas.running() == STREAMS, "all requests to run")
        replicas.kill_a_replica()
        assert [each.result() for each in answers] == expected
    assert replicas.count("requests_retried") > retried
    assert replicas.count("requests_lost") == 0


def test_rows_end_with_the_ingress_that_waits_for_them(replicas: Cluster) -> None:
    replicas.wait_for_replicas(2)
    asked = {**body(1), "max_tokens": 7900}
    with replicas.client as client, ThreadPoolExecutor(4) as pool:
        plain = [pool.submit(client.post, CHAT, json=asked) for _ in range(2)]
        streams = [pool.submit(client.post, CHAT, json={**asked, "stream": True}) for _ in range(2)]
        wait_until(lambda: replicas.running() == 4, "all requests to run")
        (ingress,) = replicas.processes("Ingress")
        ingress.kill()
        answers = [each.result() for each in plain]
        ends = [each.result().text.splitlines()[-4:] for each in streams]
    assert {each.status_code for each in answers} == {503}
    assert {each.json()["error"]["code"] for each in answers} == {"unavailable"}
    for error, _, done, _ in ends:
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "unavailable"
        assert done == "data: [DONE]"
    wait_until(lambda: replicas.running_by_replica() == [0, 0], "the rows to end")
