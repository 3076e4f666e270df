"""ParaLLM OpenAI: speculative decoding inside a continuous batch, behind OpenAI's API, on MLX."""

from parallm_openai.models import blas

# Must run before anything imports mlx; see models/blas.py.
blas.preload()

__version__ = "0.1.0"
