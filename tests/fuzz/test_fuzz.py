"""Whatever requests come, the process lives, answers others, keeps its size, and says what is wrong with each."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from fuzz.campaign import KINDS, spend
from fuzz.hazards import Hazards
from fuzz.reduce import reduce
from fuzz.report import table, told
from fuzz.session import Session

# Mutated bodies have the most to find; the other kinds are worth as much each.
SHARES = {"bodies": 0.3, "grammars": 0.25, "histories": 0.2, "options": 0.15, "leavers": 0.1}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("fuzz"), pytestconfig.getoption("fuzz_freeze"))
    yield session
    if not session.ended:
        session.end()


@pytest.fixture(scope="module")
def first_seed(pytestconfig: pytest.Config) -> int:
    wanted = pytestconfig.getoption("fuzz_seed")
    chosen = random.SystemRandom().randrange(10**9) if wanted == "random" else int(wanted)
    print(f"--fuzz-seed {chosen}")
    return chosen


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_is_answered_wrongly_or_noticed_by_others(
    kind: str, session: Session, first_seed: int, pytestconfig: pytest.Config
) -> None:
    hazards = Hazards(frozenset(filter(None, pytestconfig.getoption("fuzz_without").split(","))))
    seconds = 60 * pytestconfig.getoption("fuzz_minutes") * SHARES[kind]
    assert spend(seconds, kind, session, hazards, first_seed) > 0
    reduce(session, kind, min(seconds, 60))
    if found := session.findings.of(kind):
        pytest.fail(f"{len(found)} kinds of fault\n\n{told(found, session.server.url)}", pytrace=False)


def test_the_process_is_at_the_end_as_it_was_when_warm(session: Session) -> None:
    """After all of the above: no rows for nobody, no growth, no open files, neighbours undisturbed."""
    session.end()
    print(table(session))
    if found := session.findings.of("whole run"):
        pytest.fail("\n".join(each.what for each in found), pytrace=False)
    assert session.references.compared > 0
    assert session.totals.deaths == 0
