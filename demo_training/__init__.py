"""Makes and measures the bundled model pair: corpus, tokenizer, training, evaluation. No part of the package."""
