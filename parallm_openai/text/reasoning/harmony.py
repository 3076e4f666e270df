"""gpt-oss's "harmony" answers, which are messages on channels, each with a header.

`<|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>final<|message|>answer`,
and calls as `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}`, the recipient
before or after the channel (https://cookbook.openai.com/articles/openai-harmony).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import regex

from parallm_openai.engine.constraint import Grammar
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning
from parallm_openai.text.grammar.answer_grammar import Bound, Fork, Free, Node
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.scanner import earliest, pending
from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.json_calls import begun_text, object_of
from parallm_openai.text.tools.typed import takes_nothing
from parallm_openai.text.tools.values import to_json

START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN = (
    f"<|{name}|>" for name in ("start", "channel", "constrain", "message", "end", "call", "return")
)
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
_ENDS = (END, CALL, RETURN)
_RECIPIENT = regex.compile(r"(?:^|\s)to=(\S+)")
_CHANNEL = regex.compile(regex.escape(CHANNEL) + r"\s*(\w+)")
_NAMESPACE = "functions."
# White space that is longer than this does not begin a header.
_HEADER_SPACE = 16


def beginning(prompt: str) -> Beginning:
    """Whether an answer to this prompt begins with a header, or in a message that the prompt has begun."""
    header, message, _ = prompt.rpartition(START)[2].partition(MESSAGE)
    if not message or not header.startswith("assistant"):
        return Beginning.FRESH
    return Beginning.THOUGHTS if _channel(header) == "analysis" else Beginning.ANSWER


def _channel(header: str) -> str:
    found = _CHANNEL.search(header)
    return found[1] if found is not None else ""


class HarmonyParser:
    """Reads one answer. Messages to one of the `tools` are calls; those to anybody else are content or thoughts.

    The prompt ends with `<|start|>assistant`, so that a fresh answer begins in a header. If its first words do not
    look like a header, they are content.
    """

    def __init__(self, tools: Sequence[Tool] = (), beginning: Beginning = Beginning.FRESH) -> None:
        self._tools = {tool["function"]["name"]: tool for tool in tools}
        self._held = ""
        self._header: list[str] | None = [] if beginning is Beginning.FRESH else None
        self._fresh = beginning is Beginning.FRESH
        thoughts = beginning is Beginning.THOUGHTS
        self._kind: type[Content] | type[Reasoning] | None = Reasoning if thoughts else Content
        self.calls = 0
        self._arguments: _Arguments | None = None

    @property
    def between_calls(self) -> bool:
        return self.calls > 0 and self._arguments is None

    @property
    def thinking(self) -> bool:
        return self._header is None and self._kind is Reasoning

    @property
    def undecided(self) -> bool:
        """Whether a header is unfinished, which may turn out to be that of thoughts."""
        return self._header is not None

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        while (found := earliest(self._held, MARKS)) is not None:
            at, mark = found
            events += self._take(self._held[:at])
            self._held = self._held[at + len(mark) :]
            events += self._mark(mark)
        size = len(self._held) - pending(self._held, MARKS)
        text, self._held = self._held[:size], self._held[size:]
        return events + self._take(text)

    def finish(self, natural: bool = False) -> list[Event]:
        """What was held back, now that nothing more comes; `natural` if the model itself ended the answer."""
        text, self._held = self._held, ""
        events = self._take(text) + self._end_call(natural)
        if self._fresh and self._header:
            events.append(Content("".join(self._header)))
        self._header = None
        return events

    def _take(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._header is not None:
            self._header.append(text)
            return self._unless_a_header() if self._fresh else []
        if self._arguments is not None:
            return self._argument_events(self._arguments.add(text))
        # Nothing is meant between a call and the next header.
        return [self._kind(text)] if self._kind is not None else []

    def _end_call(self, whole: bool) -> list[Event]:
        ended, self._arguments = self._arguments, None
        return self._argument_events(ended.end(whole)) if ended is not None else []

    def _argument_events(self, text: str) -> list[Event]:
        return [CallArguments(self.calls - 1, text)] if text else []

    def _unless_a_header(self) -> list[Event]:
        """Content, if the first words of the answer are not those of a header."""
        assert self._header is not None
        text = "".join(self._header)
        words = text.lstrip()
        if words.startswith("to=") or (not words and len(text) < _HEADER_SPACE):
            # The mark that every header has is yet to come.
            self._fresh = not words
            return []
        if words and "to=".startswith(words):
            return []
        self._header, self._fresh = None, False
        return [Content(text)]

    def _mark(self, mark: str) -> list[Event]:
        self._fresh = False
        if mark == MESSAGE and self._header is not None:
            return self._begin("".join(self._header))
        if mark == CHANNEL or (mark == CONSTRAIN and self._header is not None):
            self._header = [*(self._header or ()), " ", mark, " "]
        elif mark in (START, *_ENDS):
            self._header = []
        else:
            return []
        return self._end_call(True)

    def _begin(self, header: str) -> list[Event]:
        self._header = None
        found = _RECIPIENT.search(header)
        name = self._declared(found[1]) if found is not None else None
        if name is not None:
            self._kind, self._arguments = None, _Arguments(takes_nothing(self._tools[name]))
            self.calls += 1
            return [CallStart(self.calls - 1, name)]
        self._kind = Reasoning if _channel(header) == "analysis" else Content
        return []

    def _declared(self, recipient: str) -> str | None:
        names = (recipient.removeprefix(_NAMESPACE), recipient)
        return next((name for name in names if name in self._tools), None)


class _Arguments:
    """The arguments of one call as they grow: an object comes out in pieces, anything else when it is complete."""

    def __init__(self, none_needed: bool) -> None:
        self._none_needed = none_needed
        self._object = False
        self._held: list[str] = []

    def add(self, text: str) -> str:
        """What can come out now."""
        if not self._object:
            if not self._held:
                text = text.lstrip()
                self._object = text.startswith("{")
            if text and not self._object:
                self._held.append(text)
        return text if self._object else ""

    def end(self, whole: bool) -> str:
        """The rest. Arguments that are no object, and do not stand for one, come out as they were written."""
        text = "".join(self._held)
        if self._object or (not text and not whole and not self._none_needed):
            return ""
        value = to_json(text)
        if value is None and not whole and text.startswith('"'):
            return begun_text(text)
        found = object_of(value) if value is not None or not text else None
        return text if found is None else found


def script(
    answer: Grammar | None,
    calls: Mapping[str, Grammar | None],
    token_id: Callable[[str], int | None],
    *,
    answers: bool,
    thinks: bool,
) -> dict[str, Node]:
    """A script of the answer: thoughts if the model `thinks`; then a final message, if it `answers`, or a call."""

    def ids(marks: Collection[str]) -> tuple[int, ...]:
        return tuple(token for mark in marks if (token := token_id(mark)) is not None)

    def bound(grammar: Grammar | None) -> Bound:
        return Bound(grammar, ids(_ENDS)) if grammar is not None else Bound()

    inner = ids((START, CHANNEL, CONSTRAIN, MESSAGE))
    nodes: dict[str, Node] = {
        "thoughts": Free(END, "next", barred=inner),
        "preamble": Free(END, "next", thoughts=False, barred=inner),
        "next": Fork(((START + "assistant", "header"),)),
        "final": bound(answer),
        **{f"call {name}": bound(arguments) for name, arguments in calls.items()},
    }
    ways = [(f"{CHANNEL}analysis{MESSAGE}", "thoughts")] if thinks else []
    if answers:
        ways.append((f"{CHANNEL}final{MESSAGE}", "final"))
    if answer is None:
        ways.append((f"{CHANNEL}commentary{MESSAGE}", "preamble"))
    for name in calls:
        recipient = f"to={_NAMESPACE}{name}"
        ways += [
            (f" {recipient}{CHANNEL}commentary json{MESSAGE}", f"call {name}"),
            (f" {recipient}{CHANNEL}commentary {CONSTRAIN}json{MESSAGE}", f"call {name}"),
            (f"{CHANNEL}commentary {recipient} {CONSTRAIN}json{MESSAGE}", f"call {name}"),
        ]
    nodes["header"] = Fork(tuple(ways))
    return nodes
