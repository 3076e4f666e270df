"""Coding agents as programs: each prints its events as lines of JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def events_of(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> tuple[int, list[dict[str, Any]]]:
    """Run an agent in a folder to its end; its exit status and its events."""
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    print(ran.stderr)
    return ran.returncode, [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
