"""Every family's batched logits are those of its rows alone, in mlx-lm's own caches."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from support import families

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.kv import Layout
from parallm_openai.engine.cache.native import NativeCache, NativePrefill
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.capabilities import UnsupportedModelError, probe
from parallm_openai.models.language_model import LanguageModel
from parallm_openai.models.mixers import Mixer, Recording, States

TOLERANCE = 1e-4

# Length, tokens read before decoding, and the round it joins in; some are longer than any sliding window,
# one decodes from its first token, and they end at different times.
ROWS = ((34, 20, 0), (12, 5, 0), (26, 0, 1), (9, 8, 3), (30, 13, 5), (5, 1, 6))


@dataclass
class Sequence:
    tokens: list[int]
    prompt: int
    joins: int
    expected: np.ndarray = field(repr=False)
    read: int = 0

    @property
    def left(self) -> int:
        return len(self.tokens) - self.read


def sequences(network: nn.Module) -> list[Sequence]:
    dice = random.Random(1)
    made = []
    for length, prompt, joins in ROWS:
        tokens = [dice.randrange(families.VOCAB) for _ in range(length)]
        made.append(Sequence(tokens, prompt, joins, alone(network, tokens)))
    return made


def alone(network: nn.Module, tokens: list[int]) -> np.ndarray:
    """Logits of one row, read token by token in mlx-lm's own cache."""
    cache = make_prompt_cache(network)
    return np.array(mx.concatenate([network(mx.array([[token]]), cache=cache)[0] for token in tokens]))


def rounding(network: nn.Module) -> float:
    """How far a row's logits are from themselves where it is read at once: what float32 leaves open.

    Recurrences add it up: Jamba's is larger than `TOLERANCE` where single rows are rounded unlike several.
    """
    rows = sequences(network)
    at_once = [network(mx.array([row.tokens]), cache=make_prompt_cache(network))[0] for row in rows]
    return max(float(np.abs(np.array(logits) - row.expected).max()) for logits, row in zip(at_once, rows, strict=True))


def prefill(cache: BatchCache, rows: list[Sequence], chunk: int) -> None:
    """Read the prompts of rows that join together, in chunks of unequal length."""
    for _ in rows:
        cache.append_row()
    while any(row.read < row.prompt for row in rows):
        chunks = [row.tokens[row.read : min(row.read + chunk, row.prompt)] for row in rows]
        cache.forward(Inputs.of(chunks, [0] * len(chunks)), [row.read for row in rows])
        cache.evaluate()
        for row, part in zip(rows, chunks, strict=True):
            row.read += len(part)


def decode(cache: BatchCache, rows: list[Sequence], dice: random.Random, longest: int) -> float:
    """One step: every row is given its next tokens and a wrong tail, and keeps the former."""
    kept = [dice.randint(1, min(longest, row.left)) for row in rows]
    wrong = [[dice.randrange(families.VOCAB) for _ in range(dice.randint(0, longest - count))] for count in kept]
    given = [row.tokens[row.read : row.read + count] + tail for row, count, tail in zip(rows, kept, wrong, strict=True)]
    logits = np.array(cache.forward(Inputs.of(given), [row.read for row in rows]))
    worst, start = 0.0, 0
    for row, count, tokens in zip(rows, kept, given, strict=True):
        expected = row.expected[row.read : row.read + count]
        worst = max(worst, float(np.abs(logits[start : start + count] - expected).max()))
        start += len(tokens)
        row.read += count
    return worst


def largest_difference(network: nn.Module, ragged: Ragged | None) -> float:
    """Run all rows through a batch that they join and leave; the largest difference to the rows alone.

    The batch is a ragged one, or mlx-lm's own.
    """
    dice = random.Random(2)
    # The engine never decodes a row that has read nothing; a ragged batch can.
    waiting = [row for row in sequences(network) if row.prompt or ragged is not None]
    running: list[Sequence] = []
    model = LanguageModel(network)
    prefilling: BatchCache = ragged.cache(model) if ragged else NativePrefill(model)
    decoding: BatchCache = ragged.cache(model) if ragged else NativeCache(model)
    worst, step = 0.0, 0
    while waiting or running:
        joining = [row for row in waiting if row.joins <= step]
        waiting = [row for row in waiting if row.joins > step]
        prefill(prefilling, joining, chunk=6)
        while joining:
            decoding.append_row_from(prefilling, 0, joining[0].read)
            prefilling.remove_row(0, joining[-1].read)
            running.append(joining[0])
            # The last row takes the place of the one removed.
            joining[0] = joining[-1]
            joining.pop()
        if running:
            worst = max(worst, decode(decoding, running, dice, longest=4 if ragged else 1))
        for index in reversed(range(len(running))):
            if running[index].left == 0:
                decoding.remove_row(index, running[-1].read)
                running[index] = running[-1]
                running.pop()
        step += 1
    return worst


