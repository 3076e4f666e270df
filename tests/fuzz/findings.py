"""What went wrong, kinds of it put together, each with its smallest request."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fuzz.case import Case

_OURS = re.compile(r'File "[^"]*/(parallm_openai/[^"]+)", line \d+, in (\w+)')
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Panic\w*|Interrupt|Exit)\b", re.MULTILINE)
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+|\{.*|\[.*")
TRACEBACK = "the log has a traceback"
# Faults of the process, of which the answer says nothing.
PROCESS = ("the server died", "the event loop froze", "the log grew", "no answer in time", "a neighbour's")


@dataclass
class Finding:
    """One kind of fault: what happened, how often, and the shortest request that it happened to."""

    what: str
    smallest: Case
    count: int = 1


class Findings:
    """Faults by kind: what happened, where in the server if its log says so, and to which route."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, ...], Finding] = {}

    def add(self, what: str, case: Case) -> tuple[str, ...]:
        key = kind(what, case)
        found = self.kinds.get(key)
        if found is None:
            self.kinds[key] = Finding(what, case)
            return key
        found.count += 1
        if len(case.body) < len(found.smallest.body):
            found.smallest, found.what = case, what
        return key

    def of(self, labels: str) -> list[Finding]:
        """Those whose request some generator of that family drew."""
        return [found for found in self.kinds.values() if found.smallest.label.startswith(labels)]


def kind(what: str, case: Case) -> tuple[str, ...]:
    """Words that vary from request to request apart; of what a log does not explain, the generator says the kind."""
    place = _OURS.search(what)
    if what.startswith(TRACEBACK) and place is not None:
        return TRACEBACK, *place.groups(), _exception(what)
    words = _VARYING.sub("…", what.splitlines()[0])[:90]
    return (words, case.label) if what.startswith(PROCESS) else (words,)


def _exception(text: str) -> str:
    raised = _RAISED.findall(text)
    return raised[-1] if raised else ""


def traceback(log: str) -> str | None:
    """The part of a log that tells of an exception: its innermost frame of this package, and what was raised."""
    if "Traceback (most recent call last)" not in log and "Exception in ASGI" not in log and "panicked at" not in log:
        return None
    frames = list(_OURS.finditer(log))
    line = next((line for line in reversed(log.splitlines()) if _RAISED.match(line)), log.strip().splitlines()[-1])
    where = frames[-1].group(0) if frames else "outside of the package"
    return f"{TRACEBACK}: {where}: {line[:300]}"
