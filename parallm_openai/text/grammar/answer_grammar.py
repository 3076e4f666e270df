"""A grammar that begins where the answer does: after thoughts within their budget, inside the family's own marks.

A small script says what may come before the answer. Its nodes are of three kinds: free text up to a mark, a fork at
which one of several texts follows, and a place at which a grammar takes over. A matcher follows the script by the text
of the tokens, as the parsers of answers do. It keeps only as much of the text as could still become a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from parallm_openai.engine.constraint import Grammar, Mask, Matcher, mask_words
from parallm_openai.text.reasoning.splitter import SPACE
from parallm_openai.text.token_bytes import Lexicon

_SPACE = SPACE.encode()


@dataclass(frozen=True)
class Bound:
    """What `grammar` allows (None: anything). Whenever the grammar may end, one of the tokens `closings` may end it."""

    grammar: Grammar | None = None
    closings: tuple[int, ...] = ()


@dataclass(frozen=True)
class Free:
    """Any text up to the mark `end` except the tokens `barred`; the node `then` follows. `thoughts` have a budget."""

    end: str
    then: str
    thoughts: bool = True
    barred: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fork:
    """One of the texts of `ways`, each with the node that follows it; or the node `otherwise`, if there is one."""

    ways: tuple[tuple[str, str], ...]
    otherwise: str | None = None


Node = Bound | Free | Fork


@dataclass(frozen=True)
class AnswerGrammar:
    """A script that begins at the node `start`. Thoughts take at most `budget` tokens (None: any number).

    If an answer `must` follow, the sequence cannot end before it.
    """

    nodes: Mapping[str, Node]
    start: str
    lexicon: Lexicon
    vocab_size: int
    eos_ids: tuple[int, ...]
    budget: int | None = None
    must: bool = False
    _masks: dict[tuple[str, bytes], Mask] = field(default_factory=dict, compare=False)
    _marks: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict, compare=False)

    def matcher(self) -> AnswerMatcher:
        return AnswerMatcher(self)

    def only(self, tokens: Iterable[int]) -> Mask:
        return ~self.all_but(tokens)

    def all_but(self, tokens: Iterable[int]) -> Mask:
        mask = np.full(mask_words(self.vocab_size), 0xFFFFFFFF, np.uint32)
        for token in tokens:
            if token < self.vocab_size:
                mask[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << (token % 32)))
        return mask

    def spelling(self, text: bytes, size: int) -> list[int]:
        """The tokens that may follow the first `size` bytes of `text`; none if that is in the middle of a mark."""
        if text not in self._marks:
            self._marks[text] = self.lexicon.marks_in(text)
        inside = any(begin < size < end for begin, end in self._marks[text])
        return [] if inside else self.lexicon.continuing(text[size:])

    def free_mask(self, name: str, node: Free, tail: bytes) -> Mask | None:
        """The tokens that may follow in free text that ends with `tail`, a beginning of its end mark."""
        if not self._strict(node) and not self.must and not node.barred:
            return None
        if (name, tail) not in self._masks:
            barred = set(node.barred) | set(self.eos_ids if self.must else ())
            if self._strict(node):
                end = node.end.encode()
                barred |= {t for size in _borders(tail, end) for t in self.lexicon.running_over(end[size:])}
                barred |= set(self.lexicon.holding(end))
            self._masks[name, tail] = self.all_but(barred)
        return self._masks[name, tail]

    def _strict(self, node: Free) -> bool:
        """Whether the end mark must be the end of a token, because a grammar or a fork follows."""
        return self.nodes[node.then] != Bound()


@dataclass(frozen=True)
class _Place:
    """How far a sequence has come in the script: the node, and the part of its text that could still matter.

    `text` is what a fork has seen, or the end of free text that could begin the end mark. `tokens` are those that a
    fork has seen and that the grammar which takes over has not. `thought` counts the tokens of thoughts. A sequence
    that does what the script rules out has `left_script`.
    """

    node: str
    text: bytes = b""
    tokens: tuple[int, ...] = ()
    thought: int = 0
    left_script: bool = False


class AnswerMatcher:
    """One sequence's place in the script and in the grammar that took over."""

    def __init__(self, grammar: AnswerGrammar) -> None:
        self._grammar = grammar
        self._place = _Place(grammar.start)
        # Made when they are first needed: a script ends in one of several grammars.
        self._matchers: dict[str, Matcher] = {}
        self._closed = False

    @property
    def finished(self) -> bool:
        matcher = self._matcher(self._place.node)
        return self._closed or (matcher is not None and matcher.finished)

    @property
    def error(self) -> str | None:
        if self._place.left_script:
            return "the answer does not begin as it must"
        matcher = self._matcher(self._place.node)
        return matcher.error if matcher is not None else None

    def advance(self, token: int) -> None:
        place = self._walk(self._place, (token,))
        self._place = replace(place, tokens=()) if isinstance(self._node(place), Bound) else place
        node = self._node(place)
        if not isinstance(node, Bound) or self._closed:
            return
        matcher = self._matcher(place.node)
        for each in place.tokens if matcher is not None else ():
            assert matcher is not None
            if each in node.closings and self._may_close(matcher):
                self._closed = True
                return
            matcher.advance(each)

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        place = self._walk(self._place, drafts)
        if place.left_script or self._closed:
            return None
        node = self._node(place)
        if isinstance(node, Bound):
            return self._bound_allows(place.node, node, place.tokens)
        return self._free_allows(place, node) if isinstance(node, Free) else self._fork_allows(place, node)

    def _node(self, place: _Place) -> Node:
        return self._grammar.nodes[place.node]

    def _matcher(self, name: str) -> Matcher | None:
        node = self._grammar.nodes[name]
        if not isinstance(node, Bound) or node.grammar is None:
            return None
        if name not in self._matchers:
            self._matchers[name] = node.grammar.matcher()
        return self._matchers[name]

    def _may_close(self, matcher: Matcher) -> bool:
        mask = matcher.allowed(())
        return mask is not None and self._ends(mask)

    def _ends(self, mask: Mask) -> bool:
        return any(mask[token // 32] >> np.uint32(token % 32) & 1 for token in self._grammar.eos_ids)

    def _bound_allows(self, name: str, node: Bound, drafts: tuple[int, ...]) -> Mask | None:
        matcher = self._matcher(name)
        mask = matcher.allowed(drafts) if matcher is not None else None
        if mask is None or not node.closings or not self._ends(mask):
            return mask
        return mask | self._grammar.only(node.closings)

    def _free_allows(self, place: _Place, node: Free) -> Mask | None:
        grammar = self._grammar
        if not node.thoughts or grammar.budget is None or place.thought < grammar.budget:
            return grammar.free_mask(place.node, node, place.text)
        end = node.end.encode()
        forced = grammar.spelling(end, len(place.text)) or grammar.spelling(end, 0)
        return grammar.only(forced) if forced else None

    def _fork_allows(self, place: _Place, node: Fork) -> Mask | None:
        grammar = self._grammar
        spent = grammar.budget is not None and place.thought >= grammar.budget
        following: list[int] = []
        for text, then in node.ways:
            way, target = text.encode(), grammar.nodes[then]
            closed = spent and node.otherwise is None and isinstance(target, Free) and target.thoughts
            if way.startswith(place.text) and not closed:
                following += grammar.spelling(way, len(place.text))
        if node.otherwise is None:
            return grammar.only(following) if following else None
        bound = grammar.nodes[node.otherwise]
        assert isinstance(bound, Bound)
        if bound.grammar is None:
            return None
        mask = self._bound_allows(node.otherwise, bound, place.tokens)
        ways = grammar.only(following)
        return ways if mask is None else mask | ways

    def _walk(self, place: _Place, tokens: tuple[int, ...]) -> _Place:
        for at, token in enumerate(tokens):
            if place.left_script:
                return place
            node = self._node(place)
            if isinstance(node, Bound):
                return replace(place, tokens=place.tokens + tokens[at:])
            text = self._grammar.lexicon.of[token] if token < len(self._grammar.lexicon.of) else b""
            place = self._in_free(place, node, text) if isinstance(node, Free) else self._in_fork(place, token, text)
        return place

    def _in_free(self, place: _Place, node: Free, text: bytes) -> _Place:
        thought = place.thought + node.thoughts
        end, text = node.end.encode(), place.text + text
        at = text.find(end)
        if at < 0:
            return replace(place, text=text[len(text) - max(_borders(text, end), default=0) :], thought=thought)
        return self._enter(replace(place, thought=thought), node.then, text[at + len(end) :])

    def _in_fork(self, place: _Place, token: int, more: bytes) -> _Place:
        node = self._node(place)
        assert isinstance(node, Fork)
        text = place.text + more
        otherwise = self._grammar.nodes[node.otherwise] if node.otherwise is not None else None
        if otherwise == Bound():
            # The parser skips white space before a mark.
            text = text.lstrip(_SPACE)
        for way, then in node.ways:
            if text.startswith(way.encode()):
                return self._enter(place, then, text[len(way.encode()) :])
        tokens = (*place.tokens, token)
        if any(way.encode().startswith(text) for way, _ in node.ways):
            return replace(place, text=text, tokens=tokens)
        if node.otherwise is None:
            return replace(place, left_script=True)
        return _Place(node.otherwise, tokens=tokens, thought=place.thought)

    def _enter(self, place: _Place, name: str, rest: bytes) -> _Place:
        """Enter a node; the last token before it brought `rest`, which is a part of it already."""
        entered = _Place(name, thought=place.thought)
        node = self._grammar.nodes[name]
        if isinstance(node, Free) and rest:
            return self._in_free(entered, node, rest)
        return replace(entered, left_script=bool(rest) and node != Bound())


def _borders(text: bytes, mark: bytes) -> list[int]:
    """The size of every end of `text` that is a beginning of `mark`."""
    return [size for size in range(1, min(len(text), len(mark) - 1) + 1) if mark.startswith(text[-size:])]
