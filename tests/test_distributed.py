"""A model sharded over two ranks answers as it does on one, drafts and all; and ends if one of them does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_ports
from support.processes import ROOT

pytestmark = pytest.mark.slow


def launched(*arguments: str) -> list[dict[str, Any]]:
    """What two ranks on this machine print, by the ring backend."""
    command = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--starting-port", str(free_ports(2))]
    own = [sys.executable, "-m", "support.ranks", *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run([*command, *own], capture_output=True, text=True, env=environment, timeout=280)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(
    ("family", "split"),
    [("llama", "heads"), ("llama", "draft"), ("qwen3_5", "heads"), ("qwen2", "layers"), ("qwen3_next", "layers")],
)
def test_two_ranks_answer_as_one_does(family: str, split: str) -> None:
    plain, drafted = launched(family, split)
    assert all(plain["same"])
    assert all(drafted["same"])
    assert (plain["drafter"], drafted["drafter"]) == ("none", "draft_model+suffix")
    assert drafted["accepted"] > 20


def test_if_a_rank_ends_the_other_knows() -> None:
    assert launched("llama", "heads", "60") == [{"lost": "rank 1 of the model has ended"}]
