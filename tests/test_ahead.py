"""Plain steps that are sent off before the host has seen the tokens of the last: the same tokens, one step earlier."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.tiny import Run, Sums, draft_model, greedy, reference, run_all, seeded

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.request import Request
from parallm_openai.engine.row import DRAFT
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.sampling import sampler
from parallm_openai.engine.speculation.draft_model import DraftModel


def mixed(count: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    made = []
    for number in range(count):
        prompt = [rng.randrange(tiny.VOCAB) for _ in range(rng.choice([1, 3, 40, 90]))]
        length = rng.randrange(1, 30)
        kind = rng.randrange(6)
        if kind == 0:
            made.append(greedy(prompt, length))
        elif kind == 1:
            made.append(greedy(prompt, length, grammar=Sums(3, 40)))
        else:
            kinds: list[dict[str, Any]] = [{}, {"top_p": 0.8}, {"logprobs": 2}, {"presence_penalty": 0.7}]
            changes = kinds[kind - 2]
            made.append(seeded(prompt, length, number, temperature=1.1, min_tokens=length // 2, **changes))
    return made


@pytest.mark.slow
@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 6),
    padding_limit=st.sampled_from([0, 30, 10**9]),
    tokens=st.sampled_from([150, 10**6]),
    drafted=st.booleans(),
)
def test_any_mix_of_requests_gets_what_each_gets_alone(
    seed: int, batch: int, padding_limit: int, tokens: int, drafted: bool
) -> None:
    requests = mixed(8, seed)
    joins = [random.Random(seed).randrange(30) for _ in requests]
    engine = tiny.core(
        (lambda: draft_model(0.3, asynchronous=True)) if drafted else tiny.Drafter,
        eos=[0],
        runs_ahead=True,
        max_batch_size=batch,
        padding_limit=padding_limit,
        max_batch_tokens=tokens,
    )
    run = run_all(engine, requests, joins)
    for request in requests:
        assert run.tokens[request.id] == reference(request, eos=[0])


class Watched(ModelRunner):
    """Notes how many tokens every row has when a forward is sent off, and how many are in flight."""

    def forward(self, batch: Batch, inputs: Inputs, in_flight: int = 0, *, for_good: bool = False) -> tiny.mx.array:
        self.noted = [*getattr(self, "noted", []), (in_flight, [row.generated for row in batch.rows])]
        return super().forward(batch, inputs, in_flight, for_good=for_good)


def test_the_next_forward_is_sent_off_before_the_host_knows_the_token() -> None:
    engine = tiny.core(runs_ahead=True)
    engine.target.__class__ = Watched
    run = Run(engine)
    run.add(greedy([1, 2, 3], 8))
    run.finish()
    # The prompt; then a forward for the pending token, and from then on one more than the host knows of.
    assert engine.target.noted == [(0, [0]), (0, [1]), *[(1, [known]) for known in range(1, 8)]]  # type: ignore[attr-defined]


def test_a_row_that_leaves_takes_nothing_of_its_neighbours_with_it() -> None:
    requests = [greedy([n + 1, 5], 4 + 3 * n) for n in range(5)]
    run = Run(tiny.core(runs_ahead=True))
    for request in requests:
        run.add(request)
    run.step()
    run.step()
    run.gather(run.core.cancel(requests[0].id))
    run.finish()
    for request in requests[1:]:
        assert run.tokens[request.id] == reference(request)


def test_draws_that_are_not_sure_are_drawn_again_and_what_followed_is_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "CONTENDING_BLOCKS", 1)
    monkeypatch.setattr(sampler, "LONG", 3)
    requests = [seeded([n, 2], 40, n, temperature=2.0, top_p=[1.0, 0.95][n % 2]) for n in range(6)]
    run = run_all(tiny.core(runs_ahead=True), requests)
    for request in requests:
        assert run.tokens[request.id] == reference(request)


def test_a_prefix_stored_meanwhile_holds_only_what_is_committed() -> None:
    run = Run(tiny.core(runs_ahead=True))
    first = greedy([n * n % tiny.VOCAB for n in range(50)], 20)
    run.add(first)
    run.finish()
    turn = greedy([*first.prompt, *run.tokens[first.id], 7], 20)
    run.add(turn)
    run.finish()
    assert run.tokens[turn.id] == reference(turn)


def test_speculation_begins_where_plain_steps_have_got_to() -> None:
    run = Run(tiny.core(lambda: draft_model(0.0, asynchronous=True), runs_ahead=True, use_speculative_decoding=False))
    request = greedy([1, 2, 3], 60)
    run.add(request)
    for _ in range(20):
        run.step()
    run.core.config = run.core.config.model_copy(update={"use_speculative_decoding": True, "draft_length": 3})
    run.finish()
    assert run.accepted(request) > 0
    assert run.tokens[request.id] == reference(request)


@pytest.mark.parametrize(("asynchronous", "waits"), [(True, 1), (False, 5)])
def test_a_step_waits_once_for_its_drafts_and_their_verification(asynchronous: bool, waits: int) -> None:
    make = partial(draft_model, 0.0, asynchronous=asynchronous)
    run = run_all(tiny.core(make, draft_length=4), [seeded([n, 2], 41, n, temperature=0.8) for n in range(3)])
    assert run.core.stats.waits == waits * run.core.stats.steps


def test_a_row_that_must_see_its_drafts_is_waited_for() -> None:
    make = partial(draft_model, 0.0, asynchronous=True)
    requests = [greedy([1, 2], 41), greedy([3, 4], 41, presence_penalty=0.1)]
    run = run_all(tiny.core(make, draft_length=4), requests)
    assert run.core.stats.waits == 4 * run.core.stats.steps
    for request in requests:
        assert run.tokens[request.id] == reference(request)


class Reader(DraftModel):
    """Notes what it has read of a row at each place of its cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, tiny.VOCAB, tiny.VOCAB)
        self.read: dict[int, int] = {}

    def _logits(self, batch: Batch, inputs: Inputs, depth: int) -> mx.array:
        begin = batch.rows[0].computed[DRAFT].length
        self.read |= {begin + place: token for place, token in enumerate(sampling.as_ids(inputs.ids[0]))}
        return super()._logits(batch, inputs, depth)


def test_rejected_drafts_are_forgotten_although_plain_steps_follow() -> None:
    drafter = Reader(tiny.draft(3.0))
    run = Run(tiny.core(lambda: drafter, runs_ahead=True, draft_length=4))
    run.add(request := greedy([1, 2, 3], 60))
    while not run.core.idle:
        # The first step in which drafts are made again commits what is on its way.
        length = 4 if run.steps % 7 in (3, 4, 5) else 0
        run.core.config = run.core.config.model_copy(update={"draft_length": length})
        run.step()
        for row in run.core.rows.values():
            length = row.computed[DRAFT].length
            # Its prompt it has read along.
            own = {place: token for place, token in drafter.read.items() if place < length}
            assert own.items() <= dict(enumerate(row.tokens)).items()
    assert run.accepted(request) < run.drafted(request)
