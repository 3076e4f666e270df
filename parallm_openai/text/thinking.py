"""Bounds on thinking: a budget for it, and a grammar that begins after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parallm_openai.engine.constraint import Grammar, Mask, Matcher, mask_words
from parallm_openai.text.reasoning import ThinkingMarks


@dataclass(frozen=True)
class ThinkingGrammar:
    """Thoughts of at most `budget` tokens (None: any number), then what `answer` allows (None: anything).

    `inside` says that the prompt has opened the thoughts already; else the model may open them itself.
    Thoughts that an answer must follow cannot end the sequence.
    """

    marks: ThinkingMarks
    inside: bool
    vocab_size: int
    eos_ids: tuple[int, ...]
    budget: int | None = None
    answer: Grammar | None = None

    def matcher(self) -> ThinkingMatcher:
        return ThinkingMatcher(self)


class ThinkingMatcher:
    """One sequence's place: how its tokens divide into thoughts and answer follows from the tokens alone."""

    def __init__(self, grammar: ThinkingGrammar) -> None:
        self._grammar = grammar
        self._thoughts: list[int] = []
        self._answering = False
        self._answer: Matcher | None = grammar.answer.matcher() if grammar.answer is not None else None

    @property
    def finished(self) -> bool:
        return self._answering and self._answer is not None and self._answer.finished

    @property
    def error(self) -> str | None:
        return self._answer.error if self._answer is not None else None

    def advance(self, token: int) -> None:
        if self._answering:
            self._advance_answer([token])
            return
        self._thoughts.append(token)
        end = _end_of_thoughts(self._grammar, self._thoughts)
        if end is not None:
            self._answering = True
            self._advance_answer(self._thoughts[end:])

    def _advance_answer(self, tokens: Sequence[int]) -> None:
        for token in tokens if self._answer is not None else ():
            assert self._answer is not None
            self._answer.advance(token)

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        if self._answering:
            return self._answer_allows(drafts)
        thoughts = [*self._thoughts, *drafts]
        end = _end_of_thoughts(self._grammar, thoughts)
        if end is not None:
            return self._answer_allows(tuple(thoughts[end:]))
        return self._thoughts_allow(thoughts)

    def _answer_allows(self, drafts: tuple[int, ...]) -> Mask | None:
        return self._answer.allowed(drafts) if self._answer is not None else None

    def _thoughts_allow(self, thoughts: list[int]) -> Mask | None:
        grammar = self._grammar
        start, end = grammar.marks.start_tokens, grammar.marks.end_tokens
        if not grammar.inside and len(thoughts) < len(start):
            if self._answer is None:
                return None
            opening = self._only(start[len(thoughts)])
            answer = self._answer.allowed(()) if not thoughts else None
            return opening if answer is None else answer | opening
        count = len(thoughts) - (0 if grammar.inside else len(start))
        if grammar.budget is not None and count >= grammar.budget:
            return self._only(end[_matched(thoughts, end)])
        return self._all_but(grammar.eos_ids) if self._answer is not None else None

    def _only(self, token: int) -> Mask:
        return ~self._all_but((token,))

    def _all_but(self, tokens: Iterable[int]) -> Mask:
        mask = np.full(mask_words(self._grammar.vocab_size), 0xFFFFFFFF, np.uint32)
        for token in tokens:
            mask[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
        return mask


def _end_of_thoughts(grammar: ThinkingGrammar, tokens: Sequence[int]) -> int | None:
    """The index of the answer's first token, or None while the thoughts go on."""
    start, end = list(grammar.marks.start_tokens), list(grammar.marks.end_tokens)
    if not grammar.inside and list(tokens[: len(start)]) != start[: len(tokens)]:
        return 0
    for at in range(len(tokens) - len(end) + 1):
        if list(tokens[at : at + len(end)]) == end:
            return at + len(end)
    return None


def _matched(tokens: Sequence[int], mark: Sequence[int]) -> int:
    """How much of `mark` the last tokens are already."""
    for size in range(len(mark) - 1, 0, -1):
        if list(tokens[-size:]) == list(mark[:size]):
            return size
    return 0
