"""Whoever shares the server sees its counts grow now and then, not from step to step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import httpx
from hypothesis import given
from hypothesis import strategies as st
from support.servers import RunningServer

from parallm_openai.api.snapshot import Snapshot
from parallm_openai.settings import ServerSettings


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 20))
def test_a_snapshot_is_as_old_as_it_may_be(pauses: list[int], seconds: int) -> None:
    now = 0
    made: list[int] = []
    snapshot = Snapshot(lambda: made.append(now) or now, seconds, lambda: now)  # type: ignore[func-returns-value]
    for pause in pauses:
        now += pause
        assert now - seconds < snapshot.get() <= now
    assert all(after - before >= seconds for before, after in pairwise(made))


def told(server: RunningServer, key: str) -> tuple[int, float]:
    headers = {"Authorization": f"Bearer {key}"}
    with server.client as client:
        stats = client.get("/v1/stats", headers=headers).json()
        metrics = client.get("/metrics", headers=headers).text
    line = next(line for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total"))
    return stats["batching_stats"]["total_tokens"], float(line.split()[-1])


def generate(server: RunningServer, key: str) -> None:
    body = {"prompt": "Hello", "max_tokens": 6, "ignore_eos": True}
    httpx.post(f"{server.url}/v1/completions", json=body, headers={"x-api-key": key}, timeout=240).raise_for_status()


def test_one_of_several_keys_does_not_see_anothers_steps(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(api_keys=("mine", "yours"), admin_keys=("admin",)))
    generate(server, "mine")
    assert told(server, "mine") == told(server, "admin") == (6, 6)
    generate(server, "yours")
    assert told(server, "mine") == (6, 6)
    assert told(server, "admin") == (12, 12)


def test_a_key_that_is_the_only_one_sees_everything(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(api_keys=("mine",)))
    for total in (6, 12):
        generate(server, "mine")
        assert told(server, "mine") == (total, total)
