"""Help comes at once: what takes long to import waits until a command needs it. So does what is an extra."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.slow

HEAVY = set("mlx mlx_lm transformers tokenizers huggingface_hub numpy fastapi uvicorn httpx gguf".split())


def imported(code: str, *arguments: str) -> set[str]:
    """The modules that a new process has imported once it has run this code."""
    told = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ended = subprocess.run(
        [sys.executable, "-c", told + code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stderr.split())


@pytest.mark.parametrize("command", [(), ("serve",), ("generate",), ("bench",), ("doctor",), ("models",)])
def test_help_imports_nothing_that_takes_long(command: tuple[str, ...]) -> None:
    found = imported("from parallm_openai.cli import main; main()", *command, "--help")
    assert "typer" in found
    assert not found.intersection(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import parallm_openai.api.app",
        "from parallm_openai.api.tracing.configuration import traces_of_environment as of; assert of() is None",
    ],
)
def test_a_server_without_traces_imports_nothing_that_makes_them(code: str) -> None:
    found = imported(code)
    assert "parallm_openai.api.tracing.configuration" in found
    assert not {name for name in found if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))}
