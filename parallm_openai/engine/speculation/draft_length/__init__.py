"""How many tokens to draft in each step: the number that yields the most tokens a second.

`acceptance_rate` estimates how many drafted tokens are accepted, `step_cost` how long a step takes. `choice` divides
one by the other for every draft length and takes the best. `exploration` keeps these estimates alive while no draft
pays. All numbers that were set by hand are in `tuning`. Nothing here imports MLX.
"""

from parallm_openai.engine.speculation.draft_length.choice import Choice, DraftLength

__all__ = ["Choice", "DraftLength"]
