"""A request that begins like an earlier one reads only the rest, and its output cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.tiny import Run, draft_model, greedy, reference, run_all, seeded

from parallm_openai.engine.cache.blocks import BlockHashes
from parallm_openai.engine.cache.prefix import SHORTEST_PREFIX, Prefix, PrefixCache
from parallm_openai.engine.cache.ragged import RaggedCache
from parallm_openai.engine.request import FinishReason, Request
from parallm_openai.engine.row import TARGET

SYSTEM = [n * n % tiny.VOCAB for n in range(50)]
ROOMY = 10**6


def prefix(tokens: Sequence[int]) -> Prefix:
    """A stored prefix without its keys and values: the index looks at its tokens alone."""
    return Prefix.of(tokens, BlockHashes(), {})


def match(cache: PrefixCache, tokens: Sequence[int]) -> tuple[Prefix | None, int]:
    found = cache.match(tokens[:-1], BlockHashes())
    return found.prefix, found.length


def should_store(cache: PrefixCache, tokens: Sequence[int], budget: int) -> bool:
    return cache.should_store(tokens, BlockHashes(), budget)


def cached(run: Run, request: Request) -> int:
    return sum(output.cached_prompt_tokens for output in run.outputs[request.id])


def turn(run: Run, request: Request, more: list[int]) -> Request:
    """The chat's next turn: all that was said, and something new."""
    return greedy([*request.prompt, *run.tokens[request.id], *more], 12)


@pytest.mark.parametrize("drafter", [tiny.Drafter, lambda: draft_model(0.0), lambda: draft_model(0.3)])
def test_a_chats_next_turn_reads_only_what_is_new(drafter: type[tiny.Drafter]) -> None:
    run = Run(tiny.core(drafter, draft_length=4))
    request = greedy(SYSTEM, 12)
    run.add(request)
    run.finish()
    assert cached(run, request) == 0
    for number in range(4):
        read = run.core.stats.prompt_tokens
        request = turn(run, request, [number, 5, 9])
        run.add(request)
        run.finish()
        assert run.tokens[request.id] == reference(request)
        assert cached(run, request) >= len(request.prompt) - 3 - 1
        # The three, and the last generated one, which was never computed.
        assert run.core.stats.prompt_tokens - read <= 4


def test_requests_with_one_system_prompt_share_it_while_the_first_still_runs() -> None:
    run = Run(tiny.core())
    first = greedy([*SYSTEM, 1], 60)
    run.add(first)
    run.step()
    run.step()
    others = [seeded([*SYSTEM, n, n + 1], 20, seed=n) for n in range(3)]
    for request in others:
        run.add(request)
    run.finish()
    # The one whose next token is the first one's too shares that as well.
    assert [cached(run, request) for request in others] == [len(SYSTEM) + (n == 1) for n in range(3)]
    for request in (first, *others):
        assert run.tokens[request.id] == reference(request)


def test_a_perfect_draft_goes_on_where_it_had_read_to() -> None:
    run = Run(tiny.core(lambda: draft_model(0.0), draft_length=4))
    request = greedy(SYSTEM, 20)
    run.add(request)
    run.finish()
    request = turn(run, request, [7])
    run.add(request)
    run.finish()
    assert run.accepted(request) == run.drafted(request) > 0


def test_the_same_prompt_again_reads_its_last_token() -> None:
    request, again = seeded(SYSTEM, 20, seed=3), seeded(SYSTEM, 20, seed=3)
    run = Run(tiny.core())
    run.add(request)
    run.finish()
    read = run.core.stats.prompt_tokens
    run.add(again)
    run.finish()
    assert run.core.stats.prompt_tokens == read + 1
    assert run.tokens[again.id] == run.tokens[request.id]
    assert cached(run, again) == len(SYSTEM) - 1


def test_choices_of_one_prompt_read_it_once() -> None:
    run = Run(tiny.core(prefill_chunk=16))
    choices = [seeded(SYSTEM, 20, seed=n) for n in range(4)]
    for request in choices:
        run.add(request)
    run.finish()
    # The others compute its last token, after which each draws its own.
    assert run.core.stats.prompt_tokens == len(SYSTEM) + 3
    assert [cached(run, request) for request in choices] == [0, *[len(SYSTEM) - 1] * 3]
    for request in choices:
        assert run.tokens[request.id] == reference(request)


