"""What is repeatable is repeated: ids, seeds and times follow from the key, and pieces from the tokens alone."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.text import draws


def drawn() -> tuple[object, ...]:
    return draws.new_hex(), draws.new_seed(), draws.new_hex(), draws.created()


def test_the_same_key_draws_the_same_again_and_another_key_does_not() -> None:
    with draws.repeatable("key", 5):
        first = drawn()
    with draws.repeatable("key", 5):
        assert drawn() == first
    with draws.repeatable("other", 5):
        assert not {first[0], first[1]} & set(drawn())


def test_without_a_key_ids_are_new_and_the_engine_draws_the_seed() -> None:
    assert draws.new_hex() != draws.new_hex()
    assert draws.new_seed() is None


async def test_a_task_keeps_the_key_that_it_was_started_with() -> None:
    async def late() -> tuple[object, ...]:
        await asyncio.sleep(0)
        return drawn()

    with draws.repeatable("key", 5):
        first, task = drawn(), asyncio.create_task(late())
    with draws.repeatable("key", 5):
        again = drawn() and drawn()
    # The task goes on with the same source, after what was drawn before it.
    assert await task == again != first


TOKENS = st.lists(st.tuples(st.integers(0, 60), st.integers(-9, 0)), max_size=20)


@given(TOKENS, st.lists(st.integers(0, 20), max_size=5), st.booleans())
def test_outputs_by_token_do_not_tell_how_steps_grouped_them(
    tokens: list[tuple[int, int]], cuts: list[int], stopped: bool
) -> None:
    """However a sequence is cut into steps, token by token it is the same."""
    ids = tuple(token for token, _ in tokens)
    logprobs = tuple(TokenLogprob(token, float(logprob)) for token, logprob in tokens)
    stop = (TokenLogprob(61, -1.0),) if stopped else ()
    edges = sorted({0, *(cut for cut in cuts if cut < len(ids)), len(ids)})
    steps = [
        Output(
            1,
            ids[begin:end],
            logprobs[begin:end] + (stop if end == len(ids) else ()),
            finish_reason=FinishReason.STOP if end == len(ids) else None,
            stop_token=61 if stopped and end == len(ids) else None,
        )
        for begin, end in zip(edges, edges[1:] or [0], strict=False)
    ]
    single = [each for step in steps for each in step.by_token()]
    middle = [Output(1, (token,), (logprob,)) for token, logprob in zip(ids, logprobs, strict=True)]
    end = Output(1, (), stop, finish_reason=FinishReason.STOP, stop_token=61 if stopped else None)
    assert single == [*middle, end]


def test_what_a_step_says_once_stays_said_once() -> None:
    step = Output(1, (4, 5, 6), prompt_logprobs=(None,), drafted=4, accepted=2, cached_prompt_tokens=128)
    parts = list(step.by_token())
    assert [part.accepted for part in parts] == [1, 1, 0]
    assert [part.drafted for part in parts] == [4, 0, 0]
    assert [part.cached_prompt_tokens for part in parts] == [128, 0, 0]
    assert [part.prompt_logprobs for part in parts] == [(None,), None, None]
