"""A tiny random Llama, and a slow single-row decoder to compare the engine with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

from parallm_openai.engine import sampling
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.constraint import Mask
from parallm_openai.engine.position import Position
from parallm_openai.engine.request import FinishReason, Output, Request, SamplingParams
from parallm_openai.engine.row import TARGET
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.scheduler import ModelTraits
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.portfolio import Portfolio
from parallm_openai.engine.speculation.suffix import SuffixDrafter
from parallm_openai.engine.step import EngineCore
from parallm_openai.settings import EngineConfig

VOCAB = 61
CONTEXT = 4096


@dataclass(frozen=True)
class Sums:
    """A grammar: the sum of all tokens is never a multiple of `period`; at most `length` tokens."""

    period: int
    length: int

    def matcher(self) -> SumsMatcher:
        return SumsMatcher(self)

    def allows(self, tokens: Sequence[int], token: int) -> bool:
        return (sum(tokens) + token) % self.period != 0


class SumsMatcher:
    error = None

    def __init__(self, grammar: Sums) -> None:
        self.grammar = grammar
        self.tokens: list[int] = []

    @property
    def finished(self) -> bool:
        return len(self.tokens) >= self.grammar.length

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        before = [*self.tokens, *drafts]
        bits = [self.grammar.allows(before, token) for token in range(VOCAB)]
        packed = np.packbits(bits, bitorder="little")
        return np.pad(packed, (0, -len(packed) % 4)).view(np.uint32)

    def advance(self, token: int) -> None:
        self.tokens.append(token)


@cache
def model(seed: int = 0, vocab: int = VOCAB) -> nn.Module:
    mx.random.seed(seed)
    config = {
        "model_type": "llama",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
    }
    built = llama.Model(llama.ModelArgs.from_dict(config))
    # Larger weights than the initialiser's: greedy text should wander, not repeat one token.
    built.update(tree_map(lambda weight: weight * 2.5, built.parameters()))
    mx.eval(built.parameters())
    return built


@cache
def draft(noise: float) -> nn.Module:
    """The target with noise on its weights: 0 always agrees, 1 hardly ever."""
    mx.random.seed(7)
    built = llama.Model(model().args)
    built.update(
        tree_map(
            lambda weight: weight + noise * mx.std(weight) * mx.random.normal(weight.shape),
            model().parameters(),
        )
    )
    mx.eval(built.parameters())
    return built


def draft_model(noise: float, *, asynchronous: bool = False) -> DraftModel:
    return DraftModel(draft(noise), VOCAB, VOCAB, asynchronous=asynchronous)


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "none": Drafter,
    "perfect draft": lambda: draft_model(0.0),
    "fair draft": lambda: draft_model(0.2),
    "fair draft, not waited for": lambda: draft_model(0.2, asynchronous=True),
    "hostile draft": lambda: draft_model(3.0),
    "suffix": SuffixDrafter,
    "fair draft and suffix": lambda: Portfolio(draft_model(0.2), SuffixDrafter()),
}


def core(
    make_drafter: Callable[[], Drafter] = Drafter,
    *,
    ragged: Ragged | None = Ragged(),
    eos: Sequence[int] = (),
    target: nn.Module | None = None,
    padding_limit: int = 10**9,
    forward_tokens: int = 4,
    prefill_tokens: int = 256,
    fast_width: int | None = None,
    runs_ahead: bool = False,
    **settings: object,
) -> EngineCore:
    drafter = make_drafter()
    return EngineCore(
        ModelRunner(target or model(), TARGET, ragged=ragged, keeps_hidden_states=drafter.reads_hidden_states),
        drafter,
        EngineConfig.model_validate(settings),
        ModelTraits(
            ragged is not None,
            padding_limit,
            forward_tokens,
            prefill_tokens,
            fast_width,
            runs_ahead,
            recurrent=ragged is not None and ragged.recurrent,
        ),
        context_length=CONTEXT,
        eos_ids=frozenset(eos),
    )


class Run:
    """Drives a core by hand: requests join at given steps, outputs are gathered by request."""

    def __init__(self, engine: EngineCore) -> None:
        self.core = engine
        self.tokens: dict[int, list[int]] = {}
        self.outputs: dict[int, list[Output]] = {}
        self.steps = 0

    @property
    def active(self) -> int:
        """How many rows prefill and decode."""
        return len(self.core.scheduler.prefilling) + len(self.core.scheduler.decoding)

    def add(self, request: Request) -> None:
        self.tokens[request.id] = []
        self.outputs[request.id] = []
        self.gather(self.core.add(request))

    def step(self) -> list[Output]:
        outputs = self.core.step()
        self.gather(outputs)
        self.steps += 1
        return outputs

    def gather(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.tokens[output.request_id] += output.tokens
            self.outputs[output.request_id].append(output)

    def finish(self, limit: int = 5000) -> Run:
        while not self.core.idle:
            assert self.steps < limit, "the engine does not come to an end"
            self.step()
        return self

    def drafted(self, request: Request) -> int:
        return sum(output.drafted for output in self.outputs[request.id])

    def accepted(self, request: Request) -> int:
        return sum(output.accepted for output in self.outputs[request.id])

    def reason(self, request: Request) -> FinishReason | None:
        reasons = [o.finish_reason for o in self.outputs[request.id] if o.finish_reason is not None]
        assert len(reasons) == 1, "every request ends exactly once"
        return reasons[0]


def run_all(engine: EngineCore, requests: Sequence[Request], joins: Sequence[int] = ()) -> Run:
    """Run requests to their end; the i-th joins at step `joins[i]` (0 where not given)."""
    run = Run(engine)
    waiting = sorted(
        zip([*joins, *[0] * (len(requests) - len(joins))], requests, strict=True), key=lambda pair: pair[0]
    )
    while waiting or not engine.idle:
        while waiting and waiting[0][0] <= run.steps:
            run.add(waiting.pop(0)[1])
        run.step()
        assert run.steps < 5000
    return run


def reference(request: Request, eos: Sequence[int] = (), target: nn.Module | None = None) -> list[int]:
    """What the request must produce: one row, one token at a time, mlx-lm's own cache, plain numpy."""
    network = target or model()
    params = request.params
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos))
    kv = make_prompt_cache(network)
    logits = network(mx.array([request.prompt]), cache=kv)[0, -1]
    generated: list[int] = []
    limit = CONTEXT - len(request.prompt) if params.max_tokens is None else params.max_tokens
    while len(generated) < limit:
        token = choose(np.array(logits, dtype=np.float32), request, generated, stops)
        if token in stops:
            break
        generated.append(token)
        if isinstance(params.grammar, Sums) and len(generated) >= params.grammar.length:
            break
        logits = network(mx.array([[token]]), cache=kv)[0, -1]
    return generated


