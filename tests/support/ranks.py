"""Runs requests on a tiny model that is sharded over the ranks of `mlx.launch`, and prints what came of them.

    mlx.launch -n 2 python -m support.ranks FAMILY heads|layers|draft [OPERATIONS]

The second word says what is split: the heads of the target, its layers, or the heads of target and draft. After so
many operations the last rank ends, if that is given.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterable, Iterator

import parallm_openai

parallm_openai.prepare()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

from parallm_openai.distributed.operations import Leader, Operation, Share, follow  # noqa: E402
from parallm_openai.distributed.ranks import Ranks, join  # noqa: E402
from parallm_openai.engine.cache.ragged import Ragged  # noqa: E402
from parallm_openai.engine.capabilities import probe  # noqa: E402
from parallm_openai.engine.request import Request  # noqa: E402
from parallm_openai.engine.row import DRAFT, TARGET  # noqa: E402
from parallm_openai.engine.runner import ModelRunner  # noqa: E402
from parallm_openai.engine.scheduler import ModelTraits  # noqa: E402
from parallm_openai.engine.speculation.draft_model import DraftModel  # noqa: E402
from parallm_openai.engine.speculation.drafter import Drafter  # noqa: E402
from parallm_openai.engine.speculation.portfolio import Portfolio  # noqa: E402
from parallm_openai.engine.speculation.suffix import SuffixDrafter  # noqa: E402
from parallm_openai.engine.step import EngineCore  # noqa: E402
from parallm_openai.models.language_model import LanguageModel  # noqa: E402
from parallm_openai.settings import EngineConfig  # noqa: E402
from support import families  # noqa: E402
from support.kinds import disturbed  # noqa: E402
from support.tiny import CONTEXT, greedy, reference, run_all, seeded  # noqa: E402

ENDED = 3
CONFIG = EngineConfig(draft_length=3, max_batch_size=4, prefill_chunk=16)


def built(family: str) -> nn.Module:
    config = families.config(family)
    text = config.get("text_config", config)
    # So that two ranks can share its heads.
    settings = {**text, "num_attention_heads": 4, "num_key_value_heads": 2}
    return families.build({**config, "text_config": settings} if "text_config" in config else settings, seed=3)


def requests() -> list[Request]:
    rng = random.Random(1)
    prompts = [[rng.randrange(families.VOCAB) for _ in range(rng.randrange(2, 40))] for _ in range(8)]
    prompts[6] = prompts[2]
    return [greedy(prompt, 30) if at % 2 else seeded(prompt, 30, seed=at) for at, prompt in enumerate(prompts)]


def lead(ranks: Ranks, model: nn.Module, draft: nn.Module, ragged: Ragged, expected: list[list[int]]) -> None:
    leader = Leader(ranks.lead())
    target = ModelRunner(model, TARGET, ragged=ragged, make_cache=leader.makes(TARGET))
    make_cache = leader.makes(DRAFT) if sys.argv[2] == "draft" else None
    drafting = DraftModel(draft, families.VOCAB, families.VOCAB, ragged, make_cache=make_cache)
    drafters: list[Drafter] = [Drafter(), Portfolio(drafting, SuffixDrafter())]
    for drafter in drafters:
        traits = ModelTraits(True, 10**9, 4, 256, recurrent=ragged.recurrent)
        core = EngineCore(target, drafter, CONFIG, traits, context_length=CONTEXT, eos_ids=frozenset())
        asked = requests()
        run = run_all(core, asked, [0, 0, 1, 3, 5, 8, 12, 12])
        same = [run.tokens[each.id] == tokens for each, tokens in zip(asked, expected, strict=True)]
        accepted = sum(map(run.accepted, asked))
        print(json.dumps({"rank": 0, "drafter": drafter.name, "same": same, "accepted": accepted}), flush=True)


def lost(said: str) -> None:
    print(json.dumps({"lost": said}), flush=True)
    os._exit(1)


def main(family: str, split: str, last: int | None) -> None:
    ranks = join(pipeline=split == "layers", on_loss=lost)
    assert ranks is not None
    model = built(family)
    expected = [reference(each, target=model) for each in requests()] if ranks.rank == 0 else []
    draft = disturbed(built(family), 0.1)
    for each in (model, draft) if split == "draft" else (model,):
        ranks.split(each, families.config(family))
        mx.eval(each.parameters())
    ragged = probe(model, families.VOCAB).ragged
    assert ragged is not None
    if ranks.rank == 0:
        lead(ranks, model, draft, ragged, expected)
        ranks.end()
    else:
        operations = _until(ranks.follow(), last)
        shares = {TARGET: Share(LanguageModel(model), ragged)}
        if split == "draft":
            shares[DRAFT] = Share(LanguageModel(draft), ragged)
        follow(operations, shares)
    os._exit(0)


def _until(operations: Iterable[Operation], last: int | None) -> Iterator[Operation]:
    for number, operation in enumerate(operations):
        if number == last:
            os._exit(ENDED)
        yield operation


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else None)
