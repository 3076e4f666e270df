"""Keeps the last answers of `/v1/responses` in memory, for `previous_response_id`, references and retrieval.

Everything is kept as JSON bytes, each distinct item once. A turn holds its own items and the turn before it. A client
that sends its whole conversation again adds only its new items.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast
from weakref import WeakValueDictionary

# Roughly the memory that Python needs besides the bytes themselves, so that many small things count, too.
BLOB_COST = 200
REFERENCE_COST = 16
INDEX_COST = 400
RESPONSE_COST = 2000
# The fields of a response that are large and the same in many turns.
REPEATED = ("instructions", "tools", "text")


class _Blobs:
    """Byte strings, each kept once however many hold it."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[bytes, int]] = {}
        self.size = 0

    def hold(self, blob: bytes) -> bytes:
        """The kept bytes that equal `blob`. They stay until every holder has released them."""
        held, count = self._held.get(blob, (blob, 0))
        self._held[held] = held, count + 1
        self.size += 0 if count else cost(blob)
        return held

    def release(self, blob: bytes) -> None:
        held, count = self._held[blob]
        if count > 1:
            self._held[held] = held, count - 1
        else:
            del self._held[held]
            self.size -= cost(blob)


def cost(blob: bytes) -> int:
    return len(blob) + BLOB_COST


@dataclass(eq=False, repr=False, slots=True, weakref_slot=True)
class Turn:
    """The items that one request added to a conversation, and those of its answer to it, the response `id`."""

    id: str
    input: tuple[bytes, ...]
    # The ids of the input's items; items of the output have theirs inside.
    ids: tuple[str, ...]
    output: tuple[bytes, ...]
    previous: Turn | None
    holders: int = 0

    @property
    def cost(self) -> int:
        return RESPONSE_COST + REFERENCE_COST * (len(self.input) + len(self.output))

    def __reduce__(self) -> tuple[Callable[..., Turn], tuple[Any, ...]]:
        # Turn by turn inside each other, long conversations would exceed the depth that pickle can follow.
        turns, turn = [], cast("Turn | None", self)
        while turn is not None:
            turns.append((turn.id, turn.input, turn.ids, turn.output))
            turn = turn.previous
        return _chained, (turns,)

    def items(self) -> list[dict[str, Any]]:
        """The whole conversation up to and including this answer."""
        return [*self.input_items(), *map(json.loads, self.output)]

    def input_items(self) -> list[dict[str, Any]]:
        """The whole conversation that led to this answer."""
        pieces: list[list[dict[str, Any]]] = [self._own_input()]
        turn = self.previous
        while turn is not None:
            pieces.append([*turn._own_input(), *map(json.loads, turn.output)])
            turn = turn.previous
        return [item for piece in reversed(pieces) for item in piece]

    def _own_input(self) -> list[dict[str, Any]]:
        return [{**json.loads(item), "id": id} for item, id in zip(self.input, self.ids, strict=True)]


def _chained(turns: Sequence[tuple[Any, ...]]) -> Turn:
    """The newest of the turns, which stand from it back to the first, with all that came before it."""
    turn: Turn | None = None
    for id, own, ids, output in reversed(turns):
        turn = Turn(id, own, ids, output, turn)
    assert turn is not None
    return turn


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class StoredResponse:
    """An answer and its place in a conversation. Only its owner may see it."""

    owner: str
    head: bytes
    repeated: Mapping[str, bytes]
    turn: Turn
    ids: tuple[str, ...]

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.head)
        body |= {field: json.loads(blob) for field, blob in self.repeated.items()}
        return body | {"output": [json.loads(item) for item in self.turn.output]}

    @property
    def cost(self) -> int:
        """The memory that it does not share with others."""
        return RESPONSE_COST + len(self.head) + INDEX_COST * len(self.ids)


class Responses(Protocol):
    """The stored responses as routes see them, wherever they are kept."""

    async def put(
        self, owner: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]], previous: Turn | None
    ) -> bool: ...

    async def get(self, owner: str, response_id: str) -> StoredResponse | None: ...

    async def remove(self, owner: str, response_id: str) -> bool: ...

    async def item(self, owner: str, item_id: str) -> dict[str, Any] | None: ...


