"""The mix of tasks, and the stream of training documents made from it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from demo_training.corpus_arithmetic import arithmetic, reasoning, sums_text
from demo_training.corpus_code import code, code_text
from demo_training.corpus_drills import drill
from demo_training.corpus_facts import facts, facts_text, styled
from demo_training.corpus_jokes import jokes
from demo_training.corpus_json import any_json
from demo_training.corpus_lists import counting, counting_text, letters, pick_list, repeat, sequence
from demo_training.corpus_stories import stories, story_text
from demo_training.corpus_talk import memory, named, refusal, small_talk
from demo_training.corpus_tools import tool_answer, tool_call, tool_unneeded
from demo_training.sample import Maker, Message, Sample, between, draw, pick

MIX: dict[str, tuple[Maker, float]] = {
    # task: its generator, and its share of the samples
    "small_talk": (small_talk, 3),
    "arithmetic": (arithmetic, 26),
    "reasoning": (reasoning, 10),
    "facts": (facts, 12),
    "json": (any_json, 15),
    "counting": (counting, 8),
    "sequence": (sequence, 3),
    "repeat": (repeat, 4),
    "letters": (letters, 10),
    "lists": (pick_list, 2.5),
    "stories": (stories, 2.2),
    "jokes": (jokes, 4),
    "memory": (memory, 3),
    "system_name": (named, 2.5),
    "system_style": (styled, 9),
    "refusal": (refusal, 2.5),
    "code": (code, 2),
    "tool_call": (tool_call, 8),
    "tool_answer": (tool_answer, 6),
    "tool_unneeded": (tool_unneeded, 1.5),
    "raw_facts": (facts_text, 2.5),
    "raw_sums": (sums_text, 3),
    "raw_counting": (counting_text, 0.7),
    "raw_stories": (story_text, 1.5),
    "raw_code": (code_text, 0.7),
}


EARLY = 4_000
EARLY_DRILLS, LATE_DRILLS = 0.35, 0.06
"""The share of drills among the first `EARLY` documents, and after them."""


def _task(rng: random.Random) -> str:
    point = rng.random() * sum(share for _, share in MIX.values())
    for name, (_, share) in MIX.items():
        point -= share
        if point < 0:
            return name
    return next(iter(MIX))


def sample(rng: random.Random, task: str | None = None, held_out: bool = False) -> Sample:
    """One sample of the mix, or of one task."""
    maker, _ = MIX[task or _task(rng)]
    drawn = draw(maker, rng, held_out)
    if drawn.plain and not drawn.thinking and rng.random() < 0.02:
        drawn.thinking = True
    return drawn


def _join(samples: list[Sample]) -> Sample:
    messages: list[Message] = [message for one in samples for message in one.messages]
    return Sample("dialogue", "", messages)


def documents(seed: int, early: int = EARLY) -> Iterator[Sample]:
    """Training documents without end: the same for the same seed.

    Plain questions often come several to a dialogue, so that the model gets used to
    earlier turns; a few dialogues run to about a thousand tokens.
    """
    rng = random.Random(seed)
    yielded = 0
    turns: list[Sample] = []
    wanted = 1
    while True:
        yielded += 1
        if rng.random() < (EARLY_DRILLS if yielded < early else LATE_DRILLS):
            yield draw(drill, rng, held_out=False)
            continue
        one = sample(rng)
        if not one.plain or one.thinking or one.task == "stories":
            yield one
            continue
        turns.append(one)
        if len(turns) >= wanted:
            yield _join(turns) if len(turns) > 1 else one
            turns = []
            wanted = _dialogue_length(rng)


def _dialogue_length(rng: random.Random) -> int:
    point = rng.random()
    if point < 0.55:
        return 1
    return between(rng, 2, 5) if point < 0.97 else pick(rng, (15, 25, 35))
