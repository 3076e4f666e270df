"""Measures what the simulation has to know of a model, with the real engine in this process."""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np

from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.timeline import Step
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.costs import Grid, StepCosts, Traits
from parallm_openai.simulation.timed_core import TimedCore

ROWS = (1, 2, 4, 8, 16)
# Tokens a row of a decode step: plain, and with drafts of 1, 3 and 7.
WIDTHS = (1, 2, 4, 8)
# Prompt tokens of a forward, over all its rows.
PROMPT_TOKENS = (16, 64, 256, 512)
PROMPT_ROWS = (1, 4, 16)
CONTEXTS = (32, 256, 1024)
# A prompt may begin with nothing stored.
PROMPT_CONTEXTS = (0, 256, 1024)
PROMPT_TIMES = 3
DECODE_STEPS = 6
# What a row may grow by, after its context.
LONGEST_ROW = max(PROMPT_TOKENS) + max(WIDTHS) * (len(WIDTHS) + 1) * (DECODE_STEPS + 2)
# For acceptance, so many rows answer with so many tokens.
ANSWERS, ANSWER_TOKENS, ANSWER_DRAFT = 32, 96, 4
# Seconds for a forward are taken relative to its shape's median, at these shares of all.
QUANTILES = 20
UNBOUNDED = 10**8


class Unmeasurable(ValueError):
    """A model that the simulation cannot stand for, with the reason."""


Shape = tuple[int, int, int]
"""Rows, size and context, as `Grid` has them."""


