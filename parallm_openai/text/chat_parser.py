"""Splits a model's raw text into the thoughts, the content and the tool calls of a chat answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import regex

from parallm_openai.engine.constraint import Grammar
from parallm_openai.text.events import CallArguments, CallStart, Content, Event
from parallm_openai.text.grammar.answer_grammar import Bound, Fork, Free, Node
from parallm_openai.text.reasoning import harmony
from parallm_openai.text.reasoning.harmony import HarmonyParser
from parallm_openai.text.reasoning.splitter import Beginning, Marks, ReasoningSplitter
from parallm_openai.text.tools.format import Tool, ToolFormat
from parallm_openai.text.tools.stream import ToolSplitter

TokenId = Callable[[str], int | None]
_TAG = regex.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class ChatFormat:
    """How a model writes its thoughts, the frame around its answers, and its tool calls; found in its chat template.

    With `generic_tools` the template has no form of calls, so that the server tells the model of `tools`. If there are
    no tools at all, `why_no_tools` says why.
    """

    thinking: Marks | None = None
    tools: ToolFormat | None = None
    harmony: bool = False
    frame: Marks | None = None
    generic_tools: bool = False
    why_no_tools: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """Text that must reach the parser even if the tokenizer leaves it out of decoded text.

        Some marks are several tokens, each of which may be left out by itself.
        """
        pairs = [pair for pair in (self.thinking, self.frame) if pair is not None]
        tools = self.tools.markers if self.tools is not None else ()
        own = [mark for pair in pairs for mark in (pair.start, pair.end)]
        parts = [part for mark in own for part in _TAG.findall(mark)]
        return (*(harmony.MARKS if self.harmony else ()), *own, *parts, *tools)

    @property
    def calls_tools(self) -> bool:
        return self.harmony or self.tools is not None

    @property
    def reasons(self) -> bool:
        return self.harmony or self.thinking is not None

    def beginning(self, prompt: str, prefill: str | None = None) -> Beginning:
        """How far a rendered prompt has begun the answer; `prefill` is a last message that the model continues."""
        opened = prompt
        if prefill is not None:
            # Templates strip, and some leave out thoughts that stand in a message.
            at = prompt.rfind(prefill.strip())
            opened = prompt[:at] if at >= 0 else prompt
        if self.harmony:
            return harmony.beginning(opened)
        opened = opened.rstrip()
        if self.frame is not None and opened.endswith(self.frame.start):
            return Beginning.ANSWER
        if self.thinking is not None:
            start, end = self.thinking.start, self.thinking.end
            begun = prefill or ""
            if (opened.endswith(start) and end not in begun) or begun.rfind(start) > begun.rfind(end):
                return Beginning.THOUGHTS
        return Beginning.FRESH if prefill is None else Beginning.ANSWER

    def parser(
        self, beginning: Beginning, tools: Sequence[Tool], *, bound: bool = False, once: bool = False
    ) -> ChatParser:
        """A parser for one answer. `tools` may be called, and only once if `once`. A `bound` answer has a grammar."""
        return ChatParser(self, beginning, tools, bound=bound, once=once)

    def script(
        self,
        beginning: Beginning,
        answer: Grammar | None,
        calls: Mapping[str, Grammar | None],
        token_id: TokenId,
        *,
        answers: bool = True,
        thinks: bool = True,
    ) -> tuple[dict[str, Node], str]:
        """A script of the whole answer (see `grammar/answer_grammar.py`), and the node at which it begins.

        Before what `answer` allows there may be thoughts, if the model `thinks`, and the family's own marks. Each of
        Harmony's `calls` has its own grammar; in other families calls are part of what `answer` allows. Unless it
        `answers`, an answer must be a call.
        """
        if self.harmony:
            nodes = harmony.script(answer, calls, token_id, answers=answers, thinks=thinks)
        else:
            nodes = self._script(answer if answers else None, answer, token_id, thinks)
        final = "framed" if "framed" in nodes else "final"
        starts = {Beginning.FRESH: "header", Beginning.THOUGHTS: "thoughts", Beginning.ANSWER: final}
        return nodes, starts[beginning]

    def _script(self, framed: Grammar | None, bare: Grammar | None, token_id: TokenId, thinks: bool) -> dict[str, Node]:
        """Thoughts, then the answer inside the family's marks or without marks."""
        nodes: dict[str, Node] = {"final": Bound(bare), "after": Bound(bare), "header": Bound(bare)}
        ways: list[tuple[str, str]] = []
        if self.frame is not None and framed is not None:
            end = token_id(self.frame.end)
            nodes["framed"] = Bound(framed, () if end is None else (end,))
            ways = [(self.frame.start, "framed")]
            nodes["after"] = Fork(tuple(ways), "final")
        if self.thinking is not None:
            shared = self.frame is not None and self.frame.start == self.thinking.end
            nodes["thoughts"] = Free(self.thinking.end, "framed" if shared and "framed" in nodes else "after")
            ways += [(self.thinking.start, "thoughts")] if thinks else []
        if ways:
            nodes["header"] = Fork(tuple(ways), "final")
        return nodes


