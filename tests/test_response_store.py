"""Stored responses are bounded by number and by bytes, share what they have in common, and are their owner's alone."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.api.response_store import ResponseStore, Turn

LARGE = 64 * 2**20
OWNERS = ("anna", "ben")


def message(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **fields}


def response(name: str, text: str = "An answer.", **fields: Any) -> dict[str, Any]:
    output = [{"id": f"msg_{name}", "type": "message", "role": "assistant", "content": text}]
    repeated: dict[str, Any] = {"instructions": None, "tools": [], "text": {}}
    return {"id": f"resp_{name}", **repeated, "output": output, **fields}


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "id"} for item in items]


STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(OWNERS), st.integers(0, 30), st.integers(0, 3), st.integers(0, 600)),
    st.tuples(st.just("remove"), st.sampled_from(OWNERS), st.integers(0, 30)),
)


@given(
    count=st.integers(0, 12),
    limit=st.sampled_from([0, 5_000, 20_000, 60_000, LARGE]),
    steps=st.lists(STEP, max_size=60),
)
def test_the_bounds_hold_and_what_is_kept_is_what_was_put(count: int, limit: int, steps: list[Any]) -> None:
    store = ResponseStore(count, limit)
    # The obvious way: each response with a copy of its whole conversation. In the order of last use.
    kept: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {}
    for number, (kind, owner, which, *more) in enumerate(steps):
        chosen = list(kept)[which] if which < len(kept) else "resp_none"
        mine = chosen in kept and kept[chosen][0] == owner
        if kind == "remove":
            assert store.remove(owner, chosen) is mine
            if mine:
                del kept[chosen]
        else:
            found = store.get(owner, chosen)
            assert (found is not None) is mine
            turn: Turn | None = None
            earlier: list[dict[str, Any]] = []
            if found is not None:
                kept[chosen] = kept.pop(chosen)
                turn, earlier = found.turn, [*kept[chosen][2], *kept[chosen][1]["output"]]
            items = [message("x" * more[1], id="shared"), message("y" * more[1])][: more[0]]
            body = response(str(number), "z" * more[1], instructions="i" * more[1])
            if store.put(owner, body, items, turn):
                kept[body["id"]] = owner, body, [*earlier, *items]
            while len(kept) > len(store):
                del kept[next(iter(kept))]
        assert store.size <= limit
        assert len(store) == len(kept) <= count
    for name, (owner, body, conversation) in kept.items():
        stored = store.get(owner, name)
        assert stored is not None
        assert stored.body == body
        assert without_ids(stored.turn.input_items()) == without_ids(conversation)
        assert stored.turn.items() == [*stored.turn.input_items(), *body["output"]]
        assert all(store.get(other, name) is None for other in OWNERS if other != owner)
        # An id that several responses know is the last one's.
        for item in [*stored.turn.input_items()[len(conversation) - len(stored.turn.input) :], *body["output"]]:
            assert store.item(owner, item["id"]) is not None
    for name, (owner, _, _) in list(kept.items()):
        assert store.remove(owner, name)
    assert store.size == 0


def test_a_turn_does_not_store_the_turns_before_it_again() -> None:
    store = ResponseStore(1000, LARGE)
    sizes, turn = [], None
    for number in range(50):
        assert store.put("", response(str(number), "b" * 1000), [message(f"{number}" + "a" * 1000)], turn)
        stored = store.get("", f"resp_{number}")
        assert stored is not None
        turn = stored.turn
        sizes.append(store.size)
    assert turn is not None
    assert len(turn.items()) == 100
    assert sizes[-1] - sizes[-2] <= sizes[0] + 100


def test_a_client_that_sends_its_whole_conversation_anew_adds_only_what_is_new() -> None:
    store = ResponseStore(1000, LARGE)
    history: list[dict[str, Any]] = []
    for number in range(50):
        history.append(message(f"{number}" + "a" * 10_000))
        body = response(str(number), "b" * 10_000, instructions="i" * 10_000)
        assert store.put("", body, history, None)
        # A reference to an answer's item stands for that item.
        found = store.item("", f"msg_{number}")
        assert found == body["output"][0]
        assert found is not None
        history.append(found)
    everything = 100 * 10_000
    assert everything < store.size < 2.5 * everything


def test_later_turns_stay_whole_when_earlier_ones_are_deleted() -> None:
    store = ResponseStore(10, LARGE)
    turn = None
    for name in ("one", "two", "three"):
        store.put("", response(name, f"answer {name}"), [message(f"question {name}")], turn)
        stored = store.get("", f"resp_{name}")
        assert stored is not None
        turn = stored.turn
    assert turn is not None
    whole = turn.items()
    for name in ("two", "one"):
        assert store.remove("", f"resp_{name}")
        assert store.item("", f"msg_{name}") is None
        assert turn.items() == whole
    answers = [item["content"] for item in whole if item["role"] == "assistant"]
    assert answers == ["answer one", "answer two", "answer three"]


def test_a_response_larger_than_all_there_may_be_pushes_nothing_out() -> None:
    store = ResponseStore(10, 20_000)
    assert store.put("", response("small"), [message("x")], None)
    assert not store.put("", response("large"), [message("x" * 30_000)], None)
    assert store.get("", "resp_small") is not None
    assert store.get("", "resp_large") is None


def test_a_conversation_that_was_let_go_meanwhile_is_counted_again_when_it_goes_on() -> None:
    store = ResponseStore(10, LARGE)
    store.put("", response("one"), [message("x" * 5000)], None)
    first = store.get("", "resp_one")
    assert first is not None
    store.remove("", "resp_one")
    assert store.size == 0
    store.put("", response("two"), [message("y")], first.turn)
    assert store.size > 5000
    store.remove("", "resp_two")
    assert store.size == 0


@pytest.mark.slow
def test_the_counted_bytes_are_about_those_that_python_takes() -> None:
    """Many small items cost more than their text: a client must not fill the memory with empty ones."""
    store = ResponseStore(1000, LARGE)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20):
        store.put("", response(str(number)), [message(f"{number} {place}") for place in range(1000)], None)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.6 * taken < store.size < 3 * taken


def test_a_long_conversation_travels_to_another_process_and_is_not_stored_twice() -> None:
    store = ResponseStore(10_000, LARGE)
    sizes, turn = [], None
    for number in range(500):
        # Each turn is one that has been in another process.
        turn = pickle.loads(pickle.dumps(turn))
        assert store.put("", response(str(number), "b"), [message(str(number))], turn)
        stored = store.get("", f"resp_{number}")
        assert stored is not None
        turn = stored.turn
        sizes.append(store.size)
    assert len(pickle.loads(pickle.dumps(stored)).turn.items()) == 1000
    assert sizes[-1] - sizes[-2] <= sizes[1] - sizes[0] + 50


def test_an_answer_that_was_generated_again_takes_the_place_of_the_first() -> None:
    store = ResponseStore(10, LARGE)
    for _ in range(2):
        store.put("", response("one", "answer"), [message("question")], None)
    size = store.size
    store.put("", response("one", "answer"), [message("question")], None)
    assert (len(store), store.size) == (1, size)
    store.remove("", "resp_one")
    assert (len(store), store.size) == (0, 0)
