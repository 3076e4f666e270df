"""Fixtures that start real servers."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

# Tests tell what is right, not how fast: this machine may be busy. To explain a failure, Hypothesis would trace each
# line, in which Python 3.11 can go round without end.
PROFILE: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [phase for phase in Phase if phase is not Phase.explain],
}
# The same examples each time; `--hypothesis-profile explore` draws others.
settings.register_profile("tests", derandomize=True, **PROFILE)
settings.register_profile("explore", **PROFILE)
settings.load_profile("tests")

# Commands without --model work with the bundled pair, whatever has been fetched on this machine.
os.environ["PARALLM_MODEL"] = "demo"

# Tests side by side share the processors: with more threads than those, each waits for the others' most of the time.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# A failed assertion in a helper shows its values, as one in a test does.
pytest.register_assert_rewrite("support")

from support import chat_templates  # noqa: E402
from support.servers import RunningServer, demo_draft, running_server  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The bundled pair with speculation on: what every test of the API runs on unless it says otherwise."""
    with running_server(demo_draft(), max_batch_size=32) as running:
        before = running.engine.config
        yield running
        assert running.engine.config == before, "a test left the shared server's settings changed"


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Starts further servers, for tests that need settings of their own."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running_server(**options))


@pytest.fixture(autouse=True)
def _draws_of_the_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without a seed are answered alike whenever the same test runs, and unlike in other tests."""
    draws = Random(request.node.nodeid)
    monkeypatch.setattr(secrets, "randbits", draws.getrandbits)
    monkeypatch.setattr(secrets, "token_hex", lambda count=32: draws.randbytes(count).hex())


@pytest.fixture
def no_step_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The engine recovers from a step that failed: outputs alone would not tell."""
    yield
    assert [record.message for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


# Fixtures that start a server, in this process or as one of its own.
SERVERS = {"server", "start_server", "serve", "served", "impatient", "keyed", "generic", "talkative"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz", "hostile requests to a server process (tests/fuzz)")
    group.addoption("--fuzz-minutes", type=float, default=1.0, help="how long to go on, in all")
    group.addoption("--fuzz-seed", default="0", help="what the requests follow from: a number, or random")
    group.addoption("--fuzz-without", default="", help="kinds of input to leave out, by commas: tests/fuzz/hazards.py")
    group.addoption("--fuzz-freeze", type=float, default=5.0, help="seconds that /health may take on a fast machine")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(chat_templates.summary())
