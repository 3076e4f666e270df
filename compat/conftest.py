"""A server started as a user starts it, for the clients in the folders beside this file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compat.matrix.clients import Client, installed_version
from compat.matrix.server import model_at, serving


@dataclass(frozen=True)
class Served:
    """`url` ends in /v1; `model` is the name to send."""

    url: str
    model: str


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """The server at PARALLM_URL, or else the bundled model on a free port."""
    given = os.environ.get("PARALLM_URL")
    if given:
        url = given.rstrip("/")
        yield Served(url, model_at(url))
        return
    with serving(["--model", "demo", "--request-timeout", "60"]) as url:
        yield Served(url, model_at(url))


class NotInstalled(pytest.Module):
    """The tests of a client whose packages are not here."""

    def collect(self) -> Any:
        pytest.skip(f"not installed here; `compat/run {self.path.parent.name}` installs it", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    pinned = Client(module_path.parent).pins
    if all(installed_version(package) for package in pinned):
        return None
    missing: pytest.Module = NotInstalled.from_parent(parent, path=module_path)
    return missing