class ResponsesHere:
    """Those that this process keeps."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def put(
        self, owner: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]], previous: Turn | None
    ) -> bool:
        return self._store.put(owner, body, items, previous)

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        return self._store.get(owner, response_id)

    async def remove(self, owner: str, response_id: str) -> bool:
        return self._store.remove(owner, response_id)

    async def item(self, owner: str, item_id: str) -> dict[str, Any] | None:
        return self._store.item(owner, item_id)


class ResponseStore:
    """Keeps the responses that were stored or used last, at most `count` of them in at most `size` bytes."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._limit = size
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._blobs = _Blobs()
        self._index: dict[tuple[str, str], tuple[bytes, int]] = {}
        # A turn that comes back from another process is the one that is here, if it still is.
        self._turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()
        self._unshared = 0

    def __len__(self) -> int:
        return len(self._responses)

    @property
    def size(self) -> int:
        """The bytes that are in use."""
        return self._blobs.size + self._unshared

    def put(
        self, owner: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]], previous: Turn | None
    ) -> bool:
        """Store an answer to `items` after the turn `previous`. Returns False if it alone exceeds the limit.

        An answer that was generated again takes the place of the one before.
        """
        known = None if previous is None else self._turns.get(previous.id, previous)
        response = _response(owner, body, items, known)
        if not self._count or _whole(response) > self._limit:
            return False
        if body["id"] in self._responses:
            self._drop(body["id"])
        self._add(body["id"], response)
        while len(self._responses) > self._count or self.size > self._limit:
            self._drop(next(iter(self._responses)))
        return True

    def get(self, owner: str, response_id: str) -> StoredResponse | None:
        found = self._responses.get(response_id)
        if found is None or found.owner != owner:
            return None
        self._responses.move_to_end(response_id)
        return found

    def remove(self, owner: str, response_id: str) -> bool:
        """Forget a response; the answers that follow it keep their conversation."""
        if self.get(owner, response_id) is None:
            return False
        self._drop(response_id)
        return True

    def item(self, owner: str, item_id: str) -> dict[str, Any] | None:
        """An item of the input or the output of a stored response."""
        found = self._index.get((owner, item_id))
        return None if found is None else {**json.loads(found[0]), "id": item_id}

    def _add(self, response_id: str, response: StoredResponse) -> None:
        self._hold_turn(response.turn)
        for field_blob in response.repeated.values():
            self._blobs.hold(field_blob)
        for item_id, item in zip(response.ids, (*response.turn.input, *response.turn.output), strict=True):
            older, count = self._index.get((response.owner, item_id), (b"", 0))
            self._index[response.owner, item_id] = self._blobs.hold(item), count + 1
            if count:
                self._blobs.release(older)
        self._unshared += response.cost
        self._responses[response_id] = response

    def _drop(self, response_id: str) -> None:
        response = self._responses.pop(response_id)
        self._unshared -= response.cost
        for item_id in response.ids:
            item, count = self._index.pop((response.owner, item_id))
            if count > 1:
                self._index[response.owner, item_id] = item, count - 1
            else:
                self._blobs.release(item)
        for field_blob in response.repeated.values():
            self._blobs.release(field_blob)
        self._release_turn(response.turn)

    def _hold_turn(self, turn: Turn | None) -> None:
        """Add a holder. The first one also holds the turn before, which may have been released in the meantime."""
        while turn is not None:
            turn.holders += 1
            if turn.holders > 1:
                return
            self._unshared += turn.cost
            turn.input, turn.output = self._held(turn.input), self._held(turn.output)
            self._turns[turn.id] = turn
            turn = turn.previous

    def _release_turn(self, turn: Turn | None) -> None:
        while turn is not None:
            turn.holders -= 1
            if turn.holders:
                return
            self._unshared -= turn.cost
            for item in (*turn.input, *turn.output):
                self._blobs.release(item)
            turn = turn.previous

    def _held(self, items: Iterable[bytes]) -> tuple[bytes, ...]:
        return tuple(map(self._blobs.hold, items))


def _response(
    owner: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]], previous: Turn | None
) -> StoredResponse:
    base = str(body["id"]).removeprefix("resp_")
    # An item without an id gets one made from its response's id and its place.
    ids = tuple(item.get("id") or f"{_prefix(item)}_{base}{place:04x}" for place, item in enumerate(items))
    nameless = ({key: value for key, value in item.items() if key != "id" or value} for item in items)
    output = tuple(map(_blob, body["output"]))
    turn = Turn(str(body["id"]), tuple(map(_blob, nameless)), ids, output, previous)
    repeated = {field: _blob(body[field]) for field in REPEATED}
    rest = {key: None if key in REPEATED or key == "output" else value for key, value in body.items()}
    head = json.dumps(rest, separators=(",", ":")).encode()
    return StoredResponse(owner, head, repeated, turn, (*ids, *(item["id"] for item in body["output"])))


def _prefix(item: Mapping[str, Any]) -> str:
    return {"message": "msg", "reasoning": "rs", "function_call": "fc"}.get(item["type"], "item")


def _blob(value: Any) -> bytes:
    # Keys are sorted, so that an item that comes back from a client is the same bytes.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _whole(response: StoredResponse) -> int:
    """The most memory that a response and its conversation can take by themselves."""
    total = response.cost + sum(map(cost, response.repeated.values()))
    turn: Turn | None = response.turn
    while turn is not None:
        total += turn.cost + sum(map(cost, turn.input)) + sum(map(cost, turn.output))
        turn = turn.previous
    return total
