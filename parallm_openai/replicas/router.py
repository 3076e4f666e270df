"""Which replica Ray Serve sends a request to: the order of `prefixes.py`, through Ray's own interface of routers."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from parallm_openai.replicas.calls import Call
from parallm_openai.replicas.prefixes import Hints, PrefixIndex, ranked


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Prefers replicas that have computed the beginning of a prompt.

    Ray takes the least loaded of the first rank that can take a request, and asks again if none can.
    """

    def initialize_state(self, *, prefix_cache_tokens: int, patience: int, **options: Any) -> None:
        self._index = PrefixIndex(prefix_cache_tokens)
        self._patience = patience

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
        loads = {name: self.replica_queue_len_cache.get(by_name[name].replica_id) or 0 for name in names}
        hints = Hints() if call is None else call.hints
        ranks = ranked(hints, names, self._index, loads.__getitem__, self._patience)
        return [[by_name[name] for name in rank] for rank in ranks]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        call = _call_of(pending_request)
        if call is not None:
            self._index.add(replica_id.unique_id, call.hints.blocks)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._index.keep_only({each.replica_id.unique_id for each in replicas})


def _call_of(pending_request: PendingRequest | None) -> Call | None:
    if pending_request is None or not pending_request.args:
        return None
    first = pending_request.args[0]
    return first if isinstance(first, Call) else None
