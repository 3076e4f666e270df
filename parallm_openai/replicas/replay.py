"""Streams that go on from another replica: the request is generated again, and what was sent already is left out.

An answer is a function of its request (`draws.py`), so the second replica sends the same frames as the first. That is
checked: a frame is sent only once all that were sent before have come again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

Kind = Literal["events", "lines"]
# A frame ends with these.
ENDS: dict[Kind, bytes] = {"events": b"\n\n", "lines": b"\n"}
# The fields that differ from one replica to another: they depend on caches, drafts, the clock, and the shape of the
# batch, which changes the last bits of logits, and so which of two tokens comes first in a list.
VOLATILE = frozenset(
    "usage speculative latency obfuscation created_at completed_at total_duration load_duration prompt_eval_duration "
    "eval_duration logprob token_logprobs top_logprobs".split()
)


class Frames:
    """Takes the bytes of a stream apart into server-sent events or lines."""

    def __init__(self, kind: Kind) -> None:
        self._end = ENDS[kind]
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + data).split(self._end)
        return [each + self._end for each in whole]


class Diverged(Exception):
    """What a second replica sends does not begin as what the first has sent."""


class Replay:
    """Leaves out of a stream the frames that have been sent. Several choices may take turns as they like."""

    def __init__(self, sent: Sequence[bytes]) -> None:
        self._expected: dict[int, deque[bytes]] = {}
        for frame in sent:
            if (said := _said(frame)) is not None:
                self._expected.setdefault(said.choice, deque()).append(said.text)
        self._held: list[bytes] = []

    @property
    def complete(self) -> bool:
        """Whether all that was sent has come again."""
        return not self._expected

    def feed(self, frame: bytes) -> Iterator[bytes]:
        """What is to be sent now. Raises Diverged."""
        said = None if self.complete else _said(frame)
        if said is None:
            yield frame
        elif said.choice not in self._expected:
            # This choice is further than it was; another one is not yet.
            self._held.append(frame)
        else:
            self._check_off(said)
            if self.complete:
                yield from self._held

    def _check_off(self, said: _Said) -> None:
        expected = self._expected[said.choice]
        if expected.popleft() != said.text:
            raise Diverged
        if not expected:
            del self._expected[said.choice]


class _Said(NamedTuple):
    """What two frames that say the same have in common."""

    choice: int
    text: bytes


def _said(frame: bytes) -> _Said | None:
    """None for a frame that says only that the stream is alive."""
    lines = [line for line in frame.splitlines() if line and not line.startswith(b":")]
    if not lines or lines == [b"event: ping", b'data: {"type":"ping"}']:
        return None
    *before, last = lines
    try:
        body = json.loads(last.removeprefix(b"data: "))
    except ValueError:
        return _Said(-1, frame)
    return _Said(_choice(body), b"\n".join([*before, json.dumps(without_volatile(body), sort_keys=True).encode()]))


def _choice(body: Any) -> int:
    """The number of the choice that a chunk is of; chunks of no choice have an order of their own."""
    choices = body.get("choices") if isinstance(body, dict) else None
    return int(choices[0].get("index", 0)) if choices else -1


def without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_volatile(each) for name, each in value.items() if name not in VOLATILE}
    return [without_volatile(each) for each in value] if isinstance(value, list) else value