# Served by mlx-lm's own batch caches, and the reason.
NATIVE = {
    "recurrent_gemma": "its logits or states differ from single rows",
    "llama4": "its cache is a ChunkedKVCache",
}
RECURRENT = [family for family in families.RECURRENT if family not in NATIVE]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*families.RAGGED, *RECURRENT, "gemma3n", "deepseek_v32"])
def test_a_ragged_batch_computes_what_each_row_computes_alone(family: str) -> None:
    """So a family may speculate: every step of this batch has rejected drafts."""
    network = families.model(family)
    ragged = probe(network, families.VOCAB).ragged
    assert ragged is not None
    assert ragged.recurrent == (family in families.RECURRENT)
    assert largest_difference(network, ragged) < max(TOLERANCE, 2 * rounding(network))


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_padding_and_groups_of_rows_lead_to_the_same_states(family: str) -> None:
    """A family whose mixers pass over padding is replayed at once; all families are if rows go by accepted tokens."""
    network = families.model(family)
    assert largest_difference(network, Ragged(recurrent=True)) < max(TOLERANCE, 2 * rounding(network))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["recurrent_gemma"])
def test_mlx_lms_batch_computes_what_each_row_computes_alone(family: str) -> None:
    network = families.model(family)
    assert largest_difference(network, None) < max(TOLERANCE, 2 * rounding(network))


@pytest.mark.parametrize("family", ["recurrent_gemma"])
def test_a_family_that_the_ragged_cache_gets_wrong_falls_back_to_mlx_lms_batch(family: str) -> None:
    found = probe(families.model(family), families.VOCAB)
    assert found.ragged is None
    assert NATIVE[family] in found.reason


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt_bigcode", "in mlx-lm's batch caches it fails"),
        ("afm7", "in mlx-lm's batch caches its logits or states differ from single rows"),
        ("llama4", NATIVE["llama4"]),
    ],
)
def test_a_family_that_neither_cache_serves_is_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be served in a batch") as refusal:
        probe(families.model(family), families.VOCAB)
    assert reason in str(refusal.value)


class Disturbed(nn.Module):
    """A Llama whose rows disturb each other: its logits depend on how many there are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = families.model("llama")

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.inner.layers)

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        logits: mx.array = self.inner(tokens, cache=cache)
        return logits + 0.1 * (tokens.shape[0] - 1)


def test_wrong_numbers_are_found_not_only_failures() -> None:
    with pytest.raises(UnsupportedModelError, match="in a ragged batch its logits or states differ"):
        probe(Disturbed(), families.VOCAB)


def test_the_largest_differences_show_where_a_window_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has the power to see what it is there for."""
    mask = Layout.mask
    monkeypatch.setattr(Layout, "mask", lambda self, window, as_array: mask(self, None, as_array))
    assert largest_difference(families.model("llama_sliding"), Ragged()) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_a_state_that_keeps_rejected_tokens_is_noticed_at_load(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreplayed(
        self: Recording, before: States, counts: Mapping[int, int], masked: bool
    ) -> tuple[States, dict[int, int]]:
        """The states after all tokens of the forward."""
        return replay(self, before, dict.fromkeys(counts, self.width), masked)

    replay = Recording.replay
    monkeypatch.setattr(Recording, "replay", unreplayed)
    found = probe(families.model(family), families.VOCAB)
    assert found.ragged is None
    assert "in a ragged batch its logits or states differ" in found.reason


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_a_mixer_that_is_not_replayed_is_noticed_at_load(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model can hide this in its logits, as RWKV-7 does: states are compared too."""

    network = families.model(family)
    LanguageModel(network)
    mixers = [module for module in network.modules() if isinstance(module, Mixer)]
    for mixer in {type(mixer).__name__: mixer for mixer in mixers}.values():
        with monkeypatch.context() as patched:
            patched.setattr(Recording, "called", all_but(mixer))
            assert probe(network, families.VOCAB).ragged is None


def all_but(forgotten: nn.Module) -> Callable[..., None]:
    """`Recording.called`, but for the calls of one mixer."""
    record = Recording.called

    def called(self: Recording, mixer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if mixer is not forgotten:
            record(self, mixer, args, kwargs)

    return called


@pytest.mark.slow
def test_the_page_of_families_says_what_the_check_finds() -> None:
    root = Path(__file__).parent.parent
    page = runpy.run_path(str(root / "scripts" / "families.py"))
    text = "\n".join([page["HEAD"], *page["rows"](), ""])
    assert text == (root / "docs" / "families.md").read_text(), "run scripts/families.py, as it says"
