"""Hundreds of answers in schemas, in mixed batches, with speculation on: every one that ends is valid."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from support.servers import RunningServer

WORDS = ["red", "green", "blue", "Paris", "Rome", "cat", "dog"]
COUNT, AT_ONCE = 500, 32


def leaf(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            {"type": "integer", "minimum": rng.randrange(-5, 5), "maximum": rng.randrange(10, 99)},
            {"type": "string", "maxLength": rng.randrange(1, 9)},
            {"type": "string", "pattern": "^[a-c]{1,4}$"},
            {"type": "string", "format": "date"},
            {"type": "boolean"},
            {"enum": rng.sample(WORDS, 3)},
            {"const": rng.choice(WORDS)},
            {"type": ["null", "boolean"]},
        ]
    )


def schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A random schema whose answers are short."""
    kind = rng.random()
    if not depth or kind < 0.3:
        return leaf(rng)
    if kind < 0.5:
        return {"type": "array", "items": schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 2}
    if kind < 0.6:
        return {"anyOf": [schema(rng, depth - 1), leaf(rng)]}
    names = rng.sample(["name", "age", "city", "tags", "ok"], rng.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: schema(rng, depth - 1) for name in names},
        "required": names[: rng.randrange(len(names) + 1)],
        "additionalProperties": False,
    }


@pytest.mark.slow
def test_hundreds_of_answers_in_schemas_are_valid_wherever_they_end(server: RunningServer) -> None:
    rng = random.Random(7)
    asked: list[tuple[Any, dict[str, Any]]] = []
    for number in range(COUNT):
        made = schema(rng)
        body = {
            "model": server.model.name,
            "messages": [{"role": "user", "content": f"Write JSON about {rng.choice(WORDS)}."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": made}},
            "temperature": rng.choice([0, 0.7, 1.0, 1.5]),
            "seed": number,
            "max_tokens": 150,
        }
        # One in five beside them in the batch is bound by nothing.
        asked.append((made if number % 5 else None, body if number % 5 else body | {"response_format": None}))
    with server.client as client, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda one: client.post("/v1/chat/completions", json=one[1]).json(), asked))
    bound = finished = 0
    for (wanted, _), answer in zip(asked, answers, strict=True):
        assert "choices" in answer, answer
        choice = answer["choices"][0]
        bound += wanted is not None
        if wanted is not None and choice["finish_reason"] == "stop":
            finished += 1
            jsonschema.validate(json.loads(choice["message"]["content"]), wanted)
    assert bound == 400
    assert finished > 0.75 * COUNT
    drafted = server.engine.stats()["speculative_stats"]
    assert drafted["drafted_tokens"] > 0
