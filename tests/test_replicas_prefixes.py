"""A request goes to the replica that has computed its beginning, or else to its session's, or else to any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.replicas.prefixes import BLOCK_BYTES, MOST_BLOCKS, TOKEN_BYTES, Hints, PrefixIndex, ranked

LONG = "word " * 400
REPLICAS = ["one", "two", "three"]
TOKENS = 100_000


def chat(*contents: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **more}


def order(hints: Hints, index: PrefixIndex, loads: dict[str, int] | None = None, patience: int = 8) -> list[list[str]]:
    return ranked(hints, REPLICAS, index, lambda each: (loads or {}).get(each, 0), patience)


def test_a_conversation_that_goes_on_begins_with_the_same_blocks() -> None:
    first, second = Hints.of(chat(LONG), ""), Hints.of(chat(LONG, LONG + "more"), "")
    assert len(first.blocks) >= 5
    assert second.blocks[: len(first.blocks)] == first.blocks


@given(st.lists(st.text(max_size=2000), max_size=6), st.integers(0, 6))
def test_equal_blocks_mean_equal_beginnings(contents: list[str], changed: int) -> None:
    """Requests that differ in one message share no block from there on."""
    other = [f"{content}!" if place == changed else content for place, content in enumerate(contents)]
    one, two = Hints.of(chat(*contents), "").blocks, Hints.of(chat(*other), "").blocks
    shared = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    assert not set(one[shared:]) & set(two[shared:])
    if changed >= len(contents):
        assert one == two


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": LONG},
        {"input": LONG},
        {"input": [{"role": "user", "content": LONG}]},
        {"instructions": LONG, "input": "x"},
        {"system": LONG, "messages": []},
        {"system": [{"type": "text", "text": LONG}], "messages": []},
        {"tools": [{"description": LONG}], "messages": []},
        {"prompts": [LONG, "x"]},
    ],
)
def test_every_surface_has_its_beginning(body: dict[str, Any]) -> None:
    assert Hints.of(body, "").blocks


def test_owners_and_cache_keys_share_nothing() -> None:
    kinds = [Hints.of(chat(LONG), "a"), Hints.of(chat(LONG), "b"), Hints.of(chat(LONG, prompt_cache_key="k"), "a")]
    assert len({hints.blocks[0] for hints in kinds}) == 3


@pytest.mark.parametrize("body", [None, [], "text", {}, {"messages": 3}, {"prompt": [1, 2]}, {"user": 5}])
def test_bodies_that_say_nothing_have_no_hints(body: Any) -> None:
    assert Hints.of(body, "").session == ""
    assert Hints.of(body, "").blocks == ()


def test_very_long_prompts_have_bounded_hints() -> None:
    assert len(Hints.of({"prompt": "x" * BLOCK_BYTES * (MOST_BLOCKS + 50)}, "").blocks) == MOST_BLOCKS


def test_the_longest_beginning_wins() -> None:
    index = PrefixIndex(TOKENS)
    index.add("two", Hints.of(chat(LONG), "").blocks)
    index.add("three", Hints.of(chat(LONG, LONG), "").blocks)
    assert order(Hints.of(chat(LONG, LONG, LONG), ""), index)[0] == ["three"]
    assert order(Hints.of(chat(LONG), ""), index)[0] == ["two", "three"]
    assert order(Hints.of(chat("other " * 200), ""), index) == [REPLICAS]


def test_a_small_share_of_a_prompt_is_no_reason() -> None:
    index = PrefixIndex(TOKENS)
    index.add("two", Hints.of({"prompt": "a" * BLOCK_BYTES}, "").blocks)
    assert order(Hints.of({"prompt": "a" * BLOCK_BYTES + "b" * BLOCK_BYTES * 20}, ""), index) == [REPLICAS]


def test_a_session_stays_with_its_replica_whichever_others_leave() -> None:
    index = PrefixIndex(TOKENS)
    for number in range(50):
        hints = Hints.of(chat("hi", user=f"user {number}"), "")
        own = order(hints, index)[0]
        assert len(own) == 1
        left = [each for each in REPLICAS if each in own or each != REPLICAS[number % 3]]
        assert ranked(hints, left, index, lambda _: 0, 8)[0] == own
    assert {order(Hints.of(chat("hi", user=str(number)), ""), index)[0][0] for number in range(50)} == set(REPLICAS)


@pytest.mark.parametrize(
    "named", [{"user": "u"}, {"prompt_cache_key": "u"}, {"safety_identifier": "u"}, {"metadata": {"user_id": "u"}}]
)
def test_sessions_have_several_names(named: dict[str, Any]) -> None:
    session = Hints.of(chat("hi", **named), "owner").session
    assert session == Hints.of(chat("bye", user="u"), "owner").session
    assert session not in {
        Hints.of(chat("hi", user=user), owner).session for user, owner in (("v", "owner"), ("u", ""))
    }


def test_a_busy_replica_is_not_preferred() -> None:
    index = PrefixIndex(TOKENS)
    hints = Hints.of(chat(LONG), "")
    index.add("two", hints.blocks)
    assert order(hints, index, {"two": 7})[0] == ["two"]
    assert order(hints, index, {"two": 8}) == [["one", "three"], REPLICAS]
    assert order(hints, index, {"one": 9, "two": 16, "three": 9})[0] == ["two"]


def test_the_least_loaded_replicas_come_before_the_others() -> None:
    assert order(Hints(), PrefixIndex(TOKENS), {"one": 3, "two": 1, "three": 2}) == [["two"], REPLICAS]
    assert order(Hints(), PrefixIndex(TOKENS), {"one": 3, "two": 3, "three": 3}) == [REPLICAS]


def test_a_response_is_continued_by_the_replica_that_has_made_it() -> None:
    index = PrefixIndex(TOKENS)
    hints = Hints.of({"input": LONG, "previous_response_id": "resp_1"}, "")
    index.add("two", hints.blocks)
    assert hints.previous == "resp_1"
    assert order(replace(hints, near="three"), index) == [["three"], ["two"], REPLICAS]
    assert order(replace(hints, near="gone"), index) == [["two"], REPLICAS]


def test_every_replica_is_in_the_last_rank() -> None:
    index = PrefixIndex(TOKENS)
    hints = Hints.of(chat(LONG, user="u"), "")
    index.add("one", hints.blocks)
    assert order(hints, index)[-1] == REPLICAS
    assert ranked(hints, [], index, lambda _: 0, 8) == []


def test_the_index_forgets_as_a_prefix_cache_does() -> None:
    """The oldest prompt first, and of a prompt its end first."""
    index = PrefixIndex(10 * BLOCK_BYTES // TOKEN_BYTES)
    old, new = (tuple(bytes([kind, place]) for place in range(7)) for kind in (1, 2))
    index.add("one", old)
    index.add("one", new)
    assert index.matched("one", new) == 7
    assert index.matched("one", old) == 3
    index.keep_only({"two"})
    assert index.matched("one", new) == 0
