"""Compiled grammars, and how far a sequence has come in one. Compiling is in `compiler.py`."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher

from parallm_openai.engine.constraint import Mask, mask_words


class GrammarError(ValueError):
    """The grammar is not valid, cannot be enforced, or costs too much."""


class GrammarBusyError(Exception):
    """The server is busy with other grammars that take long to compile."""


class TokenGrammar:
    """A compiled grammar over one tokenizer's tokens."""

    def __init__(self, prototype: LLMatcher, vocab_size: int) -> None:
        self._prototype = prototype
        self._vocab_size = vocab_size

    def matcher(self) -> TokenMatcher:
        return TokenMatcher(self._prototype.deep_copy(), self._vocab_size)


class TokenMatcher:
    """One sequence's place in its grammar.

    llguidance raises nothing if a token does not fit or a limit is exceeded: it enters an error state.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = mask_words(vocab_size)
        # Drafting asks for the same masks as verifying does afterwards.
        self._known: dict[tuple[int, ...], Mask | None] = {}

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        return self._matcher.get_error() or None if self._matcher.is_error() else None

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        if drafts not in self._known:
            self._known[drafts] = self._after(drafts)
        return self._known[drafts]

    def _after(self, drafts: tuple[int, ...]) -> Mask | None:
        taken = self._matcher.try_consume_tokens(list(drafts)) if drafts else 0
        mask = None
        if taken == len(drafts) and not self._matcher.is_stopped() and not self._matcher.is_error():
            # llguidance's own masks are longer: their last bit stands for no token.
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]
        if taken:
            self._matcher.rollback(taken)
        return mask

    def advance(self, token: int) -> None:
        self._known.clear()
        self._matcher.consume_token(token)