class ChatParser:
    """Reads one answer: first the thoughts, then content and tool calls.

    The rule that only one call may be made stands here: nothing that follows the call comes out.
    """

    def __init__(
        self, format: ChatFormat, beginning: Beginning, tools: Sequence[Tool], *, bound: bool, once: bool
    ) -> None:
        self._once = once
        self._called = False
        self._calls: ToolSplitter | HarmonyParser | None = None
        self._reasoning: ReasoningSplitter | None = None
        if format.harmony:
            self._calls = HarmonyParser(tools, beginning)
        elif tools and format.tools is not None:
            self._calls = ToolSplitter(format.tools, tools)
        if not format.harmony and (format.thinking is not None or format.frame is not None):
            starts = (format.tools.start,) if format.tools is not None and format.tools.start else ()
            self._reasoning = ReasoningSplitter(format.thinking, format.frame, beginning, starts, bound)
        self._undecided = 0
        self.reasoning_tokens = 0

    @property
    def complete(self) -> bool:
        """Whether nothing more may come because the only call is complete."""
        return self._once and self._calls is not None and self._calls.between_calls

    def feed(self, text: str, tokens: Iterable[int] = ()) -> list[Event]:
        """The events of a piece of text. Its `tokens` count as thoughts if the text is, marks of thoughts included."""
        before = self._thinks()
        events = self._read(text)
        self._count(len(tuple(tokens)), before or self._thinks())
        return events

    def finish(self, natural: bool = False) -> list[Event]:
        """What was held back, now that nothing more comes; `natural` if the model itself ended the answer."""
        events = self._split(self._reasoning.finish()) if self._reasoning is not None else []
        return self._permitted(events + (self._calls.finish(natural) if self._calls is not None else []))

    def _read(self, text: str) -> list[Event]:
        if self._reasoning is None:
            return self._permitted(self._answer(text))
        return self._permitted(self._split(self._reasoning.feed(text)))

    def _thinks(self) -> bool:
        return self._marked is not None and self._marked.thinking

    @property
    def _marked(self) -> ReasoningSplitter | HarmonyParser | None:
        return self._calls if isinstance(self._calls, HarmonyParser) else self._reasoning

    def _count(self, tokens: int, thinks: bool) -> None:
        """Tokens of an unfinished mark or header count later, if it turns out to begin thoughts."""
        if thinks:
            self.reasoning_tokens += tokens + self._undecided
            self._undecided = 0
        elif self._marked is not None and self._marked.undecided:
            self._undecided += tokens
        else:
            self._undecided = 0

    def _split(self, events: Sequence[Event]) -> list[Event]:
        split: list[Event] = []
        for event in events:
            split += self._answer(event.text) if isinstance(event, Content) else [event]
        return split

    def _answer(self, text: str) -> list[Event]:
        if self._calls is not None:
            return self._calls.feed(text)
        return [Content(text)] if text else []

    def _permitted(self, events: list[Event]) -> list[Event]:
        return [event for event in events if not self._once or self._is_permitted(event)]

    def _is_permitted(self, event: Event) -> bool:
        match event:
            case CallStart(index):
                self._called = True
                return index == 0
            case CallArguments(index):
                return index == 0
            case Content():
                return not self._called
        return True
