"""The Vercel AI SDK, by OpenAI's responses, OpenAI's chat and its own provider for compatible servers: texts and
objects, whole and streamed; tools in several steps; an agent; conversations that go on; abort; errors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compat.conftest import Served
from compat.documented import documented
from compat.node_client import run_node_program, run_node_tests


def test_the_vercel_ai_sdk(served: Served, record_property: Callable[[str, object], None]) -> None:
    run_node_tests(Path(__file__).parent, served.url, record_property)


def test_the_documented_program_runs(served: Served) -> None:
    program = documented("Vercel AI SDK", "js", served.url, served.model)
    assert "Paris" in run_node_program(Path(__file__).parent, program)
