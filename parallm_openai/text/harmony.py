"""gpt-oss's "harmony" answers: messages on channels, each with a header.

`<|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>final<|message|>answer`,
and calls as `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}`
(https://cookbook.openai.com/articles/openai-harmony).
"""

from __future__ import annotations

import regex

from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning
from parallm_openai.text.scanner import earliest, pending

START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN = (
    f"<|{name}|>" for name in ("start", "channel", "constrain", "message", "end", "call", "return")
)
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
_RECIPIENT = regex.compile(r"to=(?:functions\.)?([\w.-]+)")


class HarmonyParser:
    """Reads one answer. The prompt ends with `<|start|>assistant`, so that the answer begins in a header."""

    def __init__(self) -> None:
        self._held = ""
        self._header: str | None = ""
        self._kind: type[Content] | type[Reasoning] | None = Content
        self.calls = 0
        self._open_call = False

    @property
    def between_calls(self) -> bool:
        return self.calls > 0 and not self._open_call

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        while (found := earliest(self._held, MARKS)) is not None:
            at, mark = found
            events += self._take(self._held[:at])
            self._held = self._held[at + len(mark) :]
            events += self._mark(mark)
        keep = pending(self._held, MARKS)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return events + self._take(text)

    def finish(self) -> list[Event]:
        text, self._held = self._held, ""
        return self._take(text)

    def _take(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._header is not None:
            self._header += text
            return []
        if self._kind is None:
            return [CallArguments(self.calls - 1, text)]
        return [self._kind(text)]

    def _mark(self, mark: str) -> list[Event]:
        if mark == MESSAGE and self._header is not None:
            return self._begin()
        if mark in (CHANNEL, CONSTRAIN) and self._header is not None:
            self._header += f" {mark} "
        else:
            self._header = ""
            self._open_call = False
        return []

    def _begin(self) -> list[Event]:
        header, self._header = self._header or "", None
        recipient = _RECIPIENT.search(header)
        if recipient is not None:
            self._kind, self._open_call = None, True
            self.calls += 1
            return [CallStart(self.calls - 1, recipient[1])]
        self._kind = Reasoning if "analysis" in header else Content
        return []
