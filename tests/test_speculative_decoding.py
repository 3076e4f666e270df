"""Speculation inside the batch changes how fast tokens come, never which."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import kinds, tiny
from support.kinds import KINDS
from support.strategies import drawn_requests
from support.tiny import DRAFTERS, Run, draft_model, greedy, reference, run_all, seeded

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.row import DRAFT
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.engine.speculation.suffix import SuffixDrafter
from parallm_openai.models.kernels import vector_width
from parallm_openai.settings import Acceptance

pytestmark = pytest.mark.usefixtures("no_step_fails")


@pytest.mark.slow
@settings(max_examples=100)
@given(
    drawn=drawn_requests,
    kind=st.sampled_from(sorted(KINDS)),
    drafter=st.sampled_from(sorted(kinds.DRAFTERS)),
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
        scored = [entry.token for output in run.outputs[request.id] for entry in output.logprobs]
        stops = [output.stop_token for output in run.outputs[request.id] if output.stop_token is not None]
        assert scored == ([*run.tokens[request.id], *stops] if request.params.logprobs is not None else [])


@pytest.mark.slow
@pytest.mark.parametrize("drafter", sorted(DRAFTERS))
@pytest.mark.parametrize("length", range(7))
def test_a_seed_gives_the_same_tokens_for_every_draft_length_and_drafter(drafter: str, length: int) -> None:
    wanted = [seeded([n, n + 1, n + 2], 25, seed=n, temperature=1.0, top_p=0.95) for n in range(4)]
    run = run_all(tiny.core(DRAFTERS[drafter], draft_length=length), wanted)
    for request in wanted:
        assert run.tokens[request.id] == reference(request)


def test_a_draft_that_is_the_target_is_always_accepted_even_when_sampling() -> None:
    engine = tiny.core(lambda: draft_model(0.0), draft_length=5)
    wanted = [seeded([n, 3], 60, seed=n, temperature=1.3, top_p=0.9, presence_penalty=0.5) for n in range(3)]
    run = run_all(engine, wanted)
    report = engine.stats.report()["speculative_stats"]
    assert report["acceptance_rate"] > 0.99
    assert run.steps < 60 / 4


def test_counts_of_drafted_and_accepted_tokens_come_with_the_outputs() -> None:
    request = greedy([1, 2, 3], 30)
    run = run_all(tiny.core(lambda: draft_model(0.0), draft_length=4), [request])
    assert 20 <= run.accepted(request) <= run.drafted(request)


@pytest.mark.parametrize(("length", "most"), [("auto", 3), (6, 6)])
def test_drafts_stay_within_what_one_forward_reads_cheaply_unless_their_length_is_fixed(
    length: int | str, most: int
) -> None:
    request = greedy([3, 1, 4], 60)
    engine = tiny.core(DRAFTERS["perfect draft"], draft_length=length, fast_width=4)
    run = run_all(engine, [request])
    assert max(output.drafted for output in run.outputs[request.id]) == most
    assert run.tokens[request.id] == reference(request)


@pytest.mark.parametrize(
    ("heads", "shared", "width"), [(8, 8, 8), (32, 8, 8), (28, 4, 4), (14, 2, 4), (32, 2, 2), (64, 2, None)]
)
def test_metals_attention_kernel_for_few_queries_bounds_the_width(heads: int, shared: int, width: int | None) -> None:
    assert vector_width({"num_attention_heads": heads, "num_key_value_heads": shared}) == width


def test_use_speculative_false_keeps_one_row_plain_among_others() -> None:
    plain, drafted = greedy([1, 2], 20, use_speculative=False), greedy([3, 4], 20)
    run = run_all(tiny.core(lambda: draft_model(0.0), draft_length=4), [plain, drafted])
    assert run.drafted(plain) == 0
    assert run.drafted(drafted) > 0


def test_a_request_may_speculate_where_the_server_does_not() -> None:
    eager = greedy([3, 4], 20, use_speculative=True)
    engine = tiny.core(lambda: draft_model(0.0), draft_length=4, use_speculative_decoding=False)
    run = run_all(engine, [eager, greedy([1], 20)])
    assert run.drafted(eager) > 0


def test_a_family_that_cannot_roll_back_is_never_drafted_for() -> None:
    request = greedy([1, 2, 3], 20)
    run = run_all(tiny.core(SuffixDrafter, draft_length=4, ragged=None), [request])
    assert run.drafted(request) == 0
    assert run.tokens[request.id] == reference(request)


@pytest.mark.slow
def test_speculation_switched_on_in_mid_stream_picks_rows_up() -> None:
    engine = tiny.core(lambda: draft_model(0.0), draft_length=4, use_speculative_decoding=False)
    run = Run(engine)
    request = greedy([1, 2, 3], 160)
    run.add(request)
    for _ in range(80):
        run.step()
    engine.config = engine.config.model_copy(update={"use_speculative_decoding": True})
    run.finish()
    assert run.tokens[request.id] == reference(request)
    assert run.accepted(request) > 0


def test_a_draft_with_a_smaller_vocabulary_never_reads_an_id_it_has_not_got() -> None:
    small = tiny.model(seed=3, vocab=40)
    engine = tiny.core(lambda: DraftModel(small, 40, tiny.VOCAB), draft_length=3)
    request = seeded([60, 59, 58, 1], 30, seed=1)
    assert run_all(engine, [request]).tokens[request.id] == reference(request)


class Placed(DraftModel):
    """Notes the places at which it reads tokens: one after the last of them."""

    end = 0

    def __init__(self) -> None:
        super().__init__(tiny.draft(0.0), tiny.VOCAB, tiny.VOCAB, context_length=80)
        forward = self.runner.forward

        def noted(batch: Batch, inputs: Inputs, in_flight: int = 0, *, for_good: bool = False) -> mx.array:
            ends = [row.computed[DRAFT].length + count for row, count in zip(batch.rows, inputs.counts, strict=False)]
            self.end = max(self.end, *ends)
            return forward(batch, inputs, in_flight, for_good=for_good)

        self.runner.forward = noted  # type: ignore[method-assign]


@pytest.mark.parametrize("prompt", [3, 78, 200])
def test_a_draft_model_reads_nothing_beyond_its_context(prompt: int) -> None:
    drafter = Placed()
    engine = tiny.core(lambda: drafter, draft_length=6)
    long, short = greedy([n % 7 for n in range(prompt)], 150), greedy([9, 8], 170)
    run = run_all(engine, [long, short])
    assert run.tokens[long.id] == reference(long)
    assert drafter.end <= 80
    assert run.accepted(long) > 0


def test_rejection_leaves_greedy_rows_as_they_are() -> None:
    wanted = [greedy([n, 2], 25) for n in range(4)]
    run = run_all(tiny.core(lambda: draft_model(0.2), speculative_acceptance="rejection"), wanted)
    for request in wanted:
        assert run.tokens[request.id] == reference(request)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", sorted(DRAFTERS))
def test_rejection_works_with_every_parameter_and_drafter(drafter: str) -> None:
    wanted = [
        seeded([n, 2, 3, 2], 25, seed=n, top_p=0.9, top_k=30, frequency_penalty=0.4, logprobs=1) for n in range(4)
    ]
    engine = tiny.core(DRAFTERS[drafter], draft_length=4, speculative_acceptance="rejection")
    run = run_all(engine, [*wanted, greedy([1], 20)])
    for request in wanted:
        assert len(run.tokens[request.id]) == 25


@pytest.mark.slow
@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "with a planted error"])
def test_sampled_output_has_exactly_the_targets_distribution(planted: bool, acceptance: str) -> None:
    """Chi-square over all strings of 3 tokens of a 5-token model; the planted error must be caught.

    With 12,000 samples over 125 strings, a shift of 1.5 % of the mass between tokens at each
    place moves the statistic by several standard deviations. The planted error accepts a
    draft with 10 % probability if the target disagreed; it shows in far fewer samples.
    """
    target = tiny.model(seed=11, vocab=5)
    mx.random.seed(5)
    rough = tiny.model(seed=12, vocab=5)
    engine = tiny.core(
        lambda: DraftModel(rough, 5, 5), target=target, max_batch_size=64, speculative_acceptance=acceptance
    )
    rng = np.random.default_rng(0)
    if planted:
        from parallm_openai.engine import verification

        honest = verification.accepted_count

        def careless(draft: tuple[int, ...], sampled: list[int]) -> int:
            count = honest(draft, sampled)
            if count < len(draft) and rng.random() < 0.1:
                sampled[count] = draft[count]
            return count

    samples = 2_000 if planted else 12_000
    wanted = [Request((1, 2), SamplingParams(max_tokens=3, seed=n, temperature=1.0)) for n in range(samples)]
    run = Run(engine)
    patch = pytest.MonkeyPatch()
    if planted:
        patch.setattr(verification, "accepted_count", careless)
    for request in wanted:
        run.add(request)
    while not engine.idle:
        engine.config = engine.config.model_copy(update={"draft_length": int(rng.integers(0, 4))})
        run.step()
    patch.undo()
    counts = Counter(tuple(run.tokens[request.id]) for request in wanted)
    score = _z_score(counts, _string_probabilities(target, (1, 2), 3), samples)
    if planted:
        assert score > 6
    else:
        assert abs(score) < 4


def _string_probabilities(target: object, prompt: tuple[int, ...], length: int) -> dict[tuple[int, ...], float]:
    known: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        prefixes = list(known)
        logits = target(mx.array([[*prompt, *prefix] for prefix in prefixes]))[:, -1]  # type: ignore[operator]
        following = np.array(mx.softmax(logits, axis=-1))
        known = {
            (*prefix, token): known[prefix] * float(following[i, token])
            for i, prefix in enumerate(prefixes)
            for token in range(following.shape[1])
        }
    return known


def _z_score(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float], samples: int) -> float:
    """Standardised chi-square; cells expecting fewer than 5 are pooled."""
    statistic, cells, rare_seen, rare_expected = 0.0, 0, 0, 0.0
    for string, probability in expected.items():
        mean = probability * samples
        if mean < 5:
            rare_seen += counts[string]
            rare_expected += mean
        else:
            statistic += (counts[string] - mean) ** 2 / mean
            cells += 1
    if rare_expected > 0:
        statistic += (rare_seen - rare_expected) ** 2 / max(rare_expected, 1e-9)
        cells += 1
    freedom = cells - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


class Late(SuffixDrafter):
    """Notes which requests had been given a token before it was asked for drafts."""

    def __init__(self) -> None:
        super().__init__()
        self.delivered: list[int] = []
        self.known: list[list[int]] = []

    def propose(
        self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance, copied: Sequence[bool] = ()
    ) -> Drafts:
        self.known.append(list(self.delivered))
        return super().propose(batch, lengths, acceptance, copied)


def test_a_first_token_goes_out_before_anything_is_drafted() -> None:
    drafter = Late()
    engine = tiny.core(lambda: drafter, draft_length=3)
    engine.deliver = lambda outputs: drafter.delivered.extend(output.request_id for output in outputs)
    first, second = greedy([1, 2, 3], 20), greedy([4, 5], 20)
    engine.add(first)
    engine.step()
    assert drafter.known == [[first.id]]
    engine.add(second)
    engine.step()
    assert drafter.known[-1] == [first.id, second.id]


def test_a_request_for_one_token_is_never_decoded() -> None:
    run = run_all(tiny.core(lambda: tiny.draft_model(0.0), draft_length=3), [greedy([5, 6, 7], 1)])
    assert run.core.stats.steps == 0
    assert not run.core.rows
