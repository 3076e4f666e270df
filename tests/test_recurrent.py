"""Hybrid and recurrent models speculate and share prefixes as others do, and their output cannot tell."""

from __future__ import annotations

import pytest
from support import tiny
from support.kinds import KINDS
from support.tiny import Run, greedy, reference, run_all, seeded

from parallm_openai.engine.cache.blocks import BlockHashes
from parallm_openai.engine.cache.ragged import RaggedCache
from parallm_openai.engine.cache.states import MOST_KEPT
from parallm_openai.engine.request import Request

RECURRENT = [kind for kind in KINDS if kind != "dense"]

SYSTEM = [n * n % tiny.VOCAB for n in range(50)]


pytestmark = pytest.mark.usefixtures("no_step_fails")


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


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_row_moves_to_another_batch_without_what_was_rejected_of_its_draft(kind: str) -> None:
    run = Run(KINDS[kind].core("hostile draft", draft_length=5, padding_limit=0))
    long, *short = [greedy([3] * 40, 40), greedy([1, 2], 40), greedy([5], 60)]
    run.add(long)
    for _ in range(6):
        run.step()
    for request in short:
        run.add(request)
    run.finish()
    for request in (long, *short):
        assert run.tokens[request.id] == reference(request, target=KINDS[kind].model)


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


def test_a_recurrent_draft_of_a_dense_target_knows_the_chat_so_far() -> None:
    dense, draft = KINDS["dense"], KINDS["linear attention"].draft_model(0.1)
    engine = tiny.core(lambda: draft, target=dense.model, ragged=dense.ragged, draft_length=3)
    run = Run(engine)
    first = ended(run, greedy(SYSTEM, 12))
    for prompt in (SYSTEM, [*SYSTEM, *run.tokens[first.id], 4, 5]):
        run.add(request := greedy(prompt, 12))
        run.step()
        [row] = engine.rows.values()
        assert row.computed["draft"].start == 0, "the draft model has begun anew without its context"
        run.finish()
        assert cached(run, request) >= len(SYSTEM) - 1
        assert run.tokens[request.id] == reference(request, target=dense.model)