def test_nobody_waits_behind_a_request_that_waits_for_anothers_prompt() -> None:
    run = Run(tiny.core(prefill_chunk=16))
    reading, waiting, other = greedy(SYSTEM, 5), greedy([*SYSTEM, 1], 5), greedy([5, 6, 7], 5)
    for request in (reading, waiting, other):
        run.add(request)
    run.step()
    assert [row.request for row in run.core.scheduler.waiting] == [waiting]
    assert run.tokens[other.id]
    run.finish()
    for request in (reading, waiting, other):
        assert run.tokens[request.id] == reference(request)


def test_a_request_with_more_of_its_own_to_read_waits_for_nobody() -> None:
    run = Run(tiny.core(prefill_chunk=16))
    for request in (greedy(SYSTEM, 5), greedy([*SYSTEM, *[7] * 60], 5)):
        run.add(request)
    run.step()
    assert not run.core.scheduler.waiting


def test_a_request_does_not_wait_for_a_prompt_that_will_not_be_stored() -> None:
    run = Run(tiny.core(prefill_chunk=16, prefix_cache_tokens=48))
    for request in (greedy(SYSTEM, 5), greedy(SYSTEM, 5)):
        run.add(request)
    run.step()
    assert not run.core.scheduler.waiting


def test_prompt_logprobs_are_computed_for_every_token() -> None:
    first, scored = greedy(SYSTEM, 5), greedy(SYSTEM, 5, prompt_logprobs=1)
    run = Run(tiny.core())
    for request in (first, scored):
        run.add(request)
        run.finish()
    assert cached(run, scored) == 0
    (prompt,) = [o.prompt_logprobs for o in run.outputs[scored.id] if o.prompt_logprobs is not None]
    assert len(prompt) == len(SYSTEM)


def test_a_cancelled_request_leaves_what_it_has_read() -> None:
    run = Run(tiny.core())
    request = greedy(SYSTEM, 100)
    run.add(request)
    for _ in range(10):
        run.step()
    run.gather(run.core.cancel(request.id))
    assert run.reason(request) is FinishReason.CANCELLED
    after = turn(run, request, [1, 2])
    run.add(after)
    run.finish()
    assert cached(run, after) > len(SYSTEM)
    assert run.tokens[after.id] == reference(after)


@pytest.mark.slow
def test_a_row_that_was_sent_back_does_not_read_again_what_it_had() -> None:
    requests = [greedy([n + 1] * 40, 150) for n in range(4)]
    engine = tiny.core(max_batch_tokens=500)
    run = run_all(engine, requests)
    for request in requests:
        assert run.tokens[request.id] == reference(request)
        assert cached(run, request) == 0
    preempted = engine.stats.prompt_tokens - 4 * 40
    assert 1 <= preempted <= 4, "one token for each time that a row was sent back"


@pytest.mark.parametrize("settings", [{"prefix_cache_tokens": 0}, {"ragged": None}])
def test_nothing_is_stored_if_the_budget_is_none_or_state_cannot_be_cut(settings: dict[str, Any]) -> None:
    engine = tiny.core(**settings)
    first, second = greedy(SYSTEM, 5), greedy(SYSTEM, 5)
    run = run_all(engine, [first, second], [0, 10])
    assert cached(run, second) == 0
    assert run.tokens[second.id] == reference(second)
    assert engine.scheduler.prefixes.report()["sequences"] == 0


def test_a_smaller_budget_frees_what_no_longer_fits() -> None:
    engine = tiny.core()
    run_all(engine, [greedy(SYSTEM, 5), greedy([9, *SYSTEM], 5)])
    # The last token of each was never read.
    assert engine.scheduler.prefixes.report()["tokens"] == (50 + 4) + (51 + 4)
    engine.config = engine.config.model_copy(update={"prefix_cache_tokens": 0})
    run_all(engine, [greedy([1], 2)])
    assert engine.scheduler.prefixes.report()["tokens"] == 0


def test_if_memory_runs_out_stored_prefixes_go_and_the_rows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny.core())
    first, second = greedy(SYSTEM, 5), greedy([9, *SYSTEM], 5)
    run.add(first)
    run.finish()
    monkeypatch.setattr(RaggedCache, "copy_row", lambda *_: (_ for _ in ()).throw(RuntimeError("[malloc] no memory")))
    run.add(second)
    run.finish()
    assert run.tokens[second.id] == reference(second)
    assert run.core.scheduler.prefixes.report()["sequences"] == 0


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=SHORTEST_PREFIX + 8)


