"""What was sent is left out, what was not is sent, and nothing is sent twice or out of order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.replicas.replay import Diverged, Frames, Kind, Replay

PING = b": ping - 2026-11-27\n\n"


def event(choice: int, number: int, **more: Any) -> bytes:
    # Many tokens are the same.
    chosen = {"index": choice, "text": str(number % 3)}
    return f"data: {json.dumps({'choices': [chosen], **more})}\n\n".encode()


def interleaved(lengths: list[int], turns: list[int]) -> list[bytes]:
    """The events of several choices, in the order of these turns and then one choice after the other."""
    left = [[event(choice, number) for number in range(length)] for choice, length in enumerate(lengths)]
    order = [*(turn % len(lengths) for turn in turns), *(choice for choice, each in enumerate(left) for _ in each)]
    return [left[choice].pop(0) for choice in order if left[choice]]


def replayed(sent: list[bytes], again: list[bytes]) -> tuple[list[bytes], bool]:
    replay = Replay(sent)
    return [out for frame in again for out in replay.feed(frame)], replay.complete


def of_choice(frames: list[bytes], choice: int) -> list[bytes]:
    return [frame for frame in frames if f'"index": {choice},'.encode() in frame]


LENGTHS = st.lists(st.integers(0, 8), min_size=1, max_size=3)
TURNS = st.lists(st.integers(0, 2), max_size=12)


@given(LENGTHS, TURNS, TURNS, st.integers(0, 24))
def test_each_choice_goes_on_where_it_was(lengths: list[int], first: list[int], second: list[int], cut: int) -> None:
    """However the choices take turns the second time, each client sees each of them once and in order."""
    whole = interleaved(lengths, first)
    sent = whole[:cut]
    rest, complete = replayed(sent, interleaved(lengths, second))
    assert complete
    for choice in range(len(lengths)):
        assert of_choice(sent + rest, choice) == of_choice(whole, choice)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 7))
def test_an_answer_that_begins_otherwise_is_never_spliced(length: int, cut: int, changed: int) -> None:
    whole = [event(0, number) for number in range(length)]
    sent = whole[:cut]
    other = list(whole)
    other[changed % len(sent)] = event(0, 0, changed=True)
    with pytest.raises(Diverged):
        replayed(sent, other)


def test_what_depends_on_the_replica_is_not_compared() -> None:
    sent = [event(0, 1, usage={"cached": 128}, obfuscation="a"), event(0, 2, speculative={"accepted": 3})]
    again = [event(0, 1, usage={"cached": 0}, obfuscation="bcd"), event(0, 2), event(0, 3)]
    assert replayed(sent, again) == ([event(0, 3)], True)


def test_last_bits_of_logprobs_are_not_compared() -> None:
    """They depend on who else is in the batch."""

    def told(token: str, logprob: float, top: list[str]) -> bytes:
        listed = [{"token": each, "logprob": logprob - 1} for each in top]
        entry = {"token": token, "logprob": logprob, "top_logprobs": listed}
        return f"data: {json.dumps({'choices': [{'index': 0, 'logprobs': {'content': [entry]}}]})}\n\n".encode()

    assert replayed([told("a", -0.5, ["a", "b"])], [told("a", -0.5000001, ["b", "a"]), PING]) == ([PING], True)
    with pytest.raises(Diverged):
        replayed([told("a", -0.5, ["a", "b"])], [told("b", -0.5, ["a", "b"])])


def test_signs_of_life_are_passed_on_and_are_nothing_to_wait_for() -> None:
    assert replayed([PING, event(0, 1)], [event(0, 1), PING, event(0, 2)]) == ([PING, event(0, 2)], True)
    assert replayed([event(0, 1)], [PING]) == ([PING], False)


@pytest.mark.parametrize(("kind", "end"), [("events", b"\n\n"), ("lines", b"\n")])
@given(texts=st.lists(st.text("ab", min_size=1), max_size=5), size=st.integers(1, 7))
def test_frames_are_whole_however_the_bytes_come(kind: Kind, end: bytes, texts: list[str], size: int) -> None:
    whole = [text.encode() + end for text in texts]
    data = b"".join(whole)
    frames = Frames(kind)
    assert [out for at in range(0, len(data), size) for out in frames.feed(data[at : at + size])] == whole
