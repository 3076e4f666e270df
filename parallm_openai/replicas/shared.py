"""What all replicas share: the stored responses, and the settings that `/v1/configure` has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from parallm_openai.api import errors
from parallm_openai.api.response_store import ResponseStore, StoredResponse, Turn

# Ray starts it anew within this time.
SECONDS = 30.0


class Shared:
    """A deployment of one replica. What it holds is gone if it ends, as in a server that starts anew."""

    def __init__(self, count: int, size: int) -> None:
        self._responses = ResponseStore(count, size)
        self._changes: dict[str, str] = {}

    async def put(
        self, owner: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]], previous: Turn | None
    ) -> bool:
        return self._responses.put(owner, body, items, previous)

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        return self._responses.get(owner, response_id)

    async def remove(self, owner: str, response_id: str) -> bool:
        return self._responses.remove(owner, response_id)

    async def item(self, owner: str, item_id: str) -> dict[str, Any] | None:
        return self._responses.item(owner, item_id)

    async def keep_settings(self, changes: Mapping[str, str]) -> None:
        self._changes |= changes

    async def changed_settings(self, followed: Mapping[str, str]) -> dict[str, str]:
        """All of them. What a replica has followed holds on if this process has started anew and knows no better."""
        self._changes = {**followed, **self._changes}
        return dict(self._changes)


class SharedResponses:
    """The stored responses as a replica reaches them. What cannot be reached is an error that clients try again on."""

    def __init__(self, shared: DeploymentHandle[Any]) -> None:
        self._shared = shared

    async def put(
        self, owner: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]], previous: Turn | None
    ) -> bool:
        return bool(await self._asked("put", owner, body, items, previous))

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        found: StoredResponse | None = await self._asked("get", owner, response_id)
        return found

    async def remove(self, owner: str, response_id: str) -> bool:
        return bool(await self._asked("remove", owner, response_id))

    async def item(self, owner: str, item_id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._asked("item", owner, item_id)
        return found

    async def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._shared.options(method_name=method).remote(*arguments)
        except (RayError, DeploymentUnavailableError, BackPressureError, TimeoutError) as error:
            raise errors.unavailable("The stored responses cannot be reached.") from error
