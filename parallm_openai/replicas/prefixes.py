"""Which replicas a request should go to: first to one that has computed the beginning of its prompt.

Nothing here knows Ray: `router.py` asks, and Ray itself takes the least loaded replica of a rank.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A beginning is known by the hashes of its blocks, each of which stands for all before it as well.
BLOCK_BYTES = 256
MOST_BLOCKS = 1024
# Bytes of text in a token, roughly: so many blocks can a replica's prefix cache hold.
TOKEN_BYTES = 4
# A shorter match than this share of the prompt is no reason to prefer a replica to a less loaded one.
LEAST_SHARE = 0.1
# The fields of a prompt, in the order in which chat templates write them.
HEADS = ("tools", "system", "instructions")
TEXTS = ("messages", "input", "prompt", "prompts")
# No response's id is longer.
LONGEST_ID = 100
SESSIONS = ("prompt_cache_key", "user", "safety_identifier")


@dataclass(frozen=True)
class Hints:
    """What a request says about the replica that suits it.

    These are the blocks of its prompt, whose session it is of, and the stored response `previous` that it continues.
    `near` is the replica that has made that one, if the ingress knows.
    """

    blocks: tuple[bytes, ...] = ()
    session: str = ""
    previous: str = ""
    near: str = ""

    @classmethod
    def of(cls, body: Any, owner: str) -> Hints:
        """Those of a parsed body. Requests of different owners share no prefixes."""
        if not isinstance(body, dict):
            return cls()
        key = body.get("prompt_cache_key")
        blocks = tuple(_hashes(f"{owner} {key if isinstance(key, str) else ''}", _pieces(body)))
        previous = body.get("previous_response_id")
        if not isinstance(previous, str) or len(previous) > LONGEST_ID:
            previous = ""
        return cls(blocks, _session(body, owner), previous)


def _session(body: Mapping[str, Any], owner: str) -> str:
    metadata = body.get("metadata")
    # Anthropic's clients have it there.
    named = [body.get(field) for field in SESSIONS] + [metadata.get("user_id") if isinstance(metadata, dict) else None]
    given = next((each for each in named if isinstance(each, str) and each), None)
    # Of whatever length its name is, a session is forwarded as one of this.
    return "" if given is None else hashlib.blake2b(_bytes(f"{owner} {given}"), digest_size=16).hexdigest()


def _pieces(body: Mapping[str, Any]) -> Iterator[bytes]:
    """The prompt's text, so that a conversation that goes on begins with the same bytes."""
    for field in (*HEADS, *TEXTS):
        value = body.get(field)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                yield _bytes(each)
            elif each:
                yield json.dumps(each, sort_keys=True).encode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _hashes(salt: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    before, rest, count = hashlib.blake2b(_bytes(salt), digest_size=8).digest(), b"", 0
    for piece in pieces:
        rest += piece[: (MOST_BLOCKS + 1) * BLOCK_BYTES]
        while len(rest) >= BLOCK_BYTES and count < MOST_BLOCKS:
            before = hashlib.blake2b(before + rest[:BLOCK_BYTES], digest_size=8).digest()
            rest, count = rest[BLOCK_BYTES:], count + 1
            yield before
        if count == MOST_BLOCKS:
            return


class PrefixIndex:
    """Which blocks each replica has computed lately: as many as its prefix cache may hold."""

    def __init__(self, tokens: int) -> None:
        self._limit = max(1, tokens * TOKEN_BYTES // BLOCK_BYTES)
        self._blocks: dict[str, OrderedDict[bytes, None]] = {}

    def add(self, replica: str, blocks: Sequence[bytes]) -> None:
        held = self._blocks.setdefault(replica, OrderedDict())
        # The end of a prompt is forgotten before its beginning, which more prompts share.
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._limit:
            held.popitem(last=False)

    def matched(self, replica: str, blocks: Sequence[bytes]) -> int:
        """How many of the first blocks the replica has computed."""
        held = self._blocks.get(replica) or OrderedDict()
        return next((place for place, block in enumerate(blocks) if block not in held), len(blocks))

    def keep_only(self, replicas: Collection[str]) -> None:
        self._blocks = {name: held for name, held in self._blocks.items() if name in replicas}


def ranked(
    hints: Hints, replicas: Sequence[str], index: PrefixIndex, load: Callable[[str], int], patience: int
) -> list[list[str]]:
    """The replicas in ranks, the best first.

    They are the one that has made the response before, those with the longest beginning, the session's own, the least
    loaded, and all.

    A replica with `patience` more requests than the least loaded one is not preferred to it.
    """
    if not replicas:
        return []
    least = min(map(load, replicas))
    near = [each for each in replicas if each == hints.near]
    ranks = [near, _longest(hints.blocks, replicas, index), _of_session(hints.session, replicas)]
    free = [[each for each in rank if load(each) < least + patience] for rank in ranks]
    idlest = [each for each in replicas if load(each) == least]
    return [*filter(None, free), *([idlest] if len(idlest) < len(replicas) else []), list(replicas)]


def _longest(blocks: Sequence[bytes], replicas: Sequence[str], index: PrefixIndex) -> list[str]:
    matches = {replica: index.matched(replica, blocks) for replica in replicas}
    longest = max(matches.values())
    if not longest or longest < LEAST_SHARE * len(blocks):
        return []
    return [replica for replica, match in matches.items() if match == longest]


def _of_session(session: str, replicas: Sequence[str]) -> list[str]:
    """The replica with the highest hash of both names: it stays the same whichever others come and go."""
    if not session:
        return []
    return [max(replicas, key=lambda each: hashlib.blake2b(f"{session}\n{each}".encode()).digest())]