@given(known=st.lists(tokens, max_size=6), wanted=tokens)
def test_the_longest_shared_beginning_is_found(known: list[list[int]], wanted: list[int]) -> None:
    cache = PrefixCache()
    head = [2] * (SHORTEST_PREFIX - 4)
    for sequence in known:
        if should_store(cache, [*head, *sequence], ROOMY):
            cache.store(prefix([*head, *sequence]), ROOMY)
    wanted = [*head, *wanted]
    usable = [
        n
        for sequence in known
        if len(head) + len(sequence) >= SHORTEST_PREFIX
        for n in range(SHORTEST_PREFIX, len(wanted))
        if [*head, *sequence][:n] == wanted[:n]
    ]
    found, length = match(cache, wanted)
    assert length == max(usable, default=0)
    assert (found is not None) == bool(usable)
    assert found is None or list(found.tokens[:length]) == wanted[:length]


def test_a_sequence_takes_the_place_of_what_it_continues() -> None:
    cache = PrefixCache()
    for tokens in (SYSTEM, [*SYSTEM, 1, 2], [*SYSTEM, 3]):
        cache.store(prefix(tokens), ROOMY)
    assert cache.report()["sequences"] == 2
    assert not should_store(cache, SYSTEM, ROOMY)


def test_the_least_recently_used_make_room() -> None:
    cache, budget = PrefixCache(), 2 * 51
    first, second, third = ([n, *SYSTEM] for n in (1, 2, 3))
    cache.store(prefix(first), budget)
    cache.store(prefix(second), budget)
    found, length = match(cache, [*first, 5])
    assert found is not None
    cache.use(found, length)
    cache.store(prefix(third), budget)
    assert [match(cache, [*sequence, 5])[1] for sequence in (first, second, third)] == [51, 0, 51]


def test_what_is_larger_than_the_budget_drives_nothing_out() -> None:
    cache = PrefixCache()
    assert not should_store(cache, [1] * 101, 100)
    assert should_store(cache, [1] * 100, 100)


def test_a_stored_prefix_is_a_copy_that_later_rows_cannot_change() -> None:
    run = Run(tiny.core())
    first = greedy(SYSTEM, 4)
    run.add(first)
    run.finish()
    found, length = match(run.core.scheduler.prefixes, [*SYSTEM, *run.tokens[first.id], 1])
    assert found is not None
    before = [np.array(keys[:, :, :length]) for keys in stored_keys(found)]
    for request in [greedy([*SYSTEM, 1], 30), greedy([5] * 60, 30)]:
        run.add(request)
    run.finish()
    after = [np.array(keys[:, :, :length]) for keys in stored_keys(found)]
    assert len(before) == 2
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def stored_keys(found: Prefix) -> list[Any]:
    cache = found.rows[TARGET].cache
    assert isinstance(cache, RaggedCache)
    return [layer.keys for layer in cache.layers]


def test_many_requests_of_one_prompt_read_it_once_whoever_stands_between_them() -> None:
    """Strangers of three kinds: with the same system prompt, with nothing in common, and too short to share."""
    prompt = [*SYSTEM, *[7, 11, 13] * 20]
    strangers = [greedy([*SYSTEM, n], 4) for n in range(3)] + [greedy([n + 20] * 60, 4) for n in range(3)]
    choices = [seeded(prompt, 5, seed=n) for n in range(12)]
    run = Run(tiny.core(prefill_chunk=16, max_batch_size=6))
    order = [strangers[0], choices[0], strangers[3], *choices[1:6], greedy([1, 2], 3), *strangers[4:], *choices[6:]]
    for request in order:
        run.add(request)
    run.finish()
    read_alone = sum(len(request.prompt) for request in order if request not in choices)
    shared = run.core.stats.prompt_tokens - read_alone
    assert shared <= len(prompt) + len(choices) - 1
    for request in order:
        assert run.tokens[request.id] == reference(request)


def test_a_long_prompts_many_choices_are_looked_up_without_reading_it_again() -> None:
    """A lookup is a binary search over the row's block hashes, of which each is made once."""
    prompt = [n * n % 61 for n in range(8000)]
    blocks = BlockHashes()
    cache = PrefixCache()
    cache.store(prefix(prompt), ROOMY)
    assert cache.match(prompt[:-1], blocks).length == 7999
    known = list(blocks.hashes)
    assert cache.match(prompt[:4000], blocks).length == 4000
    assert all(old is new for old, new in zip(known, blocks.hashes, strict=True))
