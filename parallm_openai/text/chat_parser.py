"""From a model's raw text to what a chat answer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallm_openai.text import harmony
from parallm_openai.text.events import Content, Event
from parallm_openai.text.harmony import HarmonyParser
from parallm_openai.text.reasoning import ReasoningSplitter, ThinkingMarks, ThoughtCounter
from parallm_openai.text.stop import Ending
from parallm_openai.text.tools.format import Tool, ToolFormat
from parallm_openai.text.tools.stream import ToolSplitter


@dataclass(frozen=True)
class ChatFormat:
    """What a model's chat template says of its answers: how it thinks and how it calls tools."""

    thinking: ThinkingMarks | None = None
    tools: ToolFormat | None = None
    harmony: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Text that must reach the parser even where the tokenizer holds it for invisible."""
        thinking = (self.thinking.start, self.thinking.end) if self.thinking is not None else ()
        tools = self.tools.markers if self.tools is not None else ()
        return (*(harmony.MARKS if self.harmony else ()), *thinking, *tools)

    @property
    def calls_tools(self) -> bool:
        return self.harmony or self.tools is not None

    @property
    def reasons(self) -> bool:
        return self.harmony or self.thinking is not None

    def parser(self, thinking: bool, tools: Sequence[Tool]) -> ChatParser:
        """A parser for one answer, which begins inside its thoughts if `thinking`; `tools` may be called."""
        return ChatParser(self, thinking, tools)

    def first_call(self, thinking: bool, tools: Sequence[Tool]) -> Ending:
        """The ending of an answer that may call one tool once: that call's last token."""
        parser = self.parser(thinking, tools)

        def completes(text: str, token: int) -> bool:
            parser.feed(text, (token,))
            return parser.between_calls

        return completes


class ChatParser:
    """Reads one answer: first the thinking, then content and tool calls."""

    def __init__(self, format: ChatFormat, thinking: bool, tools: Sequence[Tool]) -> None:
        marks = format.thinking
        self._reasoning = ReasoningSplitter(marks, thinking) if marks is not None else None
        self._counter = ThoughtCounter(marks, thinking) if marks is not None else None
        self._calls: ToolSplitter | HarmonyParser | None = None
        if format.harmony:
            self._calls = HarmonyParser()
        elif tools and format.tools is not None:
            self._calls = ToolSplitter(format.tools, tools)

    @property
    def reasoning_tokens(self) -> int:
        return self._counter.count if self._counter is not None else 0

    @property
    def calls(self) -> int:
        """How many tool calls have begun."""
        return self._calls.calls if self._calls is not None else 0

    @property
    def between_calls(self) -> bool:
        return self._calls is not None and self._calls.between_calls

    def feed(self, text: str, tokens: tuple[int, ...]) -> list[Event]:
        if self._counter is not None:
            self._counter.add(tokens)
        if self._reasoning is None:
            return self._answer(text)
        return self._split(self._reasoning.feed(text))

    def finish(self) -> list[Event]:
        """What was held back, now that nothing more comes."""
        events = self._split(self._reasoning.finish()) if self._reasoning is not None else []
        return events + (self._calls.finish() if self._calls is not None else [])

    def _split(self, events: Sequence[Event]) -> list[Event]:
        split: list[Event] = []
        for event in events:
            split += self._answer(event.text) if isinstance(event, Content) else [event]
        return split

    def _answer(self, text: str) -> list[Event]:
        if self._calls is not None:
            return self._calls.feed(text)
        return [Content(text)] if text else []
