"""The program in docs/clients.md."""

from __future__ import annotations

from typing import Any

from compat.documented import run_python


def test_the_documented_program_runs(served: Any) -> None:
    assert "Paris" in run_python("LiteLLM", served.url, served.model)
