"""Which replica Ray Serve sends a request to: the order of `prefixes.py`, through Ray's own interface of routers."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict, deque
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from parallm_openai.replicas import population
from parallm_openai.replicas.calls import Call
from parallm_openai.replicas.prefixes import Hints, PrefixIndex, ranked

# What is not sent to the replica that was chosen for it within this time never is: its client has left, say.
SENDING_SECONDS = 5.0


class Router(RequestRouter):  # type: ignore[misc]
    """Prefers replicas that have computed the beginning of a prompt, if `by_prefix` is true.

    Ray takes one of the first rank that can take a request, and asks again if none can. A replica has `room` for so
    many requests that generate, and for others besides.
    """

    def initialize_state(
        self, *, by_prefix: bool, prefix_cache_tokens: int, patience: int, room: int, **options: Any
    ) -> None:
        self._by_prefix = by_prefix
        self._index = PrefixIndex(prefix_cache_tokens)
        self._patience = patience
        self._room = room
        # What this router has sent and what has not come to its end. Ray's own numbers lag behind a burst.
        self._sent: Counter[ReplicaID] = Counter()
        # When each replica was chosen for what has not been sent yet.
        self._chosen: defaultdict[ReplicaID, deque[float]] = defaultdict(deque)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # All replicas are in the last rank, so there is nothing else to try before a pause.
            pending_request.routing_context.should_backoff = True
        call = _call_of(pending_request)
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        names = [name for name in by_name if call is None or name not in call.avoid] or list(by_name)
        # Of equally loaded replicas, Ray takes the first.
        random.shuffle(names)
        loads = {name: self._load(by_name[name].replica_id) for name in names}
        if call is not None and not call.is_quick:
            names = [name for name in names if loads[name] < self._room]
        hints = call.hints if call is not None and self._by_prefix else Hints()
        ranks = ranked(hints, names, self._index, loads.__getitem__, self._patience)
        if not ranks:
            return []
        best = min(ranks[0], key=loads.__getitem__)
        # Before Ray sends it, it asks for other requests.
        self._chosen[by_name[best].replica_id].append(time.monotonic())
        return [[by_name[name] for name in rank] for rank in ([best], *ranks)]

    def _load(self, replica: ReplicaID) -> int:
        chosen = self._chosen[replica]
        while chosen and chosen[0] < time.monotonic() - SENDING_SECONDS:
            chosen.popleft()
        return self._sent[replica] + len(chosen)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._sent[replica_id] += 1
        if chosen := self._chosen[replica_id]:
            chosen.popleft()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        super().on_request_completed(replica_id, internal_request_id)
        # Ray also tells of requests that could not be sent.
        self._sent[replica_id] = max(0, self._sent[replica_id] - 1)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        call = _call_of(pending_request)
        if call is not None and self._by_prefix and not call.is_quick:
            self._index.add(replica_id.unique_id, call.hints.blocks)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        population.running = len(replicas)
        self._index.keep_only({each.replica_id.unique_id for each in replicas})
        running = {each.replica_id for each in replicas}
        for gone in (self._sent.keys() | self._chosen.keys()) - running:
            del self._sent[gone]
            self._chosen.pop(gone, None)


def _call_of(pending_request: PendingRequest | None) -> Call | None:
    if pending_request is None or not pending_request.args:
        return None
    first = pending_request.args[0]
    return first if isinstance(first, Call) else None
