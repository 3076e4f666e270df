"""The numbers in the rules of the draft length that were set by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Every number once, with what it does and when it matters. docs/draft_length.md has the measurements.

    A trial is a drafted token that the target judged: all accepted ones and the first rejected one of a draft.
    """

    # Acceptance.

    # The acceptance rate that is assumed before the first draft.
    first_guess: float = 0.7
    # After so many trials, a row's own rate counts as much as the average of all rows. One row alone needs the average,
    # and rows that change need a rate of their own.
    row_prior_trials: float = 8.0
    # A row's rate is a mean over about so many trials. It matters if a long row stops being easy.
    row_memory: float = 24.0
    # The average of all rows is a mean over about so many trials. It matters if requests stop being easy.
    average_memory: float = 200.0
    # A row is drafted no further than to the first token that is reached more rarely than this. It matters if sampling
    # is expensive, and keeps easy rows from being slowed down by hard ones.
    least_chance: float = 0.05

    # Cost.

    # The weight of a new measurement of a shape beside what is known of it.
    smoothing: float = 0.2
    # A measurement counts as at most so many times what is known of its shape. It matters if steps are held up by
    # something else.
    outlier: float = 2.0
    # How strongly the fit leans on "half of a step is fixed cost, and a token adds a twentieth of it". Without any such
    # leaning, one measured shape does not determine a fit.
    fit_prior: float = 1e-2

    # Choice.

    # A draft length must promise this much more than the present one to replace it. It matters if drafts are about
    # as good as none, on a machine whose speed changes. Any draft must also promise this much more than none: the draft
    # model reads prompts as well, which is not part of a step's time.
    margin: float = 0.03
    # If drafts promise less than this more than none, the step without drafts is measured again now and then. Good
    # drafts need not be interrupted for that.
    doubt: float = 0.3
    # That is done after so many steps with drafts. It matters if the first such step was slow by chance.
    recheck_after: int = 12

    # Exploration.

    # The share of the decoding time that may go into reading prompts with a draft model that is not expected to draft,
    # and into a draft for each of their rows. It matters if requests become easier.
    prefill_share: float = 0.008
    # At most so many prompts are read at once for that: the other rows wait meanwhile.
    prefill_rows: int = 4
    # The share of the decoding time that may go into drafts that are not expected to pay. It matters if the text of a
    # long row becomes easier.
    draft_share: float = 0.012
    # Such a draft has so many tokens.
    draft_tokens: int = 2


DEFAULT = Tuning()
