"""Hybrid and recurrent models speculate and share prefixes as others do, and their output cannot tell."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.kinds import DRAFTERS, KINDS
from support.strategies import drawn_requests
from support.tiny import Run, greedy, reference, run_all, seeded

from parallm_openai.engine.cache.blocks import BlockHashes
from parallm_openai.engine.cache.ragged import RaggedCache
from parallm_openai.engine.cache.states import MOST_KEPT
from parallm_openai.engine.request import Request, SamplingParams

RECURRENT = [kind for kind in KINDS if kind != "dense"]

SYSTEM = [n * n % tiny.VOCAB for n in range(50)]


@pytest.fixture(autouse=True)
def no_step_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The engine would recover from a step that failed, and hide it."""
    yield
    assert [record.message for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=drawn_requests,
    kind=st.sampled_from(RECURRENT),
    drafter=st.sampled_from(sorted(DRAFTERS)),
    length=st.sampled_from(["auto", "auto", 1, 3, 6]),
    batch=st.integers(1, 5),
    padding_limit=st.sampled_from([0, 20, 10**9]),
    chunk=st.sampled_from([3, 16, 256]),
    cancel=st.booleans(),
    # A system prompt that all share: those that come later find it read.
    system=st.sampled_from([0, 0, 40]),
    # Rows are sent back to the queue if the budget is small.
    budget=st.sampled_from([80, 10**6]),
    ahead=st.booleans(),
    # What a further forward costs in tokens: prompts of different lengths are padded to share one if that is much.
    forward_tokens=st.sampled_from([4, 1000]),
)
def test_any_mix_of_requests_equals_the_slow_single_row_decoder(
    drawn: list[tuple[list[int], SamplingParams, int]],
    kind: str,
    drafter: str,
    length: int | str,
    batch: int,
    padding_limit: int,
    chunk: int,
    cancel: bool,
    system: int,
    budget: int,
    ahead: bool,
    forward_tokens: int,
) -> None:
    wanted = [Request((*range(system), *prompt), chosen) for prompt, chosen, _ in drawn]
    engine = KINDS[kind].core(
        drafter,
        draft_length=length,
        eos=[0],
        padding_limit=padding_limit,
        max_batch_size=batch,
        max_batch_tokens=budget,
        prefill_chunk=chunk,
        runs_ahead=ahead,
        forward_tokens=forward_tokens,
    )
    if cancel:
        engine.add(victim := greedy([1, 2, 3], 200))
        for _ in range(3):
            engine.step()
        engine.cancel(victim.id)
    run = run_all(engine, wanted, [join for _, _, join in drawn])
    for request in wanted:
        assert run.tokens[request.id] == reference(request, eos=[0], target=KINDS[kind].model)


@pytest.mark.parametrize("kind", RECURRENT)
def test_rows_with_drafts_and_prompts_of_different_lengths_share_forwards(kind: str) -> None:
    engine = KINDS[kind].core("suffix", draft_length=3, max_batch_size=5, prefill_chunk=8, forward_tokens=1000)
    wanted = [
        *(greedy([n, n + 1, n + 2] * (1 + 3 * n), 30) for n in range(3)),
        *(seeded([n, n + 1, n + 2, *[n] * n], 25, seed=n, top_p=0.95) for n in range(4)),
    ]
    run = run_all(engine, wanted, [0, 0, 2, 5, 5, 9, 9])
    for request in wanted:
        assert run.tokens[request.id] == reference(request, target=KINDS[kind].model)


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_draft_that_is_the_target_is_always_accepted(kind: str) -> None:
    """So its states, too, are rolled back to what counts, token by token."""
    engine = KINDS[kind].core("perfect draft", draft_length=5)
    run = run_all(engine, [seeded([n, 3], 40, seed=n, temperature=1.3, top_p=0.9) for n in range(3)])
    assert engine.stats.report()["speculative_stats"]["acceptance_rate"] > 0.99
    assert run.steps < 40 / 4


def cached(run: Run, request: Request) -> int:
    return sum(output.cached_prompt_tokens for output in run.outputs[request.id])


def ended(run: Run, request: Request) -> Request:
    run.add(request)
    run.finish()
    return request


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("drafter", ["none", "perfect draft", "fair draft", "suffix"])
def test_a_chats_next_turn_reads_only_what_is_new(kind: str, drafter: str) -> None:
    run = Run(KINDS[kind].core(drafter, draft_length=4))
    request = ended(run, greedy(SYSTEM, 12))
    for number in range(2 * MOST_KEPT):
        request = ended(run, greedy([*request.prompt, *run.tokens[request.id], number, 5, 9], 12))
        assert cached(run, request) == len(request.prompt) - 3 - 1
        assert run.tokens[request.id] == reference(request, target=KINDS[kind].model)


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_same_prompt_again_reads_no_more_than_a_block(kind: str) -> None:
    run = Run(KINDS[kind].core())
    ended(run, greedy(SYSTEM, 12))
    again = ended(run, greedy(SYSTEM, 12))
    assert cached(run, again) == 48
    assert run.tokens[again.id] == reference(again, target=KINDS[kind].model)


def test_a_third_request_finds_what_the_first_two_have_in_common() -> None:
    run = Run(KINDS["linear attention"].core())
    requests = [ended(run, greedy([*SYSTEM, *[n] * 20], 12)) for n in range(3)]
    # The first kept its state at its own end only; the second, having found no earlier one, where they part.
    assert [cached(run, request) for request in requests] == [0, 0, 48]
    for request in requests:
        assert run.tokens[request.id] == reference(request, target=KINDS["linear attention"].model)


def test_a_changed_question_goes_on_from_an_earlier_turn() -> None:
    run = Run(KINDS["short convolution"].core())
    first = ended(run, greedy(SYSTEM, 12))
    ended(run, greedy([*first.prompt, *run.tokens[first.id], 1, 2, 3], 12))
    changed = ended(run, greedy([*first.prompt, *run.tokens[first.id], 7, 8, 9], 12))
    assert cached(run, changed) == len(changed.prompt) - 4
    assert run.tokens[changed.id] == reference(changed, target=KINDS["short convolution"].model)


def test_choices_of_one_prompt_wait_for_its_states() -> None:
    run = Run(KINDS["state space"].core(prefill_chunk=16))
    choices = [seeded(SYSTEM, 20, seed=n) for n in range(4)]
    for request in choices:
        run.add(request)
    run.finish()
    assert [cached(run, request) for request in choices] == [0, 48, 48, 48]
    for request in choices:
        assert run.tokens[request.id] == reference(request, target=KINDS["state space"].model)


def test_states_count_in_the_budget_of_the_prefix_cache() -> None:
    run = Run(KINDS["recurrent"].core(prefix_cache_tokens=10**6))
    request = ended(run, greedy(SYSTEM, 12))
    prefixes = run.core.scheduler.prefixes
    stored = prefixes.match([*request.prompt, *run.tokens[request.id]], BlockHashes())
    assert stored.prefix is not None
    cache = stored.prefix.rows["target"].cache
    assert isinstance(cache, RaggedCache)
    assert prefixes.size == len(stored.prefix.tokens) + cache.state_tokens > len(stored.prefix.tokens)
