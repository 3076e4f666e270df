"""Drafting without a model: what followed the last tokens when they stood somewhere before.

Somewhere is the row's own text, as in prompt lookup (Saxena, 2023), or an earlier answer of this server, as in
SuffixDecoding (Oliaro et al., arXiv 2411.04975). The longer the match, the surer the draft: how sure is learnt for each
length, so that a copied text is drafted far ahead, and a chance repetition hardly at all. It pays if answers repeat
their prompts or each other: code edits, extraction, summaries, agents.

What a row goes on with tells whether its match was right, whether or not that was drafted: learning costs nothing.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from operator import mul

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.draft_length.acceptance_rate import AcceptanceRate
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance, EngineConfig

# Matches are found by their last tokens, so many.
ANCHOR = 2
# How many places with these last tokens are looked at, the latest first, and how far back.
CANDIDATES = 8
# And in how many pieces of earlier answers that have such places, the latest first.
PIECES = 8
LONGEST_MATCH = 64
# A step reads no more of a row's text than this: the other rows wait meanwhile.
READ_AT_ONCE = 4096
# Earlier answers are kept, and forgotten, in pieces of about so many tokens.
PIECE = 4096
# Stands between two answers: no token has this id.
END = -1
# Matches longer than these are thought as sure as each other; and the chance that a token is right before any is known.
LENGTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
FIRST_GUESSES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.95)
MEMORY = 100.0
# A row differs from what is usual: that counts half after so many tokens, and is a mean over about so many.
ROW_PRIOR = 4.0
ROW_MEMORY = 40.0
# No chance is thought to be higher.
SUREST = 0.99


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens of a row stand in `text` before `place`, too."""

    text: Sequence[int]
    place: int
    length: int

    def continued(self, count: int) -> tuple[int, ...]:
        """`count` tokens from there on; past the end it goes on with its own copy, so that a loop unrolls."""
        period = len(self.text) - self.place
        return tuple(self.text[self.place + offset % period] for offset in range(count))


class SuffixIndex:
    """The places in a growing text after each pair of tokens, the latest first.

    The places with one pair are a chain, as in LZ77 compression: `_earlier[place]` is the one before it.
    """

    def __init__(self, text: Sequence[int] = ()) -> None:
        self.text = text
        self._latest: dict[int, int] = {}
        self._earlier = array("i", [0] * ANCHOR)

    def read(self, most: int) -> bool:
        """Take in what the text has grown by, up to so many tokens; whether that is all.

        Its very last token has no continuation yet.
        """
        text, end = self.text, len(self._earlier)
        stop = min(len(text), end + most)
        for place in range(end, stop):
            pair = _pair(text[place - 2], text[place - 1])
            self._earlier.append(self._latest.get(pair, 0))
            if text[place] != END:
                self._latest[pair] = place
        return stop >= len(text)

    def find(self, tokens: Sequence[int]) -> Match | None:
        """Where the longest suffix of `tokens` stands that is in the text before its last token.

        Of several such places, one that is continued as most of them are, and of those the latest. A match of
        `LONGEST_MATCH` tokens ends the search.
        """
        found: list[Match] = []
        for place in self._places(tokens):
            length = self._common(tokens, place)
            if not found or length > found[0].length:
                found = [Match(self.text, place, length)]
            elif length == found[0].length:
                found.append(Match(self.text, place, length))
            if length >= LONGEST_MATCH:
                # Any other is as long at most.
                break
        if not found:
            return None
        votes = Counter(match.continued(1) for match in found)
        # Of as many votes, `most_common` takes the first: the latest place.
        most = votes.most_common(1)[0][0]
        return next(match for match in found if match.continued(1) == most)

    def _places(self, tokens: Sequence[int]) -> Iterator[int]:
        place = self._latest.get(_pair(tokens[-2], tokens[-1]), 0)
        for _ in range(CANDIDATES):
            if not place:
                return
            yield place
            place = self._earlier[place]

    def _common(self, tokens: Sequence[int], place: int) -> int:
        """How many of the last tokens stand before this place."""
        text, most = self.text, min(LONGEST_MATCH, place, len(tokens))
        length = ANCHOR
        while length < most and text[place - length - 1] == tokens[-length - 1]:
            length += 1
        return length


def _pair(before: int, last: int) -> int:
    return before << 32 | last


