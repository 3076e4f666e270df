"""The official openai SDK for Node: chat, streams, tools and their runner, parsed answers, responses, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compat.conftest import Served
from compat.documented import documented
from compat.node_client import run_node_program, run_node_tests


def test_the_node_sdk(served: Served, record_property: Callable[[str, object], None]) -> None:
    run_node_tests(Path(__file__).parent, served.url, record_property)


def test_the_documented_program_runs(served: Served) -> None:
    program = documented("OpenAI SDK for Node", "js", served.url, served.model)
    assert "Paris" in run_node_program(Path(__file__).parent, program)
