"""Text comes out of tokens whole: no half characters, no part of a stop string, nothing lost."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from servers import demo_target

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.text.generation import Reader
from parallm_openai.text.stop import StopMatcher
from parallm_openai.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(demo_target().tokenizer, demo_target().vocab_size)
anything = st.text(max_size=40)
tight = st.text("ab", max_size=30)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def cut(text: str, rng: random.Random) -> list[str]:
    pieces = []
    while text:
        size = rng.randrange(1, 5)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@settings(max_examples=200)
@given(anything)
def test_the_pieces_joined_are_the_text_and_none_holds_half_a_character(text: str) -> None:
    detokenizer = TOKENIZER.detokenizer()
    pieces = [detokenizer.add(token) for token in TOKENIZER.encode(text, special=False)] + [detokenizer.flush()]
    if "<|" not in text:
        assert "".join(pieces) == text
        assert text.count("\ufffd") == sum(piece.count("\ufffd") for piece in pieces)


@given(st.lists(st.integers(0, 2047), max_size=30))
def test_any_tokens_decode_to_what_their_bytes_say(tokens: list[int]) -> None:
    visible = [
        token for token in tokens if TOKENIZER.token_text(token) not in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]
    raw = b"".join(map(TOKENIZER.token_bytes, visible))
    assert TOKENIZER.decode(tokens) == raw.decode("utf-8", "replace")


def by_the_book(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text up to the earliest stop string to be complete, looking at one more character at a time."""
    for end in range(len(text) + 1):
        found = [(text[:end].find(stop), stop) for stop in stops if stop in text[:end]]
        if found:
            at, stop = min(found)
            return text[:at], stop
    return text, None


@settings(max_examples=400)
@given(text=tight, stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), luck=st.randoms())
def test_a_stop_string_is_cut_and_never_leaks_whatever_the_pieces(
    text: str, stops: list[str], luck: random.Random
) -> None:
    wanted, stop = by_the_book(text, stops)
    one_by_one = StopMatcher(stops)
    got = "".join(map(one_by_one.feed, text)) + one_by_one.flush()
    assert (got, one_by_one.matched) == (wanted, stop)
    matcher = StopMatcher(stops)
    out = ""
    for piece in cut(text, luck):
        out += matcher.feed(piece)
        assert not any(stop in out for stop in stops)
    out += matcher.flush()
    assert not any(stop in out for stop in stops)
    assert text.startswith(out)
    assert (matcher.matched is None) == (stop is None)


@settings(max_examples=100)
@given(text=anything, stop=st.text("e a", min_size=1, max_size=3), luck=st.randoms())
def test_a_reader_counts_the_tokens_up_to_the_one_that_completed_a_stop_string(
    text: str, stop: str, luck: random.Random
) -> None:
    tokens = TOKENIZER.encode(text, special=False)
    reader = Reader(TOKENIZER, [stop])
    out, kept, reason = "", 0, None
    while tokens and reason is None:
        size = luck.randrange(1, 6)
        run, tokens = tokens[:size], tokens[size:]
        scored = tuple(TokenLogprob(token, -1.0) for token in run)
        delta = reader.read(Output(0, tuple(run), scored, finish_reason=None if tokens else FinishReason.LENGTH))
        out, kept, reason = out + delta.text, kept + len(delta.tokens), delta.finish_reason
        assert len(delta.logprobs) == len(delta.tokens)
    assert stop not in out
    assert reader.counts.completion == kept
    if "<|" not in text:
        assert out == text.partition(stop)[0]
        assert reason is None or (reason is FinishReason.STOP) == (stop in text)


@given(after=st.sampled_from(["", "\n", "\n</tool_call>\n", "\n</tool_call>\n<tool_call>\n{"]), luck=st.randoms())
def test_an_answer_that_may_call_once_ends_at_the_calls_last_token_however_many_come_at_a_time(
    after: str, luck: random.Random
) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}'
    tokens = TOKENIZER.encode(call + after, special=True)
    reader = Reader(TOKENIZER, ["}}}"], TOKENIZER.chat_format.marks, TOKENIZER.chat_format.first_call(False, [WEATHER]))
    out, read, reason = "", 0, None
    while tokens and reason is None:
        size = luck.randrange(1, 6)
        run, tokens = tokens[:size], tokens[size:]
        delta = reader.read(Output(0, tuple(run)))
        out, read, reason = out + delta.text, read + len(delta.tokens), delta.finish_reason
    assert reason is FinishReason.STOP
    assert out == call
    assert read == reader.counts.completion == len(TOKENIZER.encode(call, special=True))
