"""Makes and measures the bundled model pair: corpus, tokenizer, training, evaluation. No part of the package."""

import parallm_openai  # noqa: F401  (puts the BLAS in place before mlx is imported)
