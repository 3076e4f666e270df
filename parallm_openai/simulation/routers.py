"""Which replica gets a request."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from parallm_openai.simulation.trace import TraceRequest

# Ray Serve's prefix-affinity router takes a match for one from this share of the prompt on.
LEAST_MATCH = 0.1
# A replica with so many more requests than another one is too busy for a prefix to be worth the wait.
IMBALANCE = 8

Part = tuple[str | int, ...]
"""The streams that a prompt begins with, up to one of them: their names, and the lengths of those before the last."""


def parts_of(request: TraceRequest) -> list[tuple[Part, int]]:
    """Each stream of a prompt, told apart by what comes before it, and how many of its tokens there are."""
    before: Part = ()
    parts = []
    for name, length in request.prefix:
        parts.append(((*before, name), length))
        before = (*before, name, length)
    return parts


class Loads:
    """How many requests each replica has, and the least and the most of them."""

    def __init__(self, replicas: int) -> None:
        self.of = [0] * replicas
        self._replicas_at = [replicas, 0]
        self.least = self.most = 0

    def add(self, replica: int) -> None:
        self._move(replica, 1)

    def remove(self, replica: int) -> None:
        self._move(replica, -1)

    def _move(self, replica: int, step: int) -> None:
        before = self.of[replica]
        self.of[replica] = after = before + step
        counts = self._replicas_at
        if after == len(counts):
            counts.append(0)
        counts[before] -= 1
        counts[after] += 1
        self.most = max(self.most, after) if counts[self.most] else after
        self.least = min(self.least, after) if counts[self.least] else after


class Router:
    """Takes replicas in turn; the base of every router."""

    def __init__(self, replicas: int, seed: int = 0) -> None:
        self.replicas = replicas
        self.loads = Loads(replicas)
        self._rng = random.Random(seed)
        self._next = 0

    def choose(self, request: TraceRequest) -> int:
        self._next += 1
        return (self._next - 1) % self.replicas

    def sent(self, request: TraceRequest, replica: int) -> None:
        self.loads.add(replica)

    def ended(self, replica: int) -> None:
        self.loads.remove(replica)

    def less_busy(self, candidates: Sequence[int]) -> int:
        """The less busy of two of them, drawn at random."""
        one, other = (candidates[self._rng.randrange(len(candidates))] for _ in range(2))
        return one if self.loads.of[one] <= self.loads.of[other] else other


class TwoChoices(Router):
    """The less busy of two replicas drawn at random (power of two choices)."""

    def choose(self, request: TraceRequest) -> int:
        return self.less_busy(range(self.replicas))


class SessionSticky(TwoChoices):
    """A session's replica follows from its name; requests without one go to the less busy of two."""

    def choose(self, request: TraceRequest) -> int:
        if request.session is None:
            return super().choose(request)
        return own_replica(request.session, self.replicas)


def own_replica(session: str, replicas: int) -> int:
    return crc32(session.encode()) % replicas


class Holders(NamedTuple):
    """The replicas that were sent the most of a stream."""

    length: int
    replicas: dict[int, None]
    listed: list[int]


class PrefixAware(TwoChoices):
    """As Ray Serve's prefix-affinity router: the longest match, unless the fleet is out of balance.

    While the busiest replica has over `imbalance` requests more than the idlest, the less busy of two is taken. A match
    of less than a tenth of the prompt counts as none: then the replica that has been sent the fewest tokens is taken.
    """

    def __init__(self, replicas: int, seed: int = 0, imbalance: int = IMBALANCE) -> None:
        super().__init__(replicas, seed)
        self.imbalance = imbalance
        self._holders: dict[Part, Holders] = {}
        self._tokens = [0] * replicas
        self._fewest = [(0, replica) for replica in range(replicas)]

    def choose(self, request: TraceRequest) -> int:
        if self.loads.most - self.loads.least > self.imbalance:
            return super().choose(request)
        return self._by_prefix(request)

    def _by_prefix(self, request: TraceRequest) -> int:
        holders = self._holders_of(request)
        return self._emptiest() if holders is None else self.less_busy(holders)

    def _holders_of(self, request: TraceRequest) -> Sequence[int] | None:
        """The replicas with the longest match, if that is long enough to count."""
        matched, holders = 0, None
        for part, length in parts_of(request):
            found = self._holders.get(part)
            if found is None:
                break
            matched, holders = matched + min(length, found.length), found
            if found.length < length:
                break
        if holders is None or matched < LEAST_MATCH * request.prompt_tokens:
            return None
        return holders.listed

    def _emptiest(self) -> int:
        while self._fewest[0][0] != self._tokens[self._fewest[0][1]]:
            replica = self._fewest[0][1]
            heapq.heapreplace(self._fewest, (self._tokens[replica], replica))
        return self._fewest[0][1]

    def sent(self, request: TraceRequest, replica: int) -> None:
        super().sent(request, replica)
        self._tokens[replica] += request.prompt_tokens
        for part, length in parts_of(request):
            found = self._holders.get(part)
            if found is None or length > found.length:
                self._holders[part] = Holders(length, {replica: None}, [replica])
            elif length == found.length and replica not in found.replicas:
                found.replicas[replica] = None
                found.listed.append(replica)


class PrefixThenSession(PrefixAware):
    """The longest match, else the session's replica, else the less busy of two.

    Neither of the first two is taken if it has `imbalance` requests more than the idlest replica of the fleet.
    """

    def choose(self, request: TraceRequest) -> int:
        wanted = []
        if holders := self._holders_of(request):
            wanted.append(self.less_busy(holders))
        if request.session is not None:
            wanted.append(own_replica(request.session, self.replicas))
        free = [replica for replica in wanted if self.loads.of[replica] < self.loads.least + self.imbalance]
        return free[0] if free else self.less_busy(range(self.replicas))


class PrefixBounded(PrefixAware):
    """The longest match, unless that replica has over `imbalance` requests more than the less busy of two others.

    This compares three replicas, not the extremes of the fleet, which drift apart as it grows.
    """

    def choose(self, request: TraceRequest) -> int:
        wanted, other = self._by_prefix(request), self.less_busy(range(self.replicas))
        return other if self.loads.of[wanted] - self.loads.of[other] > self.imbalance else wanted


ROUTERS: Mapping[str, Callable[[int, int], Router]] = {
    "round-robin": Router,
    "two-choices": TwoChoices,
    "session": SessionSticky,
    "prefix": PrefixAware,
    "prefix-session": PrefixThenSession,
    "prefix-bounded": PrefixBounded,
}
