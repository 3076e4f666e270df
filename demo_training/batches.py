"""Documents packed into rows of a few fixed lengths, each document blind to its neighbours."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from demo_training.chatml import spans
from demo_training.corpus import EARLY, documents
from demo_training.sample import Sample

ROW_LENGTHS = (192, 512, 1024)
CHUNK = 4000
GIVEN_WEIGHT = 0.1

Document = tuple[list[int], list[float]]


@dataclass
class Batch:
    """Rows of tokens; per position the target, its weight, and which document it belongs to."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segments: np.ndarray


def encode(sample: Sample, tokenizer: Tokenizer) -> Document:
    """Token ids and their weights in the loss: mostly what the model is to write counts.

    Raw text counts throughout.
    """
    ids: list[int] = []
    weights: list[float] = []
    for text, ours in spans(sample):
        piece = tokenizer.encode(text).ids
        ids += piece
        weights += [1.0 if ours or (sample.raw and sample.learn_prompt) else GIVEN_WEIGHT] * len(piece)
    return ids, weights


def _pack(docs: list[Document], length: int) -> list[list[Document]]:
    """First fit, longest first: rows of documents that fill at most `length` positions."""
    rows: list[list[Document]] = []
    space: list[int] = []
    for doc in sorted(docs, key=lambda d: -len(d[0])):
        need = len(doc[0]) - 1
        for index, left in enumerate(space):
            if left >= need:
                rows[index].append(doc)
                space[index] -= need
                break
        else:
            rows.append([doc])
            space.append(length - need)
    return rows


def _batch(rows: list[list[Document]], length: int) -> Batch:
    shape = (len(rows), length)
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights, segments = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for index, row in enumerate(rows):
        at = 0
        for number, (ids, weight) in enumerate(row, 1):
            end = at + len(ids) - 1
            tokens[index, at:end], targets[index, at:end] = ids[:-1], ids[1:]
            weights[index, at:end], segments[index, at:end] = weight[1:], number
            at = end
    return Batch(tokens, targets, weights, segments)


def batches(tokenizer: Tokenizer, seed: int, tokens_per_batch: int, early: int = EARLY) -> Iterator[Batch]:
    """Batches of about `tokens_per_batch` positions without end, their lengths mixed."""
    rng = random.Random(seed + 1)
    stream = documents(seed, early)
    left: dict[int, list[list[Document]]] = {length: [] for length in ROW_LENGTHS}
    while True:
        sorted_docs: dict[int, list[Document]] = {length: [] for length in ROW_LENGTHS}
        for sample in itertools.islice(stream, CHUNK):
            ids, weights = encode(sample, tokenizer)
            ids, weights = ids[: ROW_LENGTHS[-1] + 1], weights[: ROW_LENGTHS[-1] + 1]
            sorted_docs[next(n for n in ROW_LENGTHS if len(ids) - 1 <= n)].append((ids, weights))
        ready: list[Batch] = []
        for length in ROW_LENGTHS:
            rows = left[length] + _pack(sorted_docs[length], length)
            rng.shuffle(rows)
            count = max(1, tokens_per_batch // length)
            full = len(rows) - len(rows) % count
            ready += [_batch(rows[i : i + count], length) for i in range(0, full, count)]
            left[length] = rows[full:]
        while ready:
            yield ready.pop(int(rng.random() * len(ready)))
