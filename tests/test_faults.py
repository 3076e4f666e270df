"""Whatever fails in a step: the row whose fault it was ends with an error, the others lose nothing, nothing leaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from mlx.utils import tree_map
from mlx_lm.models import llama
from support import tiny
from support.tiny import Run, Sums, draft_model, greedy, reference, seeded

from parallm_openai.engine import ahead, sampling, scheduler, step, verification
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.prefix import PrefixCache
from parallm_openai.engine.cache.ragged import RaggedCache
from parallm_openai.engine.constraint import Mask
from parallm_openai.engine.request import FinishReason, Request
from parallm_openai.engine.row import TARGET, Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.scheduler import Scheduler
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.stats import EngineStats
from parallm_openai.engine.step import EngineCore

STAGES: list[tuple[Any, str]] = [
    (Scheduler, "plan"),
    (scheduler, "first_width"),
    (PrefixCache, "match"),
    (PrefixCache, "use"),
    (PrefixCache, "should_store"),
    (PrefixCache, "store"),
    (PrefixCache, "evict_to"),
    (Batch, "append"),
    (Batch, "take"),
    (Batch, "remove"),
    (Batch, "reserve"),
    (RaggedCache, "append_row"),
    (RaggedCache, "append_row_from"),
    (RaggedCache, "remove_row"),
    (RaggedCache, "copy_row"),
    (RaggedCache, "_require"),
    (RaggedCache, "forward"),
    (RaggedCache, "evaluate"),
    (ModelRunner, "prefill"),
    (ModelRunner, "forward"),
    (DraftModel, "available"),
    (DraftModel, "propose"),
    (DraftLength, "choose"),
    (DraftLength, "learn"),
    (EngineStats, "stepped"),
    (EngineStats, "prefilled"),
    (step, "verify"),
    (step, "first_tokens"),
    (EngineCore, "_sample_first"),
    (verification, "accepted_count"),
    (EngineCore, "_start_decoding"),
    (step, "commit"),
    (EngineCore, "_free"),
    (sampling, "sample"),
    (sampling.Draw, "ids"),
    (sampling, "token_logprobs"),
]


class Panic(BaseException):
    """As native code raises it: no Exception."""


@contextmanager
def failing(owner: Any, name: str, when: Callable[..., bool], error: BaseException) -> Iterator[list[int]]:
    """`owner.name` raises `error` where `when` says so of its arguments; the list counts how often."""
    original, raised = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raised[0] += 1
            raise error
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield raised
    finally:
        setattr(owner, name, original)


def nth_call(number: int) -> Callable[..., bool]:
    calls = iter(range(1_000_000))
    return lambda *args, **kwargs: next(calls) == number


def company() -> list[Request]:
    """Rows that use every part of a step: drafts, sampling, grammars, log-probabilities, scored prompts."""
    shared = [n * n % tiny.VOCAB for n in range(40)]
    return [
        greedy([*shared, 1], 14),
        seeded([*shared, 2], 12, 1, temperature=0.8, logprobs=2),
        greedy([3, 4], 20, grammar=Sums(5, 15)),
        seeded([5], 3, 2, presence_penalty=0.5),
        greedy([6] * 30, 10, prompt_logprobs=1),
        seeded([7, 8, 9], 16, 3, top_p=0.9),
    ]


def run_with_faults(requests: list[Request], **settings: Any) -> Run:
    run = Run(tiny.core(lambda: draft_model(0.2), draft_length=3, prefill_chunk=16, **settings))
    for request in requests:
        run.add(request)
    return run.finish(limit=800)


def failed_of(run: Run, requests: list[Request]) -> list[Request]:
    """The requests that ended with an error; all others have just what they would have had alone."""
    failed = []
    for request in requests:
        if run.reason(request) is FinishReason.ERROR:
            failed.append(request)
        else:
            assert run.tokens[request.id] == reference(request)
    return failed


def assert_nothing_leaks(engine: EngineCore) -> None:
    assert engine.idle
    for bucket in engine.scheduler.buckets:
        for batch in (bucket.prefilling, bucket.decoding):
            assert batch.rows == []
            assert len(batch.caches) == 2
            assert all(cache.rows == 0 for cache in batch.caches.values() if isinstance(cache, RaggedCache))
    # And it serves as before.
    request = greedy([9, 9], 8)
    later = Run(engine)
    later.add(request)
    assert later.finish().tokens[request.id] == reference(request)


@pytest.mark.slow
@pytest.mark.parametrize("call", [0, 3, 7])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(ahead, "advance"), (ahead, "_sent_off"), (ahead, "_arrived"), (ModelRunner, "forward"), (sampling.Draw, "ids")],
)
def test_a_failure_while_a_step_is_on_its_way_costs_at_most_one_row(owner: Any, name: str, call: int) -> None:
    requests = [greedy([n + 1, n], 14) for n in range(3)] + [seeded([5, n], 18, n, top_p=0.9) for n in range(3)]
    with failing(owner, name, nth_call(call), MemoryError("no memory")) as raised:
        run = run_with_faults(requests, runs_ahead=True, use_speculative_decoding=False)
    assert raised[0]
    assert len(failed_of(run, requests)) <= raised[0]
    assert_nothing_leaks(run.core)


@pytest.mark.slow
@pytest.mark.parametrize("call", [0, 1, 4])
@pytest.mark.parametrize(
    ("owner", "name"), STAGES, ids=[f"{owner.__name__.split('.')[-1]}.{name}" for owner, name in STAGES]
)
def test_a_failure_anywhere_costs_at_most_one_row(owner: Any, name: str, call: int) -> None:
    requests = company()
    with failing(owner, name, nth_call(call), MemoryError("no memory")) as raised:
        run = run_with_faults(requests)
    assert raised[0] or call, "the place was never reached"
    assert len(failed_of(run, requests)) <= raised[0]
    assert_nothing_leaks(run.core)


@pytest.mark.parametrize(("owner", "name"), [(sampling, "sample"), (sampling.Draw, "ids"), (DraftModel, "propose")])
def test_a_failure_that_several_rows_share_once_costs_none(owner: Any, name: str) -> None:
    requests = company()
    with failing(owner, name, nth_call(6), Panic("native")) as raised:
        run = run_with_faults(requests)
    assert raised == [1]
    assert not failed_of(run, requests)
    assert_nothing_leaks(run.core)


def test_a_row_whose_every_forward_fails_is_found_and_ends_alone() -> None:
    requests = company()
    poisoned = requests[3]

    def holds_it(runner: ModelRunner, batch: Batch, *others: Any, **options: Any) -> bool:
        return runner.role == TARGET and any(row.request is poisoned for row in batch.rows)

    with failing(ModelRunner, "forward", holds_it, RuntimeError("bad kernel")) as raised:
        run = run_with_faults(requests)
    assert raised[0] >= 2
    assert failed_of(run, requests) == [poisoned]
    assert "bad kernel" in (run.outputs[poisoned.id][-1].error or "")
    assert_nothing_leaks(run.core)


def test_an_engine_whose_every_forward_fails_comes_to_an_end() -> None:
    requests = company()
    with failing(ModelRunner, "forward", lambda *args: True, RuntimeError("gone")):
        run = run_with_faults(requests)
    assert failed_of(run, requests) == requests
    assert_nothing_leaks(run.core)


def test_scheduling_that_always_fails_comes_to_an_end() -> None:
    requests = company()
    with failing(Scheduler, "plan", lambda *args: True, RuntimeError("lost")):
        run = run_with_faults(requests)
    assert failed_of(run, requests) == requests
    assert_nothing_leaks(run.core)


@dataclass
class Broken:
    """A grammar that raises where it is told to, after `good` tokens."""

    where: str
    good: int = 4
    inner: Sums = field(default_factory=lambda: Sums(5, 30))

    def matcher(self) -> BrokenMatcher:
        if self.where == "matcher":
            raise Panic("no matcher")
        return BrokenMatcher(self)


class BrokenMatcher:
    def __init__(self, grammar: Broken) -> None:
        self.grammar = grammar
        self.inner = grammar.inner.matcher()

    def _may_break(self, where: str) -> None:
        if self.grammar.where == where and len(self.inner.tokens) >= self.grammar.good:
            raise Panic(where)

    @property
    def finished(self) -> bool:
        self._may_break("finished")
        return self.inner.finished

    @property
    def error(self) -> str | None:
        return "too many states" if self.grammar.where == "error" and len(self.inner.tokens) > 3 else None

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        self._may_break("allowed")
        return self.inner.allowed(drafts)

    def advance(self, token: int) -> None:
        self._may_break("advance")
        self.inner.advance(token)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["matcher", "allowed", "advance", "finished", "error"])
def test_a_grammar_that_breaks_ends_its_own_row(where: str) -> None:
    requests = company()
    broken = greedy([3, 4], 20)
    broken = replace(broken, params=replace(broken.params, grammar=Broken(where)))
    everyone = [*requests[:2], broken, *requests[2:]]
    run = Run(tiny.core(lambda: draft_model(0.2), draft_length=3))
    for request in everyone:
        run.add(request)
    steps = run.finish().core.stats.steps
    assert failed_of(run, everyone) == [broken]
    assert run.outputs[broken.id][-1].request_at_fault == (where == "error")
    without = Run(tiny.core(lambda: draft_model(0.2), draft_length=3))
    for request in requests:
        without.add(request)
    assert steps <= without.finish().core.stats.steps + 1, "its neighbours need not even wait"
    assert_nothing_leaks(run.core)


def test_logits_that_are_not_numbers_end_their_row_and_leave_nothing_behind() -> None:
    """A token whose embedding is NaN makes its row's keys and values NaN too: no later row may meet them."""
    target = llama.Model(tiny.model().args)
    target.update(tree_map(lambda weight: weight + 0, tiny.model().parameters()))
    target.model.embed_tokens.weight[60] = float("nan")
    bias = {60: -1000.0}
    ill = greedy([1, 2, 60, 3] * 20, 10, logit_bias=bias)
    well = [seeded([number, 5] * 25, 12, number, logit_bias=bias) for number in range(6)]
    run = Run(tiny.core(target=target, max_batch_size=3))
    for request in (*well[:3], ill, *well[3:]):
        run.add(request)
    run.finish()
    assert run.reason(ill) is FinishReason.ERROR
    assert not run.tokens[ill.id]
    assert "not numbers" in (run.outputs[ill.id][-1].error or "")
    again = Run(run.core)
    for request in (other := [seeded([1, 2, 7] * 20, 12, 5, logit_bias=bias), ill]):
        again.add(request)
    again.finish()
    assert again.reason(ill) is FinishReason.ERROR
    for one, found in [*((request, run) for request in well), (other[0], again)]:
        assert found.tokens[one.id] == reference(one, target=target)


