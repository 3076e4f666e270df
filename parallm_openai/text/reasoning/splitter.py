"""Splits what a model thinks from what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from parallm_openai.text.events import Content, Event, Reasoning
from parallm_openai.text.scanner import pending

# White space next to marks is layout. A set of its own, so that text and bytes are treated alike.
SPACE = " \t\r\n\f\v"


class Beginning(Enum):
    """What the prompt has already begun when the model starts to write: nothing, thoughts, or the answer."""

    FRESH = auto()
    THOUGHTS = auto()
    ANSWER = auto()


@dataclass(frozen=True)
class Marks:
    """The mark before a stretch of text and the mark after it."""

    start: str
    end: str


# Taken from chat templates and from other servers' parsers; if several fit, the first one counts.
THINKING = tuple(
    Marks(*pair)
    for pair in (
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<seed:think>", "</seed:think>"),
        ("<longcat_think>", "</longcat_think>"),
        ("<|think:start|>", "<|think:end|>"),
        ("<|channel>thought", "<channel|>"),
        ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("◁think▷", "◁/think▷"),
        ("<thinking>", "</thinking>"),
        ("<reasoning>", "</reasoning>"),
        ("<thought>", "</thought>"),
        ("Here is my thought process:", "Here is my response:"),
        ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    )
)
# Marks that some families write around the answer itself.
ANSWER = tuple(
    Marks(*pair)
    for pair in (
        ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ("<|START_TEXT|>", "<|END_TEXT|>"),
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
        ("<|begin_of_solution|>", "<|end_of_solution|>"),
        ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
        ("<response>", "</response>"),
        ("<answer>", "</answer>"),
    )
)
_PLAIN_WORDS = ("<response>", "<answer>")


def thinking_marks(template: str, vocabulary: Mapping[str, int]) -> Marks | None:
    """The marks of thoughts that the template has; else those that are tokens of the vocabulary."""
    return next(
        (
            marks
            for holds in (template, vocabulary)
            for marks in THINKING
            if marks.start in holds and marks.end in holds
        ),
        None,
    )


def answer_marks(template: str, written: Callable[[], str]) -> Marks | None:
    """The marks that the template puts around answers.

    `written` returns a rendered conversation with a past answer. Some templates write a tool's result as
    `<response>`. So a mark that is a plain word counts only if a past answer stands in it, or if its two marks stand
    together, as they do in instructions.
    """
    for marks in ANSWER:
        if marks.start not in template or marks.end not in template:
            continue
        if marks.start not in _PLAIN_WORDS or marks.start + marks.end in template or marks.start in written():
            return marks
    return None


# Takes from the text that is held; returns the events, and whether it may be able to take more.
_Step = Callable[[], tuple[list[Event], bool]]


class ReasoningSplitter:
    """Splits `<think>thoughts</think>answer`; white space next to the marks belongs to neither.

    Only thoughts at the very beginning count: later marks are part of the answer. If the family has marks around its
    answers, they are given as `frame` and taken off. An end mark with text behind it was a part of the answer, unless
    that text is one of the marks `calls`, which begin calls. White space before a `bound` answer stays, since its
    grammar may ask for it.
    """

    def __init__(
        self,
        thinking: Marks | None,
        frame: Marks | None = None,
        beginning: Beginning = Beginning.FRESH,
        calls: Sequence[str] = (),
        bound: bool = False,
    ) -> None:
        self._thinking = thinking
        self._frame = frame
        self._calls = tuple(calls)
        self._bound = bound
        self._held = ""
        # White space that is left out if a mark comes next.
        self._space: list[str] = []
        self._closing = ""
        self._step: _Step = {
            Beginning.FRESH: self._before,
            Beginning.THOUGHTS: self._thoughts,
            Beginning.ANSWER: self._answer if frame is None else self._framed,
        }[beginning]
        self._at_edge = beginning is Beginning.THOUGHTS

    @property
    def thinking(self) -> bool:
        return self._step == self._thoughts

    @property
    def undecided(self) -> bool:
        """Whether the text so far may be the first part of the mark that opens the thoughts."""
        return self._step == self._before and bool(self._held)

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        more = bool(self._held)
        while more:
            found, more = self._step()
            events += found
        return events

    def finish(self) -> list[Event]:
        """What was held back, now that nothing more comes."""
        edge = self._step == self._after and not self._bound
        text = self._held if edge else "".join(self._space) + self._held
        self._held, self._space = "", []
        if not text or self._step == self._closed:
            return []
        return [Reasoning(text)] if self.thinking else [Content(text)]

    def _skip_space(self) -> str:
        """The text that is held, without the white space before it, which is put aside."""
        if self._bound and self._step != self._closed:
            return self._held
        stripped = self._held.lstrip(SPACE)
        if len(stripped) < len(self._held):
            self._space.append(self._held[: len(self._held) - len(stripped)])
            self._held = stripped
        return stripped

    def _before(self) -> tuple[list[Event], bool]:
        held = self._skip_space()
        if self._thinking is not None and held.startswith(self._thinking.start):
            self._held, self._space = held[len(self._thinking.start) :], []
            self._step, self._at_edge = self._thoughts, True
            return [], True
        return self._look_for_frame(self._thinking)

    def _after(self) -> tuple[list[Event], bool]:
        self._skip_space()
        return self._look_for_frame(None)

    def _look_for_frame(self, other: Marks | None) -> tuple[list[Event], bool]:
        held = self._held
        if self._frame is not None and held.startswith(self._frame.start):
            self._held, self._space = held[len(self._frame.start) :], []
            self._step, self._at_edge = self._framed, not self._bound
            return [], True
        if any(marks is not None and marks.start.startswith(held) for marks in (self._frame, other)):
            return [], False
        if not held:
            return [], False
        edge = self._step == self._after and not self._bound
        self._held = held if edge else "".join(self._space) + held
        self._space, self._at_edge = [], False
        self._step = self._answer
        return [], True

    def _thoughts(self) -> tuple[list[Event], bool]:
        assert self._thinking is not None
        text, found = self._up_to(self._thinking.end)
        text = self._trimmed(text)
        if found:
            self._space = []
            self._step = self._after_thoughts()
            self._at_edge = not self._bound
        return [Reasoning(text)] if text else [], found

    def _after_thoughts(self) -> _Step:
        if self._frame is None:
            return self._answer if self._bound else self._after
        assert self._thinking is not None
        # In some families one mark ends the thoughts and begins the answer.
        return self._framed if self._frame.start == self._thinking.end else self._after

    def _up_to(self, mark: str) -> tuple[str, bool]:
        """The held text before the mark, which is taken off; or, without a mark, all that cannot be part of it."""
        at = self._held.find(mark)
        if at >= 0:
            text, self._held = self._held[:at], self._held[at + len(mark) :]
            return text, True
        size = len(self._held) - pending(self._held, (mark,))
        text, self._held = self._held[:size], self._held[size:]
        return text, False

    def _framed(self) -> tuple[list[Event], bool]:
        assert self._frame is not None
        text, found = self._up_to(self._frame.end)
        events = self._content(text)
        if found:
            self._closing, self._space = "".join(self._space) + self._frame.end, []
            self._step = self._closed
        return events, found

    def _closed(self) -> tuple[list[Event], bool]:
        """After the mark that ends the answer: only calls may follow."""
        held = self._skip_space()
        if any(held.startswith(call) for call in self._calls):
            self._space, self._step = [], self._answer
            return [], True
        if not held or any(call.startswith(held) for call in self._calls):
            return [], False
        self._held, self._space = "".join(self._space) + held, []
        self._step = self._framed
        return [Content(self._closing)], True

    def _content(self, text: str) -> list[Event]:
        if self._bound:
            return [Content(text)] if text else []
        text = self._trimmed(text)
        return [Content(text)] if text else []

    def _trimmed(self, text: str) -> str:
        """Text without the white space next to marks: that at its end, and at the edge that at its start, too."""
        if self._at_edge:
            text = text.lstrip(SPACE)
            self._at_edge = not text
        kept = text.rstrip(SPACE)
        space = text[len(kept) :]
        if not kept:
            if space:
                self._space.append(space)
            return ""
        kept = "".join(self._space) + kept
        self._space = [space] if space else []
        return kept

    def _answer(self) -> tuple[list[Event], bool]:
        text, self._held = self._held, ""
        return [Content(text)] if text else [], False
