"""Per-row sampling of a whole batch.

A token is a function of its logits, its request's parameters, its seed and its place in the request, never of the
neighbours: the noise of the Gumbel-max draw is keyed by (seed, index, token), so the same request yields the same
tokens alone and in any batch.
"""

from parallm_openai.engine.sampling.candidates import FORBIDDEN
from parallm_openai.engine.sampling.logprobs import token_logprobs
from parallm_openai.engine.sampling.noise import gumbel_noise, keys_of, noise_key, uniform_noise
from parallm_openai.engine.sampling.sampler import NO_TOKEN, Draw, as_ids, log_distribution, sample

__all__ = [
    "FORBIDDEN",
    "NO_TOKEN",
    "Draw",
    "as_ids",
    "gumbel_noise",
    "keys_of",
    "log_distribution",
    "noise_key",
    "sample",
    "token_logprobs",
    "uniform_noise",
]
