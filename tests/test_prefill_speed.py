"""Reading prompts holds up the rows that decode for no longer than it may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.engine.prefill_speed import FEWEST_TOKENS, PrefillSpeed

rates = st.floats(1e-5, 1e-2)


@given(rate=rates, overhead=st.integers(0, 200), limit=st.floats(0.05, 1.0), context=st.integers(0, 100_000))
def test_a_forward_settles_within_the_limit(rate: float, overhead: int, limit: float, context: int) -> None:
    speed = PrefillSpeed(forward_tokens=24)
    tokens = 0
    for _ in range(40):
        tokens = speed.tokens_within(limit, context)
        speed.learn(tokens, context, rate * (overhead + tokens))
    # It takes its time, but for what no fewer tokens would spare.
    assert tokens == FEWEST_TOKENS or rate * (overhead + tokens) == pytest.approx(limit, rel=0.2)


@given(rate=rates, limit=st.floats(0.05, 1.0))
def test_one_slow_forward_does_not_count_for_long(rate: float, limit: float) -> None:
    speed = PrefillSpeed(forward_tokens=24)
    for seconds in [rate * 124] * 20 + [100 * rate * 124] + [rate * 124] * 10:
        speed.learn(100, 0, seconds)
    assert speed.tokens_within(limit, 0) >= 0.9 * (limit / rate - 25) or speed.tokens_within(limit, 0) == FEWEST_TOKENS


def test_what_was_measured_at_the_nearest_context_serves_for_others() -> None:
    speed = PrefillSpeed(forward_tokens=0)
    speed.learn(100, 0, 0.1)
    speed.learn(100, 8000, 0.4)
    assert speed.tokens_within(1.0, 100) == 1000
    assert speed.tokens_within(1.0, 30_000) == 250
