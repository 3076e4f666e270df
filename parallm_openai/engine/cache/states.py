"""The states of a batch's recurrent layers, and how to have those of an earlier token of a row.

MLX's arrays are immutable, so the states before a forward need only be kept. A row remembers the forwards that
computed its newest tokens. To roll it back to a token between two forwards is to take the state that was there. Inside
a forward, the mixers run again over the tokens up to it (`models/mixers.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from parallm_openai.models.mixers import Recording, States, joined, taken

# How many states of earlier tokens a row keeps for later rows: that of the earliest, and the newest.
MOST_KEPT = 4


@dataclass(slots=True, eq=False)
class Forward:
    """The states before and after a forward of `width` tokens a row; and what its mixers read, if that may be wanted.

    If it is `masked`, the mixers passed over padding, so that the states after it are right for rows of fewer tokens.
    """

    before: States
    after: States
    width: int = 0
    masked: bool = False
    recording: Recording | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of a row after its first `start`: computed in a forward, where its place was `place`."""

    forward: Forward
    place: int
    start: int
    count: int = 0

    @property
    def end(self) -> int:
        return self.start + self.count

    def source(self, length: int) -> States | None:
        """The states that hold the row's after `length` tokens; None if the mixers have to run again for them."""
        if length == self.start:
            return self.forward.before
        complete = self.forward.masked or self.count == self.forward.width
        return self.forward.after if length == self.end and complete else None


@dataclass(slots=True)
class RowStates:
    """The newest spans of a row, in order, and the states of earlier tokens that it keeps."""

    spans: list[Span] = field(default_factory=list)
    kept: dict[int, Span] = field(default_factory=dict)

    def at(self, length: int) -> Span | None:
        """The span that leads to the state after `length` tokens; None if that is the state before all tokens."""
        if not length:
            return None
        spans = [*self.kept.values(), *self.spans]
        found = next((span for span in reversed(spans) if span.start <= length <= span.end), None)
        if found is None:
            raise RuntimeError(f"the state after {length} tokens of a row is not known")
        return found

    def continue_with(self, span: Span, certain: int) -> None:
        """Compute on from the beginning of this span; no state before the first `certain` tokens will be wanted."""
        self.spans = [*(own for own in self.spans if own.start < span.start), span]
        while len(self.spans) > 1 and self.spans[1].start <= certain:
            self.spans.pop(0)

    def keep(self, point: Span) -> None:
        self.kept[point.start] = point
        if len(self.kept) > MOST_KEPT:
            del self.kept[sorted(self.kept)[1]]


