"""The last decode steps, as the engine records them and as `/v1/engine/steps` tells of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.errors import COMPLETION, assert_error
from support.servers import RunningServer, demo_draft, running_server
from support.tiny import greedy, run_all, seeded

from parallm_openai.api.owners import Owners
from parallm_openai.engine.request import Output, Request
from parallm_openai.engine.stats import percentiles
from parallm_openai.engine.timeline import ROWS_A_STEP, Recent, Timeline
from parallm_openai.settings import ServerSettings

# The engine


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("drafter", tiny.DRAFTERS)
def test_the_steps_add_up_to_what_the_requests_got(drafter: str, ahead: bool) -> None:
    engine = tiny.core(tiny.DRAFTERS[drafter], draft_length=3, runs_ahead=ahead)
    requests: list[Request] = [greedy([5, 6, 7], 20), seeded([8], 11, 3), greedy([9, 9], 1)]
    run = run_all(engine, requests, joins=[0, 2, 4])
    steps = engine.timeline.after(0)
    # Each of the requests joins alone: its first token comes from a step of its own.
    assert [step.number for step in steps] == list(range(1, engine.stats.steps + len(requests) + 1))
    totals: Counter[tuple[int, str]] = Counter()
    for row in (row for step in steps for row in step.rows):
        totals += Counter({(row.request, name): getattr(row, name) for name in ("drafted", "accepted", "emitted")})
    for request in requests:
        assert totals[request.id, "emitted"] == len(run.tokens[request.id])
        assert totals[request.id, "drafted"] == run.drafted(request)
        assert totals[request.id, "accepted"] == run.accepted(request)
    assert sum(step.draft_seconds for step in steps) == pytest.approx(engine.stats.draft_seconds)
    ends = [step.at + step.draft_seconds + step.verify_seconds for step in steps]
    assert all(end <= step.at for end, step in zip(ends[:-1], steps[1:], strict=True))
    assert ends[-1] <= engine.timeline.now


@given(st.integers(1, 5), st.integers(0, 12), st.integers(0, 14))
def test_the_newest_steps_are_kept_and_told_from_any_number_on(size: int, count: int, after: int) -> None:
    timeline = Timeline(size)
    for number in range(1, count + 1):
        timeline.record(0.0, 0.0, 0.0, [Output(number, tokens=(1,) * number)])
    expected = [number for number in range(1, count + 1) if number > max(after, count - size)]
    assert [step.number for step in timeline.after(after)] == expected
    assert [step.rows[0].emitted for step in timeline.after(after)] == expected


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 6))
def test_steps_of_many_rows_are_kept_in_smaller_numbers(sizes: list[int], steps: int) -> None:
    """Compared with dropping the oldest until what is left fits."""
    timeline = Timeline(steps)
    for size in sizes:
        timeline.record(0.0, 0.0, 0.0, [Output(number) for number in range(size)])
    kept = list(sizes)
    while sum(max(ROWS_A_STEP, size) for size in kept) > steps * ROWS_A_STEP:
        kept.pop(0)
    assert [len(step.rows) for step in timeline.after(0)] == kept


def test_one_thread_adds_while_others_read() -> None:
    recent: Recent[int] = Recent(64)
    wrong: list[Sequence[int]] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            items = recent.items()
            if list(items) != list(range(items[0], items[0] + len(items)) if items else []):
                wrong.append(items)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for item in range(20_000):
        recent.add(item)
    ended.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert recent.items() == tuple(range(20_000 - 64, 20_000))


@given(st.lists(st.floats(0, 1000), max_size=40))
def test_percentiles_are_numpys(values: list[float]) -> None:
    expected = np.percentile(values, [50, 90, 99]) if values else [0.0, 0.0, 0.0]
    assert list(percentiles(values).values()) == pytest.approx(list(expected))


def test_latencies_are_those_of_requests_that_got_tokens() -> None:
    engine = tiny.core()
    run_all(engine, [greedy([1], 1), greedy([2], 6)])
    engine.add(never := greedy([3], 5))
    engine.cancel(never.id)
    one, several = sorted(engine.stats.latencies.items(), key=lambda each: each.between_tokens is not None)
    assert one.between_tokens is None
    assert several.between_tokens is not None
    assert several.between_tokens > 0
    assert engine.stats.report()["recent_latency"]["requests"] == 2


# The route


def steps(client: httpx.Client, key: str = "", **query: int) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = client.get("/v1/engine/steps", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_route_tells_what_is_new(server: RunningServer) -> None:
    with server.client as client:
        client.post("/v1/completions", json=COMPLETION | {"max_tokens": 9, "ignore_eos": True})
        first = steps(client)
        last = first["steps"][-1]
        assert {"number", "at", "draft_seconds", "verify_seconds", "rows"} == set(last)
        assert last["at"] < first["now"]
        assert sum(row[3] for step in first["steps"] for row in step["rows"] if row[0] == last["rows"][0][0]) == 9
        assert steps(client, after=last["number"])["steps"] == []
        client.post("/v1/completions", json=COMPLETION)
        newer = steps(client, after=last["number"])["steps"]
        assert newer
        assert newer[0]["number"] == last["number"] + 1


@pytest.mark.parametrize("after", ["-1", "x", "1.5", str(2**63), ""])
def test_a_number_that_is_none_is_refused(server: RunningServer, after: str) -> None:
    with server.client as client:
        answer = client.get("/v1/engine/steps", params={"after": after})
    assert_error(answer, 400)
    assert answer.json()["error"]["param"] == "after"


def test_stats_tell_of_latency_memory_and_limits(server: RunningServer) -> None:
    with server.client as client:
        client.post("/v1/completions", json=COMPLETION)
        stats = client.get("/v1/stats").json()
    assert stats["recent_latency"]["requests"] >= 1
    assert 0 < stats["recent_latency"]["time_to_first_token"]["p50"] <= stats["average_latency"] * 100
    assert stats["memory"]["resident_bytes"] > stats["memory"]["active_bytes"] > 0
    assert stats["batching_stats"]["max_batch_size"] == server.engine.config.max_batch_size


@pytest.fixture(scope="module")
def keyed() -> Iterator[RunningServer]:
    settings = ServerSettings(api_keys=("first", "second"), admin_keys=("root",), graceful_timeout=1)
    with running_server(demo_draft(), settings, draft_length=3) as running:
        yield running


def test_a_key_sees_the_counts_of_its_own_requests_alone(keyed: RunningServer) -> None:
    with keyed.client as client:
        for key in ("first", "second"):
            answer = client.post("/v1/completions", json=COMPLETION, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        seen = {key: steps(client, key)["steps"] for key in ("first", "second", "root")}
        assert_error(client.get("/v1/engine/steps"), 401, "invalid_api_key")
    whole = {key: {row[0] for step in found for row in step["rows"] if len(row) == 4} for key, found in seen.items()}
    assert whole["first"]
    assert whole["second"]
    assert not whole["first"] & whole["second"]
    assert whole["root"] == whole["first"] | whole["second"]
    bare = [row for key in ("first", "second") for step in seen[key] for row in step["rows"] if len(row) != 4]
    assert bare
    assert all(len(row) == 1 for row in bare)


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("ab")), max_size=30), st.integers(1, 8))
def test_owners_are_known_of_the_last_requests(noted: list[tuple[int, str]], size: int) -> None:
    owners = Owners(size)
    told: dict[int, str] = {}
    for request, owner in noted:
        owners.note([request], owner)
        told[request] = owner
    known = {request: owners.of(request) for request in told}
    assert all(found in (None, told[request]) for request, found in known.items())
    assert sum(found is not None for found in known.values()) == min(size, len(told))