@pytest.mark.parametrize(("owner", "name"), [(RaggedCache, "copy_row"), (Batch, "remove"), (RaggedCache, "remove_row")])
def test_cancelling_never_fails(owner: Any, name: str) -> None:
    requests = company()
    run = Run(tiny.core(lambda: draft_model(0.2), draft_length=3))
    for request in requests:
        run.add(request)
    for _ in range(3):
        run.step()
    with failing(owner, name, nth_call(0), Panic("at the worst moment")):
        run.gather(run.core.cancel(requests[0].id))
    assert run.reason(requests[0]) is FinishReason.CANCELLED
    run.finish()
    for request in requests[1:]:
        assert run.reason(request) is not FinishReason.ERROR
        assert run.tokens[request.id] == reference(request)
    assert_nothing_leaks(run.core)


def test_rows_are_told_apart_however_alike() -> None:
    first, second = (Row.of(greedy([1, 2], 3), 10, frozenset()) for _ in range(2))
    assert first != second


@dataclass
class Slow:
    """A grammar that takes the engine's thread for `seconds` of CPU time at every mask."""

    seconds: float

    def matcher(self) -> SlowMatcher:
        return SlowMatcher(self.seconds)


class SlowMatcher:
    finished, error = False, None

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def allowed(self, drafts: tuple[int, ...]) -> None:
        began = time.thread_time()
        while time.thread_time() - began < self.seconds:
            pass

    def advance(self, token: int) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.2, 0.15])
def test_a_grammar_that_holds_up_the_engine_ends_by_its_own_fault(seconds: float) -> None:
    slow, neighbour = greedy([3, 4], 200, grammar=Slow(seconds)), greedy([1, 2], 12)
    run = Run(tiny.core())
    for request in (slow, neighbour):
        run.add(request)
    run.finish()
    assert run.reason(slow) is FinishReason.ERROR
    assert run.outputs[slow.id][-1].request_at_fault
    assert run.tokens[neighbour.id] == reference(neighbour)
    assert len(run.tokens[slow.id]) < 40


def test_a_prompt_that_is_read_twice_is_scored_once() -> None:
    requests = [greedy([1, 2, 3, 4], 5, prompt_logprobs=1), greedy([5, 6, 7, 8], 5)]
    with failing(step, "first_tokens", nth_call(0), RuntimeError("out of memory")):
        run = run_with_faults(requests)
    assert failed_of(run, requests) == []
    assert [output.prompt_logprobs is not None for output in run.outputs[requests[0].id]].count(True) == 1
