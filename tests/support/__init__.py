"""Helpers that several test modules share: tiny models, servers under test, chat templates."""

import parallm_openai

# `conftest.py` imports this package first, so this comes before any test imports mlx.
parallm_openai.prepare()
