"""The suffix drafter finds the longest match, and learns what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.tiny import Run, greedy, reference

from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.speculation.suffix import (
    ANCHOR,
    CANDIDATES,
    LONGEST_MATCH,
    PIECE,
    PIECES,
    Answers,
    Match,
    SuffixDrafter,
    SuffixIndex,
    Sureness,
)

few = st.lists(st.integers(0, 3), max_size=40)


def index(text: Sequence[int]) -> SuffixIndex:
    """As it grows: a token at a time."""
    grown: list[int] = []
    made = SuffixIndex(grown)
    for token in text:
        grown.append(token)
        made.read(1)
    return made


def longest(text: Sequence[int], tokens: Sequence[int]) -> int:
    """The length of the longest suffix of `tokens` that stands in `text` before its last token, by the book."""
    return max(
        (
            length
            for length in range(ANCHOR, min(len(tokens), LONGEST_MATCH) + 1)
            for place in range(length, len(text))
            if list(text[place - length : place]) == list(tokens[-length:])
        ),
        default=0,
    )


@given(few, few)
def test_a_match_is_a_match_and_as_long_as_the_book_says(text: list[int], tokens: list[int]) -> None:
    match = index(text).find(tokens) if len(tokens) >= ANCHOR else None
    places = [at for at in range(ANCHOR, len(text)) if text[at - ANCHOR : at] == tokens[-ANCHOR:]]
    if match is None:
        assert not places or len(tokens) < ANCHOR
        return
    assert text[match.place - match.length : match.place] == tokens[-match.length :]
    # Of more places than are looked at, an earlier one may be better.
    assert match.length == longest(text, tokens) or len(places) > CANDIDATES


@pytest.mark.parametrize(
    ("text", "count", "draft"),
    [
        ([1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3], 3, (9, 5, 2)),
        ([8, 7, 4, 1, 8, 7, 5, 2, 8, 7, 4, 3, 8, 7], 2, (4, 3)),
        ([4, 5, 4, 5, 4, 5], 5, (4, 5, 4, 5, 4)),
        ([1, 2, 3], 4, ()),
        ([1], 4, ()),
    ],
    ids=["longest suffix first", "as most of them go on", "a loop unrolls", "nothing known", "one token"],
)
def test_it_proposes_what_followed_before(text: list[int], count: int, draft: tuple[int, ...]) -> None:
    match = index(text).find(text) if len(text) >= ANCHOR else None
    assert (match.continued(count) if match else ()) == draft


def found(answers: Answers, salt: str, tokens: Sequence[int]) -> list[Match]:
    return list(answers.find(salt, tokens))


def test_answers_are_found_under_their_own_salt_only() -> None:
    answers = Answers()
    answers.add("mine", [1, 2, 3, 4], budget=100)
    assert [match.continued(1) for match in found(answers, "mine", [1, 2])] == [(3,)]
    assert found(answers, "other", [1, 2]) == []
    assert found(answers, "", [1, 2]) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), max_size=30), st.integers(0, 3 * PIECE))
def test_answers_stay_within_the_budget(added: list[tuple[str, int]], budget: int) -> None:
    answers = Answers()
    for salt, length in added:
        answers.add(salt, [7] * length, budget)
        kept = sum(len(piece.text) for pieces in answers._pieces.values() for piece in pieces)
        assert answers.tokens == kept <= budget
    answers.add("a", [], 0)
    assert answers.tokens == 0
    assert not answers._pieces


def test_the_newest_answers_are_those_that_stay() -> None:
    answers = Answers()
    for number in range(10):
        answers.add(str(number), [number, number, number + 1] + [99] * (PIECE - 10), budget=3 * PIECE)
    assert [bool(found(answers, str(number), [number, number])) for number in range(10)] == [False] * 7 + [True] * 3


def test_a_long_match_is_trusted_further_than_a_short_one_and_both_learn() -> None:
    sureness = Sureness()
    assert sureness.chances(40, 8)[-1] > 2 * sureness.chances(2, 8)[-1]
    for _ in range(50):
        sureness.of(40).learn(0, 1)
        sureness.of(2).learn(1, 1)
    assert sureness.chances(40, 1)[0] < 0.2
    assert sureness.chances(2, 1)[0] > 0.8


def asked(run: Run, request: Request) -> Request:
    run.add(request)
    run.finish()
    return request


def test_an_answer_is_drafted_from_an_earlier_one_of_the_same_salt() -> None:
    def question(salt: str) -> Request:
        return Request((1, 2, 3), SamplingParams(max_tokens=60, temperature=0), cache_salt=salt)

    run = Run(tiny.core(SuffixDrafter, draft_length=6))
    first, again, other = (asked(run, question(salt)) for salt in ("a", "a", "b"))
    assert run.accepted(again) > run.accepted(first) + 20
    assert run.accepted(other) == run.accepted(first)
    assert run.tokens[again.id] == run.tokens[other.id] == reference(first)


def test_without_a_store_no_answer_is_kept() -> None:
    run = Run(tiny.core(SuffixDrafter, draft_length=6, suffix_store_tokens=0))
    first, again = (asked(run, greedy([1, 2, 3], 60)) for _ in range(2))
    assert run.accepted(again) == run.accepted(first)


def test_a_smaller_store_holds_from_the_next_step_on() -> None:
    run = Run(tiny.core(SuffixDrafter, draft_length=6))
    first = asked(run, greedy([1, 2, 3], 60))
    run.core.config = run.core.config.model_copy(update={"suffix_store_tokens": 0})
    again = asked(run, greedy([1, 2, 3], 60))
    assert run.accepted(again) == run.accepted(first)


def test_no_answer_goes_on_into_the_next_one() -> None:
    answers = Answers()
    for answer in ([1, 2, 3], [4, 5, 6], [7, 8, 2, 3]):
        answers.add("", answer, budget=100)
    assert found(answers, "", [2, 3]) == []
    assert found(answers, "", [5, 6]) == []
    drafter = SuffixDrafter()
    drafter.answers = answers
    run = Run(tiny.core(lambda: drafter, draft_length=6))
    request = asked(run, greedy([50, 4, 5], 20))
    assert run.tokens[request.id] == reference(request)


def test_a_long_match_ends_the_search_and_few_pieces_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client could have all rows wait while the same token is compared with itself in all that is stored."""
    compared = 0
    common = SuffixIndex._common

    def counted(self: SuffixIndex, tokens: Sequence[int], place: int) -> int:
        nonlocal compared
        compared += 1
        return common(self, tokens, place)

    monkeypatch.setattr(SuffixIndex, "_common", counted)
    answers = Answers()
    for number in range(40):
        answers.add("a", [number, *[7] * (PIECE - 10)], budget=100 * PIECE)
    assert found(answers, "a", [7] * 200)
    assert compared == 1
    compared = 0
    assert found(answers, "a", [3, *[7] * 20])
    assert compared <= PIECES * CANDIDATES