class BatchStates:
    """The states of a batch's rows, which are in the order of its slots; `layers` is what the model reads and writes.

    `masked` says whether the model's mixers pass over padding.
    """

    def __init__(self, layers: Sequence[ArraysCache], masked: bool) -> None:
        self.layers = layers
        self.masked = masked
        self.rows: list[RowStates] = []

    def append_row(self) -> None:
        self.rows.append(RowStates())

    def append_row_from(self, other: BatchStates, slot: int, length: int) -> None:
        """Add a row with another's states after `length` tokens, and those that it keeps of fewer."""
        self.rows.append(other.copy_of(slot, length))

    def remove_row(self, slot: int) -> None:
        """Drop a row; the last one moves into its place."""
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    def beginning(self, slot: int, length: int) -> int:
        """The most tokens, up to `length`, after which the row's state is there."""
        row = self.rows[slot]
        known = {*row.kept, *(span.start for span in row.spans), *(span.end for span in row.spans)}
        return max((own for own in known if own <= length), default=0)

    @property
    def nbytes(self) -> int:
        """What all states take that rows keep for others, and their newest."""
        points = [point.forward.after for row in self.rows for point in row.kept.values()]
        newest = [row.spans[-1].forward.after for row in self.rows if row.spans]
        own = {id(states): states for states in (*points, *newest)}
        return sum(array.nbytes for states in own.values() for layer in states for array in layer if array is not None)

    def begin(self, lengths: Sequence[int], counts: Sequence[int], certain: Sequence[int]) -> Forward:
        """Prepare the layers to read `counts` tokens after the first `lengths` of the batch's first rows.

        Of each row the first `certain` tokens will never be rolled back.
        """
        before = self._states(lengths)
        forward = Forward(before, before, max(counts), self.masked)
        padded = any(0 < count < forward.width for count in counts)
        ends = [length + count for length, count in zip(lengths, counts, strict=True)]
        # A row of one token is rolled back to before it, if at all.
        tentative = any(count > 1 and end > sure for count, end, sure in zip(counts, ends, certain, strict=True))
        if tentative or (padded and not self.masked):
            forward.recording = Recording(self.layers, len(counts), forward.width)
        # Lengths make the mixers take a mask. A recorded call needs one, so that another can take its place.
        masked = self.masked and (padded or tentative)
        for layer, arrays in zip(self.layers, before, strict=True):
            layer.cache = list(arrays)
            layer.lengths = mx.array(list(counts)) if masked else None
        for place, (row, length) in enumerate(zip(self.rows, lengths, strict=False)):
            row.continue_with(Span(forward, place, length), certain[place])
        return forward

    def end(self, forward: Forward, counts: Sequence[int], certain: Sequence[int]) -> None:
        """Take the states that the forward has left in the layers."""
        forward.after = [list(layer.cache) for layer in self.layers]
        rows = self.rows[: len(counts)]
        for row, count in zip(rows, counts, strict=True):
            row.spans[-1] = replace(row.spans[-1], count=count)
        ends = [row.spans[-1].end for row in rows]
        if all(end <= sure for end, sure in zip(ends, certain, strict=True)):
            self._settle(ends)

    def _settle(self, lengths: Sequence[int]) -> None:
        """Forget how the first rows have come to these lengths."""
        states = self._states(lengths)
        settled = Forward(states, states)
        for place, length in enumerate(lengths):
            self.rows[place].spans = [Span(settled, place, length)]

    def _states(self, lengths: Sequence[int]) -> States:
        spans = [row.at(length) for row, length in zip(self.rows, lengths, strict=False)]
        return gathered(spans, lengths) or [[None] * len(layer.cache) for layer in self.layers]

    def copy_of(self, slot: int, length: int) -> RowStates:
        """A row's states after `length` tokens and those that it keeps of fewer, in arrays of their own."""
        row = self.rows[slot]
        copied = RowStates(kept={at: span for at, span in row.kept.items() if at <= length})
        if length:
            copied.spans = [self._point(slot, length)]
        return copied

    def keep(self, slot: int, length: int) -> None:
        """Keep the state after `length` tokens, for rows that will begin with them."""
        if length and length not in self.rows[slot].kept:
            self.rows[slot].keep(self._point(slot, length))

    def of(self, slot: int, length: int) -> States:
        """One row's states after `length` tokens."""
        states = gathered([self.rows[slot].at(length)], [length])
        assert states is not None
        return states

    def _point(self, slot: int, length: int) -> Span:
        states = self.of(slot, length)
        # A view of a batch's states would keep all of them in memory.
        alone = [[None if array is None else mx.contiguous(array) for array in layer] for layer in states]
        mx.eval(alone)
        return Span(Forward(alone, alone), 0, length)

    def arrays(self) -> list[mx.array]:
        """The newest states, for somebody who wants them computed."""
        newest = {id(row.spans[-1].forward): row.spans[-1].forward for row in self.rows if row.spans}
        return [array for forward in newest.values() for layer in forward.after for array in layer if array is not None]


def gathered(spans: Sequence[Span | None], lengths: Sequence[int]) -> States | None:
    """The states `[len(spans), ...]` of rows after so many tokens; None if all of them are before their first."""
    places: list[tuple[States, int] | None] = _places(spans, lengths)
    known = [place for place in places if place is not None]
    if not known:
        return None
    sources = list({id(states): states for states, _ in known}.values())
    wanted: list[list[int]] = [[] for _ in sources]
    order: list[tuple[int, int]] = []
    for place in places:
        number = len(sources) if place is None else next(n for n, own in enumerate(sources) if own is place[0])
        if place is not None:
            wanted[number].append(place[1])
        order.append((number, len(wanted[number]) - 1 if place is not None else 0))
    parts = [_chosen(states, rows) for states, rows in zip(sources, wanted, strict=True)]
    if any(place is None for place in places):
        parts.append([[None if array is None else mx.zeros_like(array[:1]) for array in layer] for layer in parts[0]])
    firsts = [sum(map(len, wanted[:number])) for number in range(len(parts))]
    return _chosen(joined(parts), [firsts[number] + place for number, place in order])


def _places(spans: Sequence[Span | None], lengths: Sequence[int]) -> list[tuple[States, int] | None]:
    """Where each row's state is: some states and its place in them. Mixers run again for those that are nowhere."""
    counts: defaultdict[Forward, dict[int, int]] = defaultdict(dict)
    for span, length in zip(spans, lengths, strict=True):
        if span is not None and span.source(length) is None:
            counts[span.forward][span.place] = length - span.start
    replayed = {forward: _replay(forward, own) for forward, own in counts.items()}
    places: list[tuple[States, int] | None] = []
    for span, length in zip(spans, lengths, strict=True):
        if span is None:
            places.append(None)
        elif (states := span.source(length)) is not None:
            places.append((states, span.place))
        else:
            again, at = replayed[span.forward]
            places.append((again, at[span.place]))
    return places


def _replay(forward: Forward, counts: Mapping[int, int]) -> tuple[States, dict[int, int]]:
    assert forward.recording is not None
    return forward.recording.replay(forward.before, counts, forward.masked)


def _chosen(states: States, rows: Sequence[int]) -> States:
    """Some rows of states, or the states themselves if those are all of them in order."""
    size = next(array.shape[0] for layer in states for array in layer if array is not None)
    return states if list(rows) == list(range(size)) else taken(states, rows)