class Answers:
    """Earlier answers, apart for each cache salt; the oldest make room for new ones."""

    def __init__(self) -> None:
        self.tokens = 0
        self._pieces: dict[str, deque[SuffixIndex]] = {}

    def add(self, salt: str, tokens: Sequence[int], budget: int) -> None:
        """Keep an answer within a budget of tokens for all."""
        kept = array("i", tokens)
        if ANCHOR < len(kept) < budget:
            self._add(salt, kept)
        self.evict_to(budget)

    def evict_to(self, budget: int) -> None:
        while self.tokens > budget:
            self._forget_a_piece()

    def _add(self, salt: str, kept: array[int]) -> None:
        # The one that was added to last is forgotten last.
        pieces = self._pieces[salt] = self._pieces.pop(salt, deque())
        if not pieces or len(pieces[-1].text) >= PIECE:
            pieces.append(SuffixIndex(array("i")))
        piece = pieces[-1]
        assert isinstance(piece.text, array)
        piece.text.extend(array("i", [END]) + kept)
        piece.read(len(piece.text))
        self.tokens += len(kept) + 1

    def _forget_a_piece(self) -> None:
        salt, pieces = next(iter(self._pieces.items()))
        self.tokens -= len(pieces.popleft().text)
        if not pieces:
            del self._pieces[salt]

    def find(self, salt: str, tokens: Sequence[int]) -> Iterator[Match]:
        matches = (piece.find(tokens) for piece in reversed(self._pieces.get(salt, ())))
        for match in islice((match for match in matches if match is not None), PIECES):
            yield match
            if match.length >= LONGEST_MATCH:
                return


@dataclass(slots=True)
class RowText:
    """What the drafter knows of a row: an index of its text, and the match for the text at one length.

    `right` of its matches' tokens were right, if `expected` would have been in a usual row.
    """

    index: SuffixIndex
    match: Match | None = None
    length: int = 0
    right: float = 0.0
    expected: float = 0.0

    @property
    def factor(self) -> float:
        """How much surer its matches are than those of a usual row."""
        return (self.right + ROW_PRIOR) / (self.expected + ROW_PRIOR)

    def learn(self, right: bool, expected: float) -> None:
        kept = 1 - 1 / ROW_MEMORY
        self.right = kept * self.right + right
        self.expected = kept * self.expected + expected


@dataclass(slots=True)
class Sureness:
    """The chance that the token after a match of so many is right."""

    rates: list[AcceptanceRate] = field(
        default_factory=lambda: [AcceptanceRate(MEMORY, guess, trials=4.0) for guess in FIRST_GUESSES]
    )

    def of(self, length: int) -> AcceptanceRate:
        return self.rates[sum(length > bound for bound in LENGTHS)]

    def chances(self, length: int, count: int, factor: float = 1.0) -> list[float]:
        """For each of the next `count` tokens, the chance that all up to it are right.

        The match is one longer after each.
        """
        return list(accumulate((min(factor * self.of(length + depth).mean, SUREST) for depth in range(count)), mul))


class SuffixDrafter(Drafter):
    """Drafts from each row's own text and from earlier answers."""

    name = "suffix"

    def __init__(self) -> None:
        self.answers = Answers()
        # Of greedy rows, and of sampled ones, which stray from a copy more often.
        self.sureness = {True: Sureness(), False: Sureness()}

    @property
    def computes(self) -> bool:
        return False

    def available(self, row: Row, limit: int) -> int:
        return limit if limit and self._match(row) is not None else 0

    def chances(self, row: Row, count: int) -> Sequence[float] | None:
        match = self._match(row) if count else None
        if match is None or row.suffixes is None:
            return None
        return self._sureness(row).chances(match.length, count, row.suffixes.factor)

    def propose(
        self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance, copied: Sequence[bool] = ()
    ) -> Drafts:
        return Drafts.of([self._drafted(row, length) for row, length in zip(batch.rows, lengths, strict=True)])

    def _drafted(self, row: Row, count: int) -> tuple[int, ...]:
        match = self._match(row) if count else None
        if match is None:
            return ()
        drafted = match.continued(count)
        return drafted[: drafted.index(END)] if END in drafted else drafted

    def learn(self, row: Row, tokens: Sequence[int]) -> None:
        known = row.suffixes
        if known is None or known.match is None or known.length != len(row.tokens):
            return
        sureness = self._sureness(row)
        for depth, (guess, token) in enumerate(zip(known.match.continued(len(tokens)), tokens, strict=True)):
            if guess == END:
                return
            rate = sureness.of(known.match.length + depth)
            known.learn(guess == token, rate.mean)
            rate.learn(int(guess == token), 1)
            if guess != token:
                return

    def _sureness(self, row: Row) -> Sureness:
        return self.sureness[row.request.params.greedy]

    def ended(self, row: Row, config: EngineConfig) -> None:
        answer = row.tokens[len(row.request.prompt) :]
        self.answers.add(row.request.cache_salt, answer, config.suffix_store_tokens)

    def evict(self, config: EngineConfig) -> None:
        self.answers.evict_to(config.suffix_store_tokens)

    def _match(self, row: Row) -> Match | None:
        """The longest match of a row's last tokens, looked for once at each length of its text."""
        if row.suffixes is None:
            row.suffixes = RowText(SuffixIndex(row.tokens))
        known = row.suffixes
        if known.length != len(row.tokens):
            known.index.read(READ_AT_ONCE)
            known.length, known.match = len(row.tokens), None
            if len(row.tokens) >= ANCHOR:
                own = known.index.find(row.tokens)
                found = [*([own] if own else []), *self.answers.find(row.request.cache_salt, row.tokens)]
                known.match = max(found, key=lambda match: match.length, default=None)
        return known.match
