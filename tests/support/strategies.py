"""What properties of the engine are tried with: prompts, parameters and the step at which each request joins."""

from __future__ import annotations

from hypothesis import strategies as st

from parallm_openai.engine.request import SamplingParams
from support.tiny import VOCAB, Sums

tokens = st.integers(0, VOCAB - 1)
params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 24),
    min_tokens=st.sampled_from([0, 0, 6]),
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.4, 0.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 40]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    seed=st.integers(0, 2**63 - 1),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, -2.0, 2.0]), max_size=3),
    logprobs=st.sampled_from([None, 0, 3]),
    stop_token_ids=st.sampled_from([(), (3,), (1, 2, 3, 4, 5)]),
    ignore_eos=st.booleans(),
    use_speculative=st.sampled_from([None, None, True, False]),
    grammar=st.sampled_from([None, None, Sums(2, 9), Sums(7, 100)]),
)
drawn_requests = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=30), params, st.integers(0, 20)), min_size=1, max_size=7
)
