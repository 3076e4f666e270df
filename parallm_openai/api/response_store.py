"""The last answers of `/v1/responses`, for `previous_response_id` and retrieval; in memory, bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StoredResponse:
    """An answer, with the conversation that led to it and its own part of that; instructions are not kept."""

    body: dict[str, Any]
    messages: tuple[dict[str, Any], ...]


class ResponseStore:
    """Keeps the `size` responses last stored or used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def put(self, response: StoredResponse) -> None:
        self._responses[response.body["id"]] = response
        while len(self._responses) > self._size:
            self._responses.popitem(last=False)

    def get(self, response_id: str) -> StoredResponse | None:
        if response_id in self._responses:
            self._responses.move_to_end(response_id)
        return self._responses.get(response_id)

    def remove(self, response_id: str) -> bool:
        return self._responses.pop(response_id, None) is not None
