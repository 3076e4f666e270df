"""A request that shows a fault, made smaller for as long as it still does."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fuzz.case import Case
from fuzz.findings import PROCESS, Finding
from fuzz.json_text import encode, places, without
from fuzz.session import Session


def reduce(session: Session, kind: str, seconds: float) -> None:
    """The smallest request of each fault of that kind of request, except of those that cost a server each time."""
    deadline = time.monotonic() + seconds
    for key, found in list(session.findings.kinds.items()):
        if found.smallest.label.startswith(kind) and not found.what.startswith(PROCESS):
            _reduced(session, key, found, deadline)


def _reduced(session: Session, key: tuple[str, ...], found: Finding, deadline: float) -> None:
    going_on = True
    while going_on and time.monotonic() < deadline:
        going_on = False
        for smaller in _smaller(found.smallest.value):
            if time.monotonic() >= deadline:
                return
            case = _with(found.smallest, smaller)
            if key in session.kinds(case):
                found.smallest, going_on = case, True
                break


def _with(case: Case, value: Any) -> Case:
    return replace(case, value=value, body=encode(value).encode("utf-8", "surrogatepass"))


def _smaller(value: Any) -> list[Any]:
    """The same without some part of it, whole fields first."""
    if not isinstance(value, dict):
        return []
    paths = sorted((path for path in places(value) if path), key=len)
    return [without(value, path) for path in paths]
