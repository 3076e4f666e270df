"""Draws requests of one kind and sends them until its time is up, the same ones for the same seed."""

from __future__ import annotations

import time
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz import bodies, grammars, histories, leavers, options
from fuzz.hazards import Hazards
from fuzz.session import Plan, Session

KINDS: dict[str, Callable[[st.DataObject, Session, Hazards], Plan]] = {
    "bodies": bodies.draw,
    "grammars": grammars.draw,
    "histories": histories.draw,
    "options": options.draw,
    "leavers": leavers.draw,
}
A_ROUND = 20


def spend(seconds: float, kind: str, session: Session, hazards: Hazards, first_seed: int) -> int:
    """Rounds of `kind`, each from the next seed, for that long; returns how many plans were carried out."""
    deadline = time.monotonic() + seconds
    done, number = 0, first_seed
    while time.monotonic() < deadline:
        for plan in drawn(kind, session, hazards, number):
            if done and time.monotonic() >= deadline:
                break
            plan(session)
            done += 1
        number += 1
    return done


def drawn(kind: str, session: Session, hazards: Hazards, number: int) -> list[Plan]:
    """What hypothesis makes of that seed: drawn before anything is sent, so that no answer can change it."""
    plans: list[Plan] = []

    @seed(number)
    @settings(
        max_examples=A_ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def draw(data: st.DataObject) -> None:
        plans.append(KINDS[kind](data, session, hazards))

    draw()
    return plans
