"""What one engine step is to do, as plain data: the scheduler decides it, the step carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parallm_openai.engine.batch import Bucket
from parallm_openai.engine.cache.prefix import Prefix
from parallm_openai.engine.row import Row
from parallm_openai.settings import EngineConfig


@dataclass(frozen=True, slots=True)
class Admission:
    """A waiting row begins to prefill, after the first `length` tokens of a stored prefix if there is one.

    It keeps its recurrent states at the lengths `keep_at`.
    """

    row: Row
    bucket: Bucket
    prefix: Prefix | None = None
    length: int = 0
    keep_at: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptForward:
    """One forward over a bucket's prefilling rows: each computes up to `width` more tokens.

    Rows that are `through` get their first token from it and start to decode, each in its bucket. The draft model reads
    along for the rows `drafting`.
    """

    bucket: Bucket
    width: int
    through: Mapping[Row, Bucket]
    drafting: frozenset[Row] = frozenset()
    exploring: bool = False


@dataclass(frozen=True, slots=True)
class Decode:
    """One draft, verification and commit of a bucket's decoding rows.

    The drafts of the rows `copied` are copied, those of others computed. Or, if it runs `ahead`, one token for each,
    after the device has been sent off to compute the tokens after those.
    """

    bucket: Bucket
    draft_lengths: Mapping[Row, int]
    copied: frozenset[Row] = frozenset()
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A step's work, in this order, under one snapshot of the configuration."""

    config: EngineConfig
    preempt: tuple[Row, ...] = ()
    admit: tuple[Admission, ...] = ()
    prefill: tuple[PromptForward, ...] = ()
    moves: tuple[tuple[Row, Bucket], ...] = ()
    decode: tuple[Decode, ...] = ()
