"""Fixtures that start real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from servers import RunningServer, demo_draft, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The bundled pair with speculation on: what every test of the API runs on unless it says otherwise."""
    with running_server(demo_draft(), max_batch_size=32) as running:
        yield running


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Starts further servers, for tests that need settings of their own."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running_server(**options))