def choose(logits: np.ndarray, request: Request, generated: Sequence[int], stops: set[int]) -> int:
    """One token by the book: penalties, bias, temperature, top-k, top-p, min-p, Gumbel-max."""
    params = request.params
    x = logits.astype(np.float32).copy()
    counts = Counter(generated)
    if params.repetition_penalty != 1:
        for token in set(request.prompt) | set(generated):
            x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token, count in counts.items():
        x[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in params.logit_bias.items():
        x[token] += bias
    if len(generated) < params.min_tokens:
        x[list(stops)] = -np.inf
    if isinstance(params.grammar, Sums):
        x[[not params.grammar.allows(generated, token) for token in range(len(x))]] = -np.inf
    if params.temperature == 0 or params.top_k == 1:
        return int(x.argmax())
    x /= np.float32(params.temperature)
    if 0 < params.top_k < len(x):
        x[x < np.sort(x)[-params.top_k]] = -np.inf
    if params.top_p < 1:
        order = np.argsort(-x, kind="stable")
        p = np.exp(x[order] - x.max())
        p /= p.sum()
        keep = (np.cumsum(p) - p) < params.top_p
        keep[0] = True
        x[order[~keep]] = -np.inf
    if params.min_p > 0:
        x[x < x.max() + np.log(params.min_p)] = -np.inf
    assert params.seed is not None
    key = sampling.keys_of([Position(params, params.seed, len(generated))])
    return int((x + np.array(sampling.gumbel_noise(key, len(x)))[0]).argmax())


def greedy(prompt: Sequence[int], max_tokens: int, **fields: object) -> Request:
    return Request(tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0, **fields))  # type: ignore[arg-type]


def seeded(prompt: Sequence[int], max_tokens: int, seed: int, **fields: object) -> Request:
    return Request(tuple(prompt), SamplingParams(max_tokens=max_tokens, seed=seed, **fields))  # type: ignore[arg-type]
