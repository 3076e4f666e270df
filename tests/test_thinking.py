"""Thoughts stay within their budget, and a grammar for the answer begins after them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_speculative_decoding import DRAFTERS
from tiny import greedy, run_all, seeded

from parallm_openai.engine.constraint import Mask
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.reasoning import ThinkingMarks
from parallm_openai.text.thinking import ThinkingGrammar

EOS = 0
SINGLE = ThinkingMarks("<think>", "</think>", (50,), (51,))
DOUBLE = ThinkingMarks("<a><b>", "<c><d>", (50, 52), (51, 53))


def grammar(marks: ThinkingMarks, inside: bool, budget: int | None, answer: bool) -> ThinkingGrammar:
    return ThinkingGrammar(marks, inside, tiny.VOCAB, (EOS,), budget, tiny.Sums(3, 6) if answer else None)


def tokens_of(mask: Mask | None) -> set[int]:
    if mask is None:
        return set(range(tiny.VOCAB))
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return {int(token) for token in np.flatnonzero(bits[: tiny.VOCAB])}


@given(
    marks=st.sampled_from([SINGLE, DOUBLE]),
    inside=st.booleans(),
    budget=st.sampled_from([None, 0, 1, 5]),
    answer=st.booleans(),
    luck=st.randoms(use_true_random=False),
)
def test_drafts_are_judged_as_they_would_be_committed(
    marks: ThinkingMarks, inside: bool, budget: int | None, answer: bool, luck: random.Random
) -> None:
    ahead, behind = (grammar(marks, inside, budget, answer).matcher() for _ in range(2))
    drafts: tuple[int, ...] = ()
    for _ in range(25):
        if ahead.finished:
            break
        allowed = tokens_of(ahead.allowed(()))
        assert tokens_of(behind.allowed(drafts)) == allowed
        likely = [token for token in (*marks.start_tokens, *marks.end_tokens) if token in allowed]
        token = luck.choice(likely if likely and luck.random() < 0.3 else sorted(allowed))
        ahead.advance(token)
        drafts += (token,)
        if luck.random() < 0.3:
            for draft in drafts:
                behind.advance(draft)
            drafts = ()


@pytest.mark.parametrize("drafter", ["none", "perfect draft", "hostile draft", "ngram"])
@pytest.mark.parametrize("marks", [SINGLE, DOUBLE], ids=["single tokens", "two tokens"])
def test_the_budget_ends_the_thoughts_and_the_answer_follows_its_grammar(drafter: str, marks: ThinkingMarks) -> None:
    bound = grammar(marks, inside=True, budget=7, answer=True)
    wanted = [seeded([n + 1], 60, seed=n, temperature=1.5, grammar=bound) for n in range(5)]
    run = run_all(tiny.core(DRAFTERS[drafter], eos=[EOS], draft_length=4), wanted)
    for request in wanted:
        made = run.tokens[request.id]
        end = next(at for at in range(len(made)) if tuple(made[at : at + len(marks.end_tokens)]) == marks.end_tokens)
        assert end <= 7
        answer = made[end + len(marks.end_tokens) :]
        assert len(answer) == 6 or answer == [] or EOS not in answer
        assert all(tiny.Sums(3, 6).allows(answer[:at], token) for at, token in enumerate(answer))
        assert run.reason(request) is FinishReason.STOP


def test_thoughts_that_an_answer_must_follow_cannot_end_the_sequence() -> None:
    bound = grammar(SINGLE, inside=True, budget=None, answer=True).matcher()
    assert EOS not in tokens_of(bound.allowed(()))
    free = grammar(SINGLE, inside=True, budget=3, answer=False).matcher()
    assert EOS in tokens_of(free.allowed(()))


def test_a_model_that_does_not_think_is_bound_from_its_first_token() -> None:
    bound = grammar(SINGLE, inside=False, budget=5, answer=True)
    request = greedy([4], 30, grammar=bound, logit_bias={50: -100.0})
    run = run_all(tiny.core(eos=[EOS]), [request])
    made = run.tokens[request.id]
    assert all(tiny.Sums(3, 6).allows(made[:at], token) for at, token in enumerate(made))
