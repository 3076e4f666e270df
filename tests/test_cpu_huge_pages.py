"""A model's weights go into huge pages on Linux, keep what is in them, and take nothing else along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallm_openai.cpu.huge_pages import HUGE, LARGEST_GAP, whole_pages

# Each test starts a process of its own.
pytestmark = pytest.mark.slow

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
START = 0x7F0000000000

# A model of one array, and as much memory again that is not the model's.
PLACED = """
import numpy
from parallm_openai import prepare
prepare()
import mlx.core as mx, mlx.nn as nn
from parallm_openai.models.weights import use_huge_pages

def huge(address):
    \"\"\"How many bytes of the mapping that holds this address are in huge pages.\"\"\"
    inside = False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            inside = start <= address < end
        elif inside and line.startswith("AnonHugePages"):
            return int(line.split()[1]) * 1024

other = mx.ones(16_000_000)
model = nn.Module()
model.weight = mx.arange(16_000_000, dtype=mx.float32).reshape(4000, 4000).T
mx.eval(model.weight, other)
use_huge_pages(model)
assert mx.array_equal(model.weight, mx.arange(16_000_000, dtype=mx.float32).reshape(4000, 4000).T).item()
middles = (numpy.array(array, copy=False).ctypes.data + 32_000_000 for array in (model.weight, other))
print(*map(huge, middles))
"""


def pages(*sizes_at: tuple[int, int]) -> list[tuple[int, int]]:
    """Where whole pages begin and end, in bytes after START, for buffers of some sizes at some places after it."""
    buffers = [range(START + at, START + at + size) for at, size in sizes_at]
    return [(found.start - START, found.stop - START) for found in whole_pages(buffers)]


def test_only_whole_huge_pages_inside_a_buffer_are_taken() -> None:
    assert pages((0, 4 * HUGE)) == [(0, 4 * HUGE)]
    assert pages((1, 4 * HUGE)) == [(HUGE, 4 * HUGE)]
    assert pages((HUGE - 1, HUGE)) == []
    assert pages() == []


def test_buffers_side_by_side_share_pages_and_others_do_not() -> None:
    half = HUGE // 2
    assert pages((half + 16, half - 16), (0, half)) == [(0, HUGE)]
    assert pages((0, half), (half + LARGEST_GAP + 1, half)) == []
    # One inside another, as a view is.
    assert pages((0, 2 * HUGE), (HUGE, 16)) == [(0, 2 * HUGE)]


needs_huge_pages = pytest.mark.skipif(
    not SWITCH.exists() or "[madvise]" not in SWITCH.read_text(), reason="needs Linux that gives huge pages when asked"
)


def placed(**environment: str) -> tuple[int, int]:
    """Bytes in huge pages of the model's mapping and of another, in a process with these variables."""
    answer = subprocess.run(
        [sys.executable, "-c", PLACED],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    model, other = answer.stdout.split()
    return int(model), int(other)


@needs_huge_pages
def test_weights_are_in_huge_pages_afterwards_and_unchanged_and_nothing_else_is() -> None:
    model, other = placed()
    assert model >= 48_000_000
    assert other == 0


@needs_huge_pages
def test_the_environment_can_switch_huge_pages_off() -> None:
    assert placed(PARALLM_HUGE_PAGES="off") == (0, 0)
