"""Runs the Node client's own tests; npm installs it where it is not there yet."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
def test_the_node_sdk(served: Any) -> None:
    if not (HERE / "node_modules" / "openai").is_dir():
        installed = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if installed.returncode:
            pytest.skip(f"npm could not install the client: {installed.stderr[-300:]}")
    environment = os.environ | {"PARALLM_URL": served.url}
    ran = subprocess.run(
        ["node", "--test"], cwd=HERE, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
