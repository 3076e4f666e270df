"""What MLX's CPU backend lacks on Linux: a fast BLAS, and code compiled for this processor. See docs/cpu.md.

Nothing in here imports mlx: most of it only helps if it comes first.
"""

from parallm_openai.cpu.preparation import CpuStatus, prepare

__all__ = ["CpuStatus", "prepare"]
