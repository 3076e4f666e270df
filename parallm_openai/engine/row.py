"""The engine's own state of one request while it waits, prefills and decodes."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field

from parallm_openai.engine.constraint import Mask, Matcher
from parallm_openai.engine.request import FinishReason, Request, TokenLogprob
from parallm_openai.engine.sampling import Position, TokenHistory

log = logging.getLogger(__name__)

# What a row's grammar may take of the engine's thread, in seconds of CPU time: for one mask; and for all of them, some
# and so much for each. Usual masks take well under a millisecond.
SLOWEST_MASK = 1.0
GRAMMAR_SECONDS = 2.0
GRAMMAR_SECONDS_A_CALL = 0.05


@dataclass(slots=True, eq=False)
class Row:
    """One sequence: its prompt and what was generated so far."""

    request: Request
    tokens: list[int]
    max_tokens: int
    stop_ids: frozenset[int]
    seed: int
    history: TokenHistory | None
    matcher: Matcher | None
    arrived: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    # Prompt tokens that a kept sequence spared it, until its first output has told so.
    cached: int = 0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    # Why its own part of a step failed, its grammar's for instance: it ends with that, and its neighbours go on.
    failure: str | None = None
    # Whether the failure lies in the request, whose grammar met a limit, and not in the server.
    at_fault: bool = False
    # Steps that failed for all of their rows. Until it has come through one alone, nobody knows whose fault that was.
    failed_steps: int = 0
    alone: bool = False
    grammar_seconds: float = 0.0
    grammar_calls: int = 0
    cleared: bool = False
    ended: bool = False

    @classmethod
    def of(cls, request: Request, context_length: int, eos_ids: frozenset[int]) -> Row:
        params = request.params
        room = context_length - len(request.prompt)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
        return cls(
            request=request,
            tokens=list(request.prompt),
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_ids=stop_ids,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            history=TokenHistory.of(request.prompt) if params.penalised else None,
            matcher=params.grammar.matcher() if params.grammar is not None else None,
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
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are asked for."""
        return self.request.params.prompt_logprobs is not None

    def position(self, drafts: tuple[int, ...]) -> Position:
        """The place to sample after the committed tokens and `drafts`."""
        index = self.generated + len(drafts)
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
            self._took(time.thread_time() - began)

    def _took(self, seconds: float) -> None:
        """Count the time that the grammar takes on the engine's thread: all other rows wait for it."""
        self.grammar_seconds += seconds
        allowed = GRAMMAR_SECONDS + GRAMMAR_SECONDS_A_CALL * self.grammar_calls
        if self.failure is None and (seconds > SLOWEST_MASK or self.grammar_seconds > allowed):
            self.failure, self.at_fault = "the grammar takes too long for each token", True

    def positions(self, drafts: tuple[int, ...]) -> list[Position]:
        """The places that one verification samples: after the committed tokens and after each draft."""
        return [self.position(drafts[:depth]) for depth in range(len(drafts) + 1)]

    def extend(self, tokens: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
        """Take sampled tokens up to the first that ends the sequence.

        Returns what was kept (without a stopping token), why it ended if it did, and the stopping token.
        """
        kept: list[int] = []
        for token in tokens:
            if token in self.stop_ids:
                return kept, FinishReason.STOP, token
            kept.append(token)
            self.tokens.append(token)
            if self.history is not None:
                self.history.generated[token] += 1
            if (reason := self._advance(token)) is not None:
                return kept, reason, None
            if self.remaining <= 0:
                return kept, FinishReason.LENGTH, None
        return kept, None, None

    def _advance(self, token: int) -> FinishReason | None:
        """Commit a token to the grammar; why the sequence ends with it, if it does."""
        if self.matcher is None:
            return None
        began = time.thread_time()
        try:
            self.matcher.advance(token)
            self._took(time.thread_time() - began)
            if self.failure is not None:
                return FinishReason.ERROR
            if self.matcher.error is not None:
                self.failure, self.at_fault = f"the grammar failed: {self.matcher.error}", True
                return FinishReason.ERROR
            return FinishReason.STOP if self.matcher.finished else None
        except BaseException as error:  # As above.
            self.fail(error)
            return FinishReason.ERROR


def describe(error: BaseException) -> str:
    """An exception in a line of bounded length."""
    return f"{type(error).__name__}: {error}"[:500]