class Times:
    """Seconds by what took them, shape by shape and round by round.

    Whatever else runs on the machine holds some rounds up: of each shape, the quietest one counts.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[Shape, list[list[float]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, kind: str, shape: Shape, seconds: list[float]) -> None:
        """What a round has found."""
        self._of[kind][shape].append(seconds)

    def quiet(self, kind: str) -> dict[Shape, list[float]]:
        return {shape: min(rounds, key=statistics.median) for shape, rounds in self._of[kind].items()}

    def grid(self, kind: str) -> Grid:
        found = {shape: statistics.median(seconds) for shape, seconds in self.quiet(kind).items()}
        rows, sizes, contexts = (tuple(sorted({shape[axis] for shape in found})) for axis in range(3))
        seconds = tuple(tuple(tuple(found[r, s, c] for c in contexts) for s in sizes) for r in rows)
        return Grid(rows=rows, sizes=sizes, contexts=contexts, seconds=seconds)

    def step_seconds(self) -> tuple[float, float]:
        """What a step takes besides its forwards, and for each row."""
        points = [(shape[0], statistics.median(seconds)) for shape, seconds in self.quiet("step").items()]
        slope, fixed = statistics.linear_regression(*zip(*points, strict=True))
        return max(0.0, fixed), max(0.0, slope)

    def spread(self) -> tuple[float, ...]:
        """Quantiles of a verification's time relative to its shape's median."""
        return _quantiles(
            [one / statistics.median(seconds) for seconds in self.quiet("verify").values() for one in seconds]
        )


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return tuple(round(float(value), 4) for value in np.quantile(values, shares))


def measure(
    model: LoadedModel,
    draft: LoadedModel | None,
    prompt: Sequence[int],
    say: Callable[[str], None],
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> StepCosts:
    """Step costs of a model and what drafts for it; prompts are cut out of `prompt`, the tokens of a long text.

    Raises Unmeasurable.
    """
    core = TimedCore.of(model, EngineConfig(max_batch_size=max(ROWS), max_batch_tokens=UNBOUNDED), draft, clock)
    traits = core.scheduler.traits
    if not traits.ragged or traits.recurrent or traits.runs_ahead:
        raise Unmeasurable(f"{model.name}: only models with keys and values alone can be simulated, and on a CPU")
    longest = model.context_length - LONGEST_ROW
    if longest < CONTEXTS[0]:
        raise Unmeasurable(
            f"{model.name}: its context has {model.context_length} tokens, and measuring takes "
            f"{CONTEXTS[0] + LONGEST_ROW}"
        )
    meter = _Meter(core, prompt, longest)
    for number in range(rounds):
        say(f"measuring steps, round {number + 1} of {rounds}")
        meter.measure()
    drafts, times = core.scheduler.can_draft, meter.times
    return StepCosts(
        model=model.name,
        machine=f"{platform.machine()}, {platform.system()}",
        traits=Traits(
            padding_limit=traits.padding_limit,
            forward_tokens=traits.forward_tokens,
            prefill_tokens=traits.prefill_tokens,
            fast_width=traits.fast_width,
        ),
        context_length=model.context_length,
        drafter="draft_model" if drafts else "none",
        verify=times.grid("verify"),
        prefill=times.grid("prefill"),
        draft=times.grid("draft") if drafts else None,
        draft_prefill=times.grid("draft_prefill") if drafts else None,
        step_seconds=times.step_seconds(),
        spread=times.spread(),
        acceptance=meter.acceptance() if drafts else (),
    )


class _Meter:
    """Drives a core by hand, so that each step does one thing only."""

    def __init__(self, core: TimedCore, prompt: Sequence[int], longest_context: int) -> None:
        self.core = core
        self.times = Times()
        self._prompt = prompt
        self._places = count(0, 37)
        self._longest_context = longest_context

    def measure(self) -> None:
        for context in [context for context in CONTEXTS if context <= self._longest_context]:
            for rows in ROWS:
                self._measure_decoding(rows, context)
        for context in [context for context in PROMPT_CONTEXTS if context <= self._longest_context]:
            for rows in PROMPT_ROWS:
                self._measure_prompts(rows, context)

    def _store(self, context: int) -> None:
        """Have the rows to come begin with a copy of what they share."""
        self.core.scheduler.prefixes.evict_to(0)
        if not context:
            return
        self._configure(prefill_chunk="auto", draft_length=1)
        self._begin(1, context, 0, 1)
        while not self.core.idle:
            self.core.step()

    def acceptance(self) -> tuple[float, ...]:
        """Quantiles of the share of tried tokens that a row accepts."""
        self._configure(draft_length=ANSWER_DRAFT)
        accepted: dict[int, int] = defaultdict(int)
        tried: dict[int, int] = defaultdict(int)
        self._begin(ANSWERS, 0, 64, ANSWER_TOKENS)
        while not self.core.idle:
            for output in self.core.step():
                accepted[output.request_id] += output.accepted
                tried[output.request_id] += min(output.accepted + 1, output.drafted)
        return _quantiles([accepted[number] / trials for number, trials in tried.items() if trials])

    def _measure_decoding(self, rows: int, context: int) -> None:
        self._store(context)
        self._configure(draft_length=0)
        self._begin(rows, context, 1, UNBOUNDED)
        while len(self.core.scheduler.decoding) < rows:
            self.core.step()
        for width in WIDTHS if self.core.scheduler.can_draft else WIDTHS[:1]:
            self._configure(draft_length=width - 1)
            # The first step's draft reads what the model has missed, and buffers grow.
            self.core.step()
            steps = [self._timed_step() for _ in range(DECODE_STEPS)]
            self.times.add("verify", (rows, width, context), [step.verify_seconds for _, step in steps])
            if width > 1:
                each = [step.draft_seconds / (width - 1) for _, step in steps]
                self.times.add("draft", (rows, 1, context), each)
        # Choosing a draft length is a part of what else a step takes.
        self._configure(draft_length="auto")
        steps = [self._timed_step() for _ in range(DECODE_STEPS)]
        rest = [seconds - step.draft_seconds - step.verify_seconds for seconds, step in steps]
        self.times.add("step", (rows, 1, context), rest)
        self.core.cancel_all()

    def _timed_step(self) -> tuple[float, Step]:
        """A decode step: what it took in all, and what it says itself."""
        began = self.core.clock()
        self.core.step()
        return self.core.clock() - began, self.core.timeline.after(0)[-1]

    def _measure_prompts(self, rows: int, context: int) -> None:
        """Read whole prompts from the context on, in one forward; the draft model reads along apart from that.

        Their first tokens are sampled: until then MLX has not computed what only they depend on.
        """
        self._store(context)
        for tokens in [tokens for tokens in PROMPT_TOKENS if tokens >= rows]:
            self._configure(use_speculative_decoding=False, prefill_chunk=tokens)
            seconds = [self._prompts_read(rows, context, tokens // rows) for _ in range(PROMPT_TIMES)]
            self.times.add("prefill", (rows, tokens, context), [read for read, _ in seconds])
            if self.core.drafter.runner is not None:
                self.times.add("draft_prefill", (rows, tokens, context), [along for _, along in seconds])
        self._configure(use_speculative_decoding=True)

    def _prompts_read(self, rows: int, context: int, width: int) -> tuple[float, float]:
        """What the target's forward took, and the draft model's."""
        self.core.forwards.clear()
        self._begin(rows, context, width, UNBOUNDED)
        self.core.step()
        [seconds] = [each.seconds for each in self.core.forwards if each.kind == "prefill"]
        runner = self.core.drafter.runner
        along = self._read_along(runner, width) if runner is not None else 0.0
        self.core.cancel_all()
        return seconds, along

    def _read_along(self, runner: ModelRunner, width: int) -> float:
        [batch] = [bucket.decoding for bucket in self.core.scheduler.buckets if bucket.decoding.rows]
        chunks = [row.tokens[row.computed[runner.role].end :][:width] for row in batch.rows]
        began = self.core.clock()
        runner.prefill(batch, chunks)
        return self.core.clock() - began

    def _configure(self, **changes: object) -> None:
        merged = {"max_draft_tokens": max(WIDTHS) - 1, **self.core.config.model_dump(), **changes}
        self.core.config = EngineConfig.model_validate(merged)

    def _begin(self, rows: int, shared: int, own: int, max_tokens: int) -> None:
        """Rows whose prompts have so many tokens in common, and so many of their own after them."""
        for _ in range(rows):
            prompt = (*self._text(0, shared), *self._text(next(self._places), own))
            params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            self.core.add(Request(prompt, params))

    def _text(self, start: int, length: int) -> tuple[int, ...]:
        return tuple(self._prompt[(start + place) % len(self._prompt)] for place in range(length))
