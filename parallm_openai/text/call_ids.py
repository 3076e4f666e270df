"""The ids of tool calls, in the form that a model's chat template asks for and that the model was trained on."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallm_openai.text.draws import new_hex

Message = dict[str, Any]

_ALPHANUMERIC = string.digits + string.ascii_letters


@dataclass(frozen=True)
class CallIdForm:
    """A form of ids: `fits` matches one, `make` makes one from a seed, the call's number and the function's name.

    If `numbered`, an id ends with the call's number in the conversation.
    """

    fits: re.Pattern[str]
    make: Callable[[str, int, str], str]
    numbered: bool = False


def _openai(seed: str, number: int, name: str) -> str:
    return f"call_{hashlib.sha256(_bytes(seed)).hexdigest()[:24]}"


def _short(seed: str, number: int, name: str) -> str:
    value = int.from_bytes(hashlib.sha256(_bytes(seed)).digest())
    return "".join(_ALPHANUMERIC[value // 62**place % 62] for place in range(9))


def _kimi(seed: str, number: int, name: str) -> str:
    return f"functions.{name}:{number}"


def _bytes(seed: str) -> bytes:
    # A client's id may hold half of a surrogate pair.
    return seed.encode("utf-8", "surrogatepass")


# Most templates take any id.
OPENAI = CallIdForm(re.compile(r".+", re.DOTALL), _openai)
# Mistral's refuse any other.
SHORT = CallIdForm(re.compile(r"[0-9a-zA-Z]{9}", re.ASCII), _short)
# Kimi reads the function's name and the number of the call from it.
KIMI = CallIdForm(re.compile(r"functions\..+:([0-9]{1,9})", re.DOTALL | re.ASCII), _kimi, numbered=True)


class _Namer:
    """Gives every call of a conversation, in order, an id that no earlier call has."""

    def __init__(self, form: CallIdForm) -> None:
        self._form = form
        self._taken: set[str] = set()
        self._seen: Counter[str] = Counter()
        self.next_number = 0

    def name(self, given: str | None, function: str) -> str:
        """The given id if it fits and is free, else one made from it and from how often it came before."""
        seed = given or f"call {self.next_number}"
        if given is None or given in self._taken or not self._form.fits.fullmatch(given):
            given = self._made(seed, function)
        self._taken.add(given)
        stated = self._form.fits.fullmatch(given) if self._form.numbered else None
        number = self.next_number if stated is None else max(self.next_number, int(stated[1]))
        self.next_number = number + 1
        return given

    def _made(self, seed: str, function: str) -> str:
        while True:
            times = self._seen[seed]
            self._seen[seed] += 1
            made = self._form.make(f"{seed}\n{times}" if times else seed, self.next_number, function)
            if made not in self._taken:
                return made


def rename_calls(messages: Sequence[Message], form: CallIdForm) -> None:
    """Put the ids of calls and of their answers into the form, in place.

    An id that has the form stays. A conversation keeps its ids when messages are added, so that its prompt
    begins as before.
    """
    namer = _Namer(form)
    renamed: dict[str, str] = {}
    unanswered: list[tuple[str, str]] = []
    for place, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            given = [call.get("id") for call in calls]
            for call in calls:
                call["id"] = namer.name(call.get("id"), _function_name(call))
            renamed.update((old, call["id"]) for old, call in zip(given, calls, strict=True) if old is not None)
            answered = _answers_after(messages, place)
            unanswered = [
                (_function_name(call), call["id"])
                for old, call in zip(given, calls, strict=True)
                if old is None or old not in answered
            ]
        elif message.get("role") == "tool":
            _rename_answer(message, namer, renamed, unanswered)
        else:
            unanswered = []


def _rename_answer(
    answer: Message, namer: _Namer, renamed: Mapping[str, str], unanswered: list[tuple[str, str]]
) -> None:
    """An answer belongs to the last call with its id, else to a call just before it that no answer names."""
    given = answer.get("tool_call_id")
    if given is not None and given in renamed:
        answer["tool_call_id"] = renamed[given]
        return
    named = next((pair for pair in unanswered if pair[0] == answer.get("name")), None)
    if pair := named or next(iter(unanswered), None):
        unanswered.remove(pair)
        answer["tool_call_id"] = pair[1]
        return
    # Templates ask for the function's name if no call gives it.
    answer.setdefault("name", "unknown")
    answer["tool_call_id"] = namer.name(given, answer["name"])


def _answers_after(messages: Sequence[Message], place: int) -> set[str]:
    """The ids that the answers right after a message have."""
    stated: set[str] = set()
    for after in range(place + 1, len(messages)):
        if messages[after].get("role") != "tool":
            break
        if (given := messages[after].get("tool_call_id")) is not None:
            stated.add(given)
    return stated


def _function_name(call: Mapping[str, Any]) -> str:
    return str((call.get("function") or {}).get("name", ""))


class CallIds:
    """Makes the ids of an answer's calls."""

    def __init__(self, form: CallIdForm, conversation: Iterable[Mapping[str, Any]]) -> None:
        self._form = form
        self._first = _next_number(conversation) if form.numbered else 0

    def new(self, index: int, function: str) -> str:
        """The id of the answer's call of that index, counted from 0."""
        return self._form.make(new_hex(), self._first + index, function)


def _next_number(conversation: Iterable[Mapping[str, Any]]) -> int:
    namer = _Namer(KIMI)
    for message in conversation:
        for call in message.get("tool_calls") or []:
            namer.name(call.get("id"), _function_name(call))
    return namer.next_number
