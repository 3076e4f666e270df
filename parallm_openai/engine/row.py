"""One sequence while it waits, prefills and decodes, and all that is its own. Imports no MLX."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parallm_openai.engine.cache.blocks import BlockHashes
from parallm_openai.engine.constraint import Mask, Matcher
from parallm_openai.engine.position import Position, TokenHistory
from parallm_openai.engine.request import FinishReason, Request, TokenLogprob
from parallm_openai.engine.speculation.hidden_states import HiddenStates

if TYPE_CHECKING:
    from parallm_openai.engine.batch import Batch
    from parallm_openai.engine.speculation.draft_length.acceptance_rate import AcceptanceRate
    from parallm_openai.engine.speculation.suffix import RowText

log = logging.getLogger(__name__)

# The models that compute a row: the one that is served, and the one that drafts for it.
TARGET, DRAFT = "target", "draft"

# What a row's grammar may take of the engine's thread, in seconds of CPU time: for one mask; and for all of them, some
# and so much for each. Usual masks take well under a millisecond.
SLOWEST_MASK = 1.0
GRAMMAR_SECONDS = 2.0
GRAMMAR_SECONDS_A_CALL = 0.05


@dataclass(slots=True)
class Computed:
    """The tokens of a row that a model's cache holds: `length` of them, the first being the row's `start`-th."""

    start: int = 0
    length: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(slots=True, eq=False)
class Row:
    """One sequence: its prompt and what was generated so far.

    Its last token is pending: the next decode step computes it.
    """

    request: Request
    tokens: list[int]
    # How many tokens it may generate, and for how many the context has room.
    max_tokens: int
    room: int
    stop_ids: frozenset[int]
    seed: int
    history: TokenHistory | None
    matcher: Matcher | None
    blocks: BlockHashes
    arrived: float = field(default_factory=time.perf_counter)
    # When it left the queue; the last time, if it was sent back there before it had a token.
    admitted_at: float | None = None
    first_token_at: float | None = None
    # Its place: the batch that it is in, if it has been admitted, and its slot there.
    batch: Batch | None = None
    slot: int = -1
    computed: dict[str, Computed] = field(default_factory=lambda: {TARGET: Computed(), DRAFT: Computed()})
    # Lengths of its prompt after which recurrent states are kept for later rows.
    keep_at: tuple[int, ...] = ()
    # What drafters know of it.
    suffixes: RowText | None = None
    hidden: HiddenStates = field(default_factory=HiddenStates)
    acceptance: AcceptanceRate | None = None
    # Prompt tokens that a stored prefix spared it, until its first output has reported them.
    cached_prompt_tokens: int = 0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    # Why its own part of a step failed, its grammar's for instance: it ends with that, and its neighbours go on.
    failure: str | None = None
    # Whether the failure lies in the request, whose grammar met a limit, and not in the server.
    at_fault: bool = False
    # Steps that failed for all of their rows. Until it has come through one alone, nobody knows whose fault that was.
    failed_steps: int = 0
    suspect: bool = False
    cleared: bool = False
    grammar_seconds: float = 0.0
    grammar_calls: int = 0
    ended: bool = False

    @classmethod
    def of(cls, request: Request, context_length: int, eos_ids: frozenset[int]) -> Row:
        params = request.params
        room = context_length - len(request.prompt)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
        return cls(
            request=request,
            tokens=list(request.prompt),
            room=room,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_ids=stop_ids,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            history=_history(request) if params.penalised else None,
            matcher=params.grammar.matcher() if params.grammar is not None else None,
            blocks=BlockHashes(request.cache_salt),
        )

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        return self.max_tokens - self.generated

    @property
    def may_run_ahead(self) -> bool:
        """Whether its next two tokens can be drawn before the host has seen the first, and nothing else is wanted."""
        in_context = self.generated + 1 < self.room
        return in_context and not self.reads_drafts and self.request.params.logprobs is None

    @property
    def unread(self) -> int:
        """How many tokens prefill has still to compute before the next one can be sampled."""
        return len(self.tokens) - self.computed[TARGET].length

    @property
    def uncomputed_tokens(self) -> list[int]:
        """Those tokens; while the row decodes, the pending one."""
        return self.tokens[self.computed[TARGET].length :]

    def certain(self, role: str) -> int:
        """How many tokens of a model's cache will never be rolled back: a draft model reads ahead of the target."""
        computed = self.computed[role]
        return max(0, min(computed.end, self.computed[TARGET].length) - computed.start)

    @property
    def computed_tokens(self) -> list[int]:
        """The tokens that the target's cache holds."""
        return self.tokens[: self.computed[TARGET].length]

    @property
    def scores_prompt(self) -> bool:
        """Whether prefill has to report the log-probabilities of the prompt's own tokens."""
        return self.request.params.prompt_logprobs is not None and not self.generated

    @property
    def reads_drafts(self) -> bool:
        """Whether what may follow a draft depends on its tokens, and not only on how many there are."""
        return self.history is not None or self.matcher is not None

    def position(self, depth: int, drafts: tuple[int, ...] = ()) -> Position:
        """The place to sample after the committed tokens and `depth` drafted ones.

        `drafts` are those, for a row that reads them.
        """
        index = self.generated + depth
        params = self.request.params
        return Position(
            params=params,
            seed=self.seed,
            index=index,
            history=self.history,
            drafts=drafts if self.history is not None else (),
            forbidden=tuple(self.stop_ids) if index < params.min_tokens else (),
            allowed=self._allowed(drafts),
        )

    def fail(self, error: BaseException) -> None:
        """The row ends with this error when its step does."""
        log.error("a row's own part of a step failed", exc_info=error)
        self.failure = describe(error)

    def _allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        if self.matcher is None or self.failure is not None:
            return None
        began = time.thread_time()
        try:
            return self.matcher.allowed(drafts)
        except BaseException as error:  # Panics of native code are no Exceptions.
            self.fail(error)
            return None
        finally:
            self.grammar_calls += 1
            self._count_grammar(time.thread_time() - began)

    def _count_grammar(self, seconds: float) -> None:
        """Count the time that the grammar takes on the engine's thread: all other rows wait for it."""
        self.grammar_seconds += seconds
        allowed = GRAMMAR_SECONDS + GRAMMAR_SECONDS_A_CALL * self.grammar_calls
        if self.failure is None and (seconds > SLOWEST_MASK or self.grammar_seconds > allowed):
            self.failure, self.at_fault = "the grammar takes too long for each token", True

    def extend(self, tokens: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
        """Append sampled tokens up to the first that ends the sequence.

        Returns the tokens appended (without a stopping token), why the sequence ended if it did, and the stopping
        token.
        """
        appended: list[int] = []
        for token in tokens:
            if token in self.stop_ids:
                return appended, FinishReason.STOP, token
            appended.append(token)
            self.tokens.append(token)
            if self.history is not None:
                self.history.add(token)
            if (reason := self._advance(token)) is not None:
                return appended, reason, None
            if self.remaining <= 0:
                return appended, FinishReason.LENGTH, None
        return appended, None, None

    def _advance(self, token: int) -> FinishReason | None:
        """Commit a token to the grammar; why the sequence ends with it, if it does."""
        if self.matcher is None:
            return None
        began = time.thread_time()
        try:
            self.matcher.advance(token)
            self._count_grammar(time.thread_time() - began)
            if self.failure is not None:
                return FinishReason.ERROR
            if self.matcher.error is not None:
                self.failure, self.at_fault = f"the grammar failed: {self.matcher.error}", True
                return FinishReason.ERROR
            return FinishReason.STOP if self.matcher.finished else None
        except BaseException as error:  # As above.
            self.fail(error)
            return FinishReason.ERROR


def _history(request: Request) -> TokenHistory:
    """The repetition penalty alone counts the prompt's tokens too."""
    return TokenHistory(request.prompt if request.params.repetition_penalty != 1 else ())


def describe(error: BaseException) -> str:
    """An exception in a line of bounded length."""
    return f"{type(error).__name__}: {error}"[:500]
