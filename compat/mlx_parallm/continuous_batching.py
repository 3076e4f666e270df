"""See `parallm_openai.continuous_batching`."""

from parallm_openai.continuous_batching import AsyncContinuousBatchingEngine, BatchConfig

__all__ = ["AsyncContinuousBatchingEngine", "BatchConfig"]
