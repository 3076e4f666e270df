"""See `parallm_openai.speculative_decoding`."""

from parallm_openai.speculative_decoding import SpeculativeConfig, SpeculativeDecodingEngine

__all__ = ["SpeculativeConfig", "SpeculativeDecodingEngine"]
