"""Rows join and leave at any step, and none of them can tell."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest
from support import tiny
from support.tiny import Run, greedy, reference, run_all, seeded

from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.request import FinishReason, Request, SamplingParams


def mixed_requests(count: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        prompt = [rng.randrange(tiny.VOCAB) for _ in range(rng.choice([1, 2, 3, 9, 40, 150]))]
        if rng.random() < 0.5:
            requests.append(greedy(prompt, rng.randrange(1, 30)))
        else:
            requests.append(seeded(prompt, rng.randrange(1, 30), number, temperature=rng.choice([0.7, 1.0, 1.5])))
    return requests


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [Ragged(), None], ids=["ragged", "mlx-lm's caches"])
def test_rows_that_join_and_leave_get_what_they_get_alone(ragged: Ragged | None) -> None:
    requests = mixed_requests(24, seed=1)
    joins = [random.Random(2).randrange(40) for _ in requests]
    run = run_all(tiny.core(ragged=ragged, max_batch_size=5, prefill_chunk=24), requests, joins)
    for request in requests:
        assert run.tokens[request.id] == reference(request)
        assert run.reason(request) is FinishReason.LENGTH


@pytest.mark.slow
def test_a_long_row_leaves_the_short_ones_forwards_and_none_can_tell() -> None:
    long, short = greedy([7] * 400, 30), [seeded([n + 1], 60, seed=n) for n in range(5)]
    engine = tiny.core(padding_limit=600)
    run = run_all(engine, [*short, long], [0, 0, 3, 3, 9, 5])
    for request in (*short, long):
        assert run.tokens[request.id] == reference(request)


def test_rows_that_grow_apart_are_separated_while_they_run() -> None:
    run = Run(tiny.core(padding_limit=100))
    growing = greedy([1], 300)
    run.add(growing)
    for _ in range(150):
        run.step()
    short = greedy([2], 20)
    run.add(short)
    run.step()
    run.step()
    assert [len(bucket.decoding.rows) for bucket in run.core.scheduler.buckets] == [1, 1]
    run.finish()
    assert run.tokens[growing.id] == reference(growing)
    assert run.tokens[short.id] == reference(short)


def test_seeded_output_is_the_same_alone_and_in_a_batch() -> None:
    request = seeded([5, 6, 7], 40, seed=123, temperature=1.2, top_p=0.9)
    alone = run_all(tiny.core(), [request]).tokens[request.id]
    company = mixed_requests(9, seed=3)
    together = run_all(tiny.core(max_batch_size=16), [*company, request], [0, 1, 2, 3, 4, 5, 6, 7, 8, 4])
    assert together.tokens[request.id] == alone


def test_unseeded_requests_differ() -> None:
    requests = [Request((1, 2, 3), SamplingParams(max_tokens=30)) for _ in range(4)]
    run = run_all(tiny.core(), requests)
    assert len({tuple(run.tokens[request.id]) for request in requests}) == 4


def test_a_long_prompt_never_stalls_running_rows_for_more_than_a_chunk() -> None:
    run = Run(tiny.core(prefill_chunk=32))
    running = greedy([1, 2, 3], 200)
    run.add(running)
    run.step()
    run.add(greedy(list(range(60)) * 20, 3))
    while run.core.scheduler.waiting or run.core.scheduler.prefilling:
        tokens = len(run.tokens[running.id])
        prompt_tokens = run.core.stats.prompt_tokens
        run.step()
        assert len(run.tokens[running.id]) > tokens
        assert run.core.stats.prompt_tokens - prompt_tokens <= 32


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it() -> None:
    run = Run(tiny.core(prefill_chunk=32))
    long, short = greedy([7] * 1000, 2), greedy([1, 2, 3, 4], 2)
    run.add(long)
    run.add(short)
    run.step()
    run.step()
    assert run.tokens[short.id]
    assert not run.tokens[long.id]


def test_the_batch_never_exceeds_its_limit_and_serves_in_order() -> None:
    run = Run(tiny.core(max_batch_size=3))
    requests = [greedy([n + 1], 4) for n in range(8)]
    for request in requests:
        run.add(request)
    finished: list[int] = []
    while not run.core.idle:
        finished += [o.request_id for o in run.step() if o.finish_reason]
        assert run.active <= 3
    assert [sorted(finished[:3]), sorted(finished[3:6])] == [
        sorted(r.id for r in requests[:3]),
        sorted(r.id for r in requests[3:6]),
    ]


@pytest.mark.slow
def test_rows_that_outgrow_the_token_budget_lose_nothing() -> None:
    requests = [greedy([n + 1] * 30, 150) for n in range(4)]
    engine = tiny.core(max_batch_tokens=500, prefix_cache_tokens=0)
    run = run_all(engine, requests)
    for request in requests:
        assert run.tokens[request.id] == reference(request)
    assert engine.stats.prompt_tokens > 4 * 29, "some row must have been prefilled twice"


def test_a_request_larger_than_the_budget_runs_alone() -> None:
    request = greedy([3] * 300, 5)
    run = run_all(tiny.core(max_batch_tokens=100), [greedy([1], 5), request, greedy([2], 5)])
    assert run.tokens[request.id] == reference(request)


@pytest.mark.parametrize("ragged", [Ragged(), None], ids=["ragged", "mlx-lm's caches"])
def test_cancelling_frees_the_row_at_once_and_leaves_the_others_alone(ragged: Ragged | None) -> None:
    run = Run(tiny.core(ragged=ragged))
    requests = [greedy([n + 1, n + 2], 20) for n in range(4)]
    for request in requests:
        run.add(request)
    for _ in range(5):
        run.step()
    run.gather(run.core.cancel(requests[1].id))
    assert run.active == 3
    assert run.reason(requests[1]) is FinishReason.CANCELLED
    run.finish()
    for request in (requests[0], requests[2], requests[3]):
        assert run.tokens[request.id] == reference(request)


def test_cancelling_works_while_waiting_and_while_prefilling() -> None:
    run = Run(tiny.core(max_batch_size=1, prefill_chunk=8))
    prefilling, waiting = greedy([1] * 100, 5), greedy([2], 5)
    run.add(prefilling)
    run.add(waiting)
    run.step()
    for request in (waiting, prefilling):
        run.gather(run.core.cancel(request.id))
        assert run.reason(request) is FinishReason.CANCELLED
    assert run.core.idle


def test_cancelling_an_ended_or_unknown_request_is_harmless() -> None:
    request = greedy([1], 2)
    run = run_all(tiny.core(), [request])
    assert run.core.cancel(request.id) == []
    assert run.core.cancel(10**9) == []


def test_eos_and_stop_tokens_end_a_row_and_are_not_part_of_its_tokens() -> None:
    plain = reference(greedy([4, 5], 12))
    eos = plain[5]
    cut = plain[: plain.index(eos)]
    stopped, ignoring, own = (
        greedy([4, 5], 12),
        greedy([4, 5], 12, ignore_eos=True),
        greedy([4, 5], 12, ignore_eos=True, stop_token_ids=(eos,)),
    )
    run = run_all(tiny.core(eos=[eos]), [stopped, ignoring, own])
    for request in (stopped, own):
        assert run.tokens[request.id] == cut
        assert run.reason(request) is FinishReason.STOP
        assert run.outputs[request.id][-1].stop_token == eos
    assert run.tokens[ignoring.id] == plain


def test_min_tokens_holds_the_stop_tokens_back() -> None:
    plain = reference(greedy([4, 5], 12))
    request = greedy([4, 5], 12, min_tokens=8)
    run = run_all(tiny.core(eos=[plain[2]]), [request])
    assert len(run.tokens[request.id]) >= 8
    assert run.tokens[request.id] == reference(request, eos=[plain[2]])


def test_max_tokens_zero_scores_the_prompt_and_generates_nothing() -> None:
    request = greedy([9, 8, 7], 0, prompt_logprobs=2)
    run = run_all(tiny.core(), [request, greedy([1], 3)])
    assert run.tokens[request.id] == []
    assert run.reason(request) is FinishReason.LENGTH


@pytest.mark.parametrize("prefill_chunk", [4, 1000])
def test_prompt_logprobs_are_those_of_one_forward_over_the_prompt(prefill_chunk: int) -> None:
    prompt = [int(t) for t in np.random.default_rng(0).integers(0, tiny.VOCAB, 30)]
    request = greedy(prompt, 3, prompt_logprobs=3)
    run = run_all(tiny.core(prefill_chunk=prefill_chunk), [request, greedy([1] * 20, 3)])
    (scored,) = [o.prompt_logprobs for o in run.outputs[request.id] if o.prompt_logprobs is not None]
    logits = tiny.model()(mx.array([prompt]))[0]
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    assert scored[0] is None
    assert len(scored) == len(prompt)
    for place, (token, entry) in enumerate(zip(prompt[1:], scored[1:], strict=True)):
        assert entry is not None
        assert entry.token == token
        assert entry.logprob == pytest.approx(expected[place, token], abs=1e-4)
        assert [t for t, _ in entry.top] == list(np.argsort(-expected[place], kind="stable")[:3])


def test_logprobs_come_with_every_token_and_are_the_models_own() -> None:
    request = seeded([1, 2, 3], 10, seed=5, temperature=2.0, logprobs=4, presence_penalty=1.0)
    run = run_all(tiny.core(), [request, greedy([5], 12)])
    scored = [entry for output in run.outputs[request.id] for entry in output.logprobs]
    assert [entry.token for entry in scored] == run.tokens[request.id]
    tokens = [*request.prompt, *run.tokens[request.id]]
    logits = tiny.model()(mx.array([tokens]))[0]
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for place, entry in enumerate(scored):
        row = expected[len(request.prompt) - 1 + place]
        assert entry.logprob == pytest.approx(row[entry.token], abs=1e-4)
        assert len(entry.top) == 4


def test_a_failing_prefill_ends_its_own_rows_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny.core())
    healthy = greedy([1, 2], 10)
    run.add(healthy)
    run.step()
    broken = greedy([3, 4, 5], 10)
    run.add(broken)
    with monkeypatch.context() as patch:
        patch.setattr(run.core.target, "prefill", lambda *_: (_ for _ in ()).throw(MemoryError("no memory")))
        run.step()
    assert run.reason(broken) is FinishReason.ERROR
    assert "no memory" in (run.outputs[broken.id][-1].error or "")
    run.finish()
    assert run.tokens[healthy.id] == reference(healthy)


def test_the_engine_goes_on_after_a_failed_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny.core())
    lost = greedy([1, 2], 10)
    run.add(lost)
    run.step()
    with monkeypatch.context() as patch:
        patch.setattr(run.core.target, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        run.step()
    assert run.reason(lost) is FinishReason.ERROR
    later = greedy([3], 5)
    run.add(later)
    run.finish()
    assert run.tokens[later.id] == reference(later)


def test_changed_settings_take_effect_without_losing_a_request() -> None:
    run = Run(tiny.core(max_batch_size=4))
    requests = [greedy([n + 1], 20) for n in range(6)]
    for request in requests:
        run.add(request)
    run.step()
    assert run.active == 4
    run.core.config = run.core.config.model_copy(update={"max_batch_size": 2})
    run.finish()
    for request in requests:
        assert run.tokens[request.id] == reference(request)
