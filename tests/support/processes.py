"""`parallm-openai serve` as users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "parallm_openai"]


class Served:
    """`parallm-openai serve` in a process of its own, once it says where it listens."""

    def __init__(self, *arguments: str, command: Sequence[str] = (*COMMAND, "serve"), **environment: str) -> None:
        self.process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._told = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._told.wait(120), self.output
        found = re.search(r"Serving (\S+) at (https?://\S+)/v1", self.output)
        assert found, self.output
        self.model, self.url = found.groups()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if "curl" in line:
                self._told.set()
        self._told.set()

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)
