"""The one call that prepares this process for MLX's CPU backend."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

from parallm_openai.cpu import blas, compiler
from parallm_openai.cpu.blas import BlasStatus


@dataclass(frozen=True)
class CpuStatus:
    """What `prepare` has done. `compiler` says in words how MLX's fused functions are compiled."""

    blas: BlasStatus
    compiler: str


@cache
def prepare() -> CpuStatus:
    """Make MLX's CPU backend fast in this process. Call it before anything imports mlx.

    On Linux it loads a fast BLAS, and sets PATH and TEMPDIR so that MLX compiles with better flags. On macOS it does
    nothing, since Accelerate is part of the system. Only the first call does anything; all return the same status.
    It never raises: what cannot be done leaves MLX slow, not broken, and the status says why.
    """
    if sys.platform != "linux":
        return CpuStatus(BlasStatus("Accelerate", "part of macOS"), "by MLX itself")
    return CpuStatus(blas.preload(), compiler.prepare())
