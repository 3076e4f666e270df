"""Simulated fleets lose no request, waste no time, and get no slower with more replicas."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter
from collections.abc import Sequence

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated import linear, step_costs

from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.core import VirtualClock
from parallm_openai.simulation.figures import Figures, quantile
from parallm_openai.simulation.fleet import World, run_exactly, run_sampled
from parallm_openai.simulation.replica import ExactReplica, Job
from parallm_openai.simulation.routers import ROUTERS, Loads, Router
from parallm_openai.simulation.trace import LATEST, TraceRequest
from parallm_openai.simulation.workloads import Workload

REQUESTS = st.lists(
    st.builds(
        TraceRequest,
        at=st.floats(0, 5),
        prompt_tokens=st.integers(40, 300),
        output_tokens=st.integers(1, 30),
        prefix=st.sampled_from(((), (("system", 32),), (("system", 32), ("a", 8)))),
        session=st.sampled_from((None, "one", "two")),
    ),
    min_size=1,
    max_size=15,
).map(lambda requests: sorted(requests, key=lambda request: request.at))


def agents(rate: float, seconds: float = 20.0, seed: int = 0) -> list[TraceRequest]:
    return Workload(rate, seconds, content="agents", system_prompts=8, seed=seed).requests()


def mean_wait(jobs: Sequence[Job]) -> float:
    return statistics.fmean(job.ttft for job in jobs if job.ttft is not None)


@settings(max_examples=8, deadline=None)
@given(trace=REQUESTS, name=st.sampled_from(sorted(ROUTERS)), sampled=st.booleans(), rows=st.integers(1, 4))
def test_every_request_ends_once_with_its_tokens(
    trace: list[TraceRequest], name: str, sampled: bool, rows: int
) -> None:
    world = World(step_costs(), EngineConfig(max_batch_size=rows))
    router = ROUTERS[name](3, 0)
    outcome = run_sampled(trace, router, world, 2) if sampled else run_exactly(trace, router, world)
    assert [job.asked for job in outcome.jobs] == trace
    assert router.loads.of == [0, 0, 0]
    followed = [job for job, _ in outcome.sampled]
    assert sampled or followed == list(outcome.jobs)
    for job in [*outcome.jobs, *followed]:
        assert job.tokens == job.asked.output_tokens
        assert job.first_token_at is not None
        assert job.ended_at is not None
        assert job.asked.at <= job.sent_at + 1e-9
        assert job.sent_at < job.first_token_at <= job.ended_at
        assert 0 <= job.cached_tokens < job.asked.prompt_tokens


@pytest.mark.parametrize("seconds", [1e-6, 3600.0])
@pytest.mark.parametrize("sampled", [True, False])
def test_the_fastest_machine_at_the_latest_time_comes_to_an_end_and_so_does_the_slowest(
    seconds: float, sampled: bool
) -> None:
    grid = linear(seconds, 0.0)
    parts = dict.fromkeys(("verify", "prefill", "draft", "draft_prefill"), grid)
    costs = step_costs(**parts, step_seconds=(0.0, 0.0), request_seconds=0.0, spread=(0.1,), serving_factor=0.1)
    trace = [TraceRequest(0.0, 40, 3), *(TraceRequest(LATEST, 40 + number, 20) for number in range(20))]
    world = World(costs, EngineConfig(batch_timeout_ms=0))
    router = ROUTERS["two-choices"](3, 0)
    outcome = run_sampled(trace, router, world, 2) if sampled else run_exactly(trace, router, world)
    assert all(job.tokens == job.asked.output_tokens for job in outcome.jobs)
    assert Figures.of(outcome).throughput > 0


def test_one_request_of_a_fast_machine_has_a_throughput() -> None:
    parts = dict.fromkeys(("verify", "prefill", "draft", "draft_prefill"), linear(1e-6, 0.0))
    costs = step_costs(**parts, step_seconds=(0.0, 0.0), request_seconds=0.0, spread=(0.1,), serving_factor=0.1)
    outcome = run_exactly([TraceRequest(LATEST, 4, 1)], Router(1), World(costs, EngineConfig(batch_timeout_ms=0)))
    assert Figures.of(outcome).throughput > 0


@settings(max_examples=8, deadline=None)
@given(trace=REQUESTS)
def test_a_sessions_requests_follow_one_another(trace: list[TraceRequest]) -> None:
    jobs = run_exactly(trace, Router(2), World(step_costs())).jobs
    for session in ("one", "two"):
        turns = [job for job in jobs if job.asked.session == session]
        for earlier, later in itertools.pairwise(turns):
            assert earlier.ended_at is not None
            assert later.sent_at == pytest.approx(max(later.asked.at, earlier.ended_at), abs=0.1)
            assert later.sent_at >= earlier.ended_at


def test_a_replica_never_idles_while_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[float] = []
    advance = VirtualClock.advance

    def counted(self: VirtualClock, seconds: float) -> None:
        worked.append(seconds)
        advance(self, seconds)

    monkeypatch.setattr(VirtualClock, "advance", counted)
    # All come at once, and more than there are rows.
    trace = [TraceRequest(0.0, 50 + number, 20) for number in range(30)]
    world = World(step_costs(request_seconds=0.0), EngineConfig(batch_timeout_ms=0, max_batch_size=4))
    jobs = run_exactly(trace, Router(1), world).jobs
    assert max(job.ended_at or 0.0 for job in jobs) == pytest.approx(sum(worked))


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_more_replicas_do_not_raise_the_mean_wait(name: str) -> None:
    # Without shared prefixes: of those, more replicas that take any request each have fewer.
    trace = Workload(14.0, 4.0).requests()
    world = World(step_costs(), noise=False)
    waits = [mean_wait(run_exactly(trace, ROUTERS[name](replicas, 0), world).jobs) for replicas in (1, 2, 4)]
    # A request may meet other neighbours, and wait for one step more.
    assert all(more <= fewer * 1.1 for fewer, more in itertools.pairwise(waits)), waits
    assert waits[-1] < 0.7 * waits[0]


def test_more_replicas_do_not_raise_the_mean_wait_of_sessions_that_keep_theirs() -> None:
    trace = agents(14.0, 5.0)
    world = World(step_costs(), noise=False)
    waits = [mean_wait(run_exactly(trace, ROUTERS["session"](replicas, 0), world).jobs) for replicas in (1, 2, 4)]
    assert all(more <= fewer * 1.1 for fewer, more in itertools.pairwise(waits)), waits


def test_the_sampled_fleet_is_near_the_exact_one() -> None:
    trace = agents(20.0, 8.0)
    world = World(step_costs())
    exact, sampled = (
        Figures.of(outcome)
        for outcome in (
            run_exactly(trace, ROUTERS["session"](8, 0), world),
            run_sampled(trace, ROUTERS["session"](8, 0), world, 8),
        )
    )
    assert sampled.ttft_p50 == pytest.approx(exact.ttft_p50, rel=0.25)
    assert sampled.itl_p50 == pytest.approx(exact.itl_p50, rel=0.25)
    assert sampled.hit_rate == pytest.approx(exact.hit_rate, abs=0.05)
    assert sampled.throughput == pytest.approx(exact.throughput, rel=0.1)


def test_a_run_is_a_function_of_its_seed() -> None:
    trace = agents(6.0, 8.0)

    def waits(seed: int) -> list[float | None]:
        return [job.ttft for job in run_exactly(trace, ROUTERS["prefix"](3, 0), World(step_costs(), seed=seed)).jobs]

    assert waits(1) == waits(1) != waits(2)


def test_drafts_make_a_fleet_faster_if_they_are_accepted() -> None:
    trace = [TraceRequest(0.0, 40, 200)] * 4
    rates = [
        Figures.of(run_exactly(trace, Router(1), World(step_costs(acceptance=(chance,))))).throughput
        for chance in (0.0, 0.95)
    ]
    assert rates[1] > 1.5 * rates[0]


def test_a_session_that_keeps_its_replica_has_its_history_there() -> None:
    trace = agents(4.0, 12.0)
    world = World(step_costs())
    sticky, in_turn = (
        Figures.of(run_exactly(trace, ROUTERS[name](8, 0), world)).hit_rate for name in ("session", "round-robin")
    )
    assert sticky > in_turn + 0.2


@given(moves=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60))
def test_the_extremes_of_loads_follow_every_move(moves: list[tuple[int, bool]]) -> None:
    loads, slow = Loads(5), Counter(dict.fromkeys(range(5), 0))
    for replica, add in moves:
        if add or slow[replica]:
            (loads.add if add else loads.remove)(replica)
            slow[replica] += 1 if add else -1
        assert loads.of == [slow[each] for each in range(5)]
        assert (loads.least, loads.most) == (min(slow.values()), max(slow.values()))


@pytest.mark.parametrize("name", ["prefix", "prefix-session", "prefix-bounded"])
def test_prompts_follow_the_longest_match_unless_that_replica_is_too_busy(name: str) -> None:
    router = ROUTERS[name](50, 0)

    def ask(prefix: tuple[tuple[str, int], ...]) -> int:
        request = TraceRequest(0.0, 1000, 1, prefix)
        replica = router.choose(request)
        router.sent(request, replica)
        return replica

    system = ask((("system", 500),))
    session = ask((("system", 500), ("a", 300)))
    router.sent(TraceRequest(0.0, 1000, 1, (("system", 500),)), (session + 1) % 50)
    router.ended(system)
    assert {ask((("system", 500), ("a", 400))) for _ in range(4)} == {session}
    for _ in range(20):
        ask((("system", 500), ("a", 400)))
    assert router.loads.of[session] < 20, "the others take what is too much for it"


def test_batching_window_starts_requests_that_come_together_in_one_step() -> None:
    world = World(step_costs(request_seconds=0.0), EngineConfig(batch_timeout_ms=50), noise=False)
    together = [TraceRequest(at, 20, 5) for at in (0.0, 0.03, 0.06)]
    [first] = {job.first_token_at for job in run_exactly(together, Router(1), world).jobs}
    assert first is not None
    assert first > 0.11


def test_what_a_replica_was_told_while_it_computes_waits_for_the_end_of_the_step() -> None:
    env, ended = simpy.Environment(), list[Job]()
    world = World(step_costs(), EngineConfig(batch_timeout_ms=0))
    replica: ExactReplica = world.exact(env, 0, ended.append)
    jobs = [Job(number, TraceRequest(0.0, 64, 8)) for number in range(2)]
    replica.submit(jobs[0])
    env.run(until=0.01)
    replica.submit(jobs[1])
    env.run()
    assert [job.number for job in ended] == [0, 1]
    assert all(job.first_token_at is not None and job.tokens == 8 for job in jobs)


def test_quantiles_count_what_a_value_stands_for() -> None:
    assert quantile([(3.0, 1.0), (1.0, 98.0), (2.0, 1.0)], 0.5) == 1.0
    assert quantile([(3.0, 1.0), (1.0, 98.0), (2.0, 1.0)], 0.99) == 2.0
    assert quantile([], 0.5) == 0.0


@given(rows=st.integers(1, 40), width=st.integers(1, 20), fixed=st.floats(0.001, 1), per_token=st.floats(0, 0.1))
def test_costs_between_and_beyond_the_measured_shapes_follow_a_line(
    rows: int, width: int, fixed: float, per_token: float
) -> None:
    found = linear(fixed, per_token).at(rows, width, 100)
    assert found == pytest.approx(fixed + per_token * rows * width, rel=1e-6)


@pytest.mark.parametrize("arrivals", ["poisson", "bursty", "diurnal"])
@pytest.mark.parametrize("content", ["single", "shared", "agents"])
def test_made_up_traces_have_the_rate_that_was_asked_for(arrivals: str, content: str) -> None:
    workload = Workload(20.0, 600.0, arrivals, content, think_seconds=1.0, longest=4096)  # type: ignore[arg-type]
    trace = workload.requests()
    assert len(trace) == pytest.approx(20 * 600, rel=0.2)
    assert [each.at for each in trace] == sorted(each.at for each in trace)
    assert all(each.shared_tokens <= each.prompt_tokens for each in trace)
    assert all(each.prompt_tokens + each.output_tokens <= workload.longest for each in trace)
    assert trace == workload.requests()


def test_bursts_and_days_are_less_even_than_a_poisson_process() -> None:
    def spread(arrivals: str) -> float:
        trace = Workload(20.0, 600.0, arrivals, seed=1).requests()  # type: ignore[arg-type]
        counts = Counter(int(each.at / 5) for each in trace)
        return statistics.pvariance([counts[place] for place in range(120)]) / 100

    assert spread("poisson") < 2 < min(spread("bursty"), spread("diurnal"))


def test_a_turn_begins_with_all_that_its_session_has_had() -> None:
    sessions: dict[str, list[TraceRequest]] = {}
    for request in agents(5.0):
        assert request.session is not None
        sessions.setdefault(request.session, []).append(request)
    assert max(map(len, sessions.values())) > 3
    for turns in sessions.values():
        for before, after in itertools.pairwise(turns):
            assert after.prefix[0] == before.prefix[0]
            assert after.prefix[1][1] > before.prefix[1][1] + before.output_tokens


def test_the_random_numbers_of_answers_are_their_own() -> None:
    random.seed(1)
    before = random.getstate()
    run_exactly(agents(3.0, 5.0), ROUTERS["two-choices"](2, 0), World(step_costs()))
    assert random.getstate() == before
