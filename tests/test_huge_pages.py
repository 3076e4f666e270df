"""Large buffers go into huge pages on Linux, and keep what is in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parallm_openai.models.huge_pages import HUGE, large_mappings

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = """\
55d0c0a00000-55d0c2a00000 rw-p 00000000 00:00 0                          [heap]
7f0000001000-7f0002001000 rw-p 00000000 00:00 0
7f1000000000-7f1000800000 rw-p 00000000 00:00 0
7f2000000000-7f2008000000 ---p 00000000 00:00 0
7f3000000000-7f3008000000 rw-p 00000000 fe:00 123                        /models/model.safetensors
7f4000000000-7f4004000000 r--p 00000000 00:00 0
7ffc00000000-7ffc02000000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_whole_huge_pages_of_large_private_memory_are_taken() -> None:
    assert list(large_mappings(MAPS)) == [
        (0x55D0C0A00000, 0x55D0C2A00000),
        (0x7F0000200000, 0x7F0002000000),
    ]
    assert all(start % HUGE == end % HUGE == 0 for start, end in large_mappings(MAPS))


@pytest.mark.skipif(not SWITCH.exists() or "[never]" in SWITCH.read_text(), reason="needs Linux with huge pages")
def test_weights_are_in_huge_pages_afterwards_and_unchanged() -> None:
    code = (
        "import mlx.core as mx; from parallm_openai.models import huge_pages;"
        "weight = mx.arange(16_000_000, dtype=mx.float32); mx.eval(weight); huge_pages.collapse();"
        "assert mx.array_equal(weight, mx.arange(16_000_000, dtype=mx.float32)).item();"
        "print(next(line.split()[1] for line in open('/proc/self/smaps_rollup') if 'AnonHuge' in line))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(answer.stdout) * 1024 >= 48_000_000
