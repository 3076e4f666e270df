"""Text comes out of tokens whole: no half characters, no part of a stop string, nothing lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.servers import demo_target

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning
from parallm_openai.text.output import OutputProcessor
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.stop_condition import StopMatcher
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
        token
        for token in tokens
        if TOKENIZER.token_bytes(token) not in (b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>")
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
    matcher = StopMatcher(stops)
    out, read = "", ""
    for piece in cut(text, luck):
        out, read = out + matcher.feed(piece), read + piece
        if matcher.matched is None:
            # No more is held back than could still become a match.
            assert any(each.startswith(read[len(out) :]) for each in [*stops, ""])
            assert not any(each.startswith(read[at:]) for each in stops for at in range(len(out)))
    out += matcher.flush()
    assert (out, matcher.matched) == (wanted, stop)


def test_a_long_stop_string_takes_no_longer_for_text_that_nearly_is_one() -> None:
    matcher = StopMatcher(["a" * 30_000 + "b", "ab" * 30_000])
    pieces = [matcher.feed("a") for _ in range(60_000)]
    assert pieces == [""] * 30_000 + ["a"] * 30_000
    assert matcher.feed("b") == ""
    assert matcher.matched == "a" * 30_000 + "b"


def read_all(
    processor: OutputProcessor, tokens: list[int], luck: random.Random
) -> tuple[list[Event], int, FinishReason | None]:
    """The events of tokens that come in runs of random size, how many of them were read, and the reason to stop."""
    events: list[Event] = []
    read, reason = 0, None
    while tokens and reason is None:
        size = luck.randrange(1, 6)
        run, tokens = tokens[:size], tokens[size:]
        scored = tuple(TokenLogprob(token, -1.0) for token in run)
        delta = processor.process(Output(0, tuple(run), scored, finish_reason=None if tokens else FinishReason.LENGTH))
        assert [entry.token for entry in delta.logprobs] == list(delta.tokens)
        events, read, reason = [*events, *delta.events], read + len(delta.tokens), delta.finish_reason
    assert processor.counts.completion == read
    return events, read, reason


def stretches(events: list[Event]) -> list[str]:
    """Content as it stands between thoughts and calls."""
    found = [""]
    for event in events:
        if isinstance(event, Content):
            found[-1] += event.text
        elif found[-1]:
            found.append("")
    return found


def others(events: list[Event]) -> tuple[str, str]:
    """The thoughts, and the calls."""
    thoughts = "".join(event.text for event in events if isinstance(event, Reasoning))
    called = [event for event in events if isinstance(event, CallStart | CallArguments)]
    return thoughts, "".join(event.name if isinstance(event, CallStart) else event.text for event in called)


parts = st.sampled_from(["<think>", "</think>", "Paris", " is", " ris", "\n", '"Par', CALL := "<CALL>", "ipa", "<tool"])


@pytest.mark.slow
@settings(max_examples=300)
@given(
    text=st.lists(parts, max_size=12).map("".join),
    stops=st.lists(st.sampled_from(["ris", "is ", "a", "Pa", "\n<", "get", "<tool_call>", "s\ni"]), max_size=2),
    beginning=st.sampled_from(Beginning),
    luck=st.randoms(use_true_random=False),
)
def test_stop_strings_end_the_content_and_nothing_else(
    text: str, stops: list[str], beginning: Beginning, luck: random.Random
) -> None:
    text = text.replace(CALL, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>')
    tokens = TOKENIZER.encode(text, special=False)
    format = TOKENIZER.chat_format

    def new_processor(stops: list[str]) -> OutputProcessor:
        return OutputProcessor(TOKENIZER, stops, format.marks, format.parser(beginning, [WEATHER]))

    plain, _, _ = read_all(new_processor([]), tokens, luck)
    events, read, reason = read_all(new_processor(stops), tokens, luck)
    ends = [by_the_book(stretch, stops) for stretch in stretches(plain)]
    cut_at = next((at for at, (_, stop) in enumerate(ends) if stop is not None), None)
    assert reason is (None if not tokens else FinishReason.LENGTH if cut_at is None else FinishReason.STOP)
    if cut_at is None:
        assert "".join(stretches(events)) == "".join(stretches(plain))
        assert others(events) == others(plain)
        assert read == len(tokens)
        return
    assert "".join(stretches(events)) == "".join(stretch for stretch, _ in ends[: cut_at + 1])
    assert all(whole.startswith(part) for whole, part in zip(others(plain), others(events), strict=True))
    # Not one token more was read than shows the match.
    again = new_processor(stops)
    assert all(again.process(Output(0, (token,))).finish_reason is None for token in tokens[: read - 1])


@settings(max_examples=100)
@given(text=anything, stop=st.text("e a", min_size=1, max_size=3), luck=st.randoms())
def test_tokens_count_up_to_the_one_that_completed_a_stop_string(text: str, stop: str, luck: random.Random) -> None:
    tokens = TOKENIZER.encode(text, special=False)
    processor = OutputProcessor(TOKENIZER, [stop])
    out, kept, reason = "", 0, None
    while tokens and reason is None:
        size = luck.randrange(1, 6)
        run, tokens = tokens[:size], tokens[size:]
        scored = tuple(TokenLogprob(token, -1.0) for token in run)
        delta = processor.process(Output(0, tuple(run), scored, finish_reason=None if tokens else FinishReason.LENGTH))
        out, kept, reason = out + delta.text, kept + len(delta.tokens), delta.finish_reason
        assert len(delta.logprobs) == len(delta.tokens)
    assert stop not in out
    assert processor.counts.completion == kept
    if "<|" not in text:
        assert out == text.partition(stop)[0]
        assert reason is None or (reason is FinishReason.STOP) == (stop in text)


@given(after=st.sampled_from(["", "\n", "\n</tool_call>\n", "\n</tool_call>\n<tool_call>\n{"]), luck=st.randoms())
def test_an_answer_that_may_call_once_ends_at_the_calls_last_token_however_many_come_at_a_time(
    after: str, luck: random.Random
) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}'
    format = TOKENIZER.chat_format
    parser = format.parser(Beginning.FRESH, [WEATHER], once=True)
    processor = OutputProcessor(TOKENIZER, ["Paris"], format.marks, parser)
    events, read, reason = read_all(processor, TOKENIZER.encode(call + after, special=True), luck)
    assert reason is FinishReason.STOP
    assert others(events) == ("", 'get_weather{"city": "Paris"}')
    assert stretches(events) == [""]
    assert read == len(TOKENIZER.encode(call, special=True))
