"""Requests drawn from the server's own `/openapi.json`: never a 5xx, every answer as documented."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
REQUESTS = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def bounded(body: Any, model: str) -> Any:
    """The request to the model served, with few tokens to generate: what is looked for is not in the answer."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body["model"] = model
        limit = "max_output_tokens" if "input" in body else "max_tokens"
        if body.get("max_completion_tokens") is None and body.get(limit) is None:
            body[limit] = 4
        for name in LIMITS:
            if isinstance(body.get(name), int) and body[name] > 4:
                body[name] = 4
        if isinstance(body.get("options"), dict):
            body["options"]["num_predict"] = 4
        for name in ("n", "best_of"):
            if isinstance(body.get(name), int) and body[name] > 2:
                body[name] = 2
    return body


@pytest.mark.slow
def test_every_answer_is_as_documented(served: Any) -> None:
    schema = schemathesis.openapi.from_url(served.url.removesuffix("/v1") + "/openapi.json")
    found: Any = schema.get_all_operations()
    operations = [each.ok() for each in found]
    configure = served.url.removesuffix("/v1") + "/v1/configure"
    settings_before = httpx.post(configure, timeout=240).json()
    assert len(operations) >= 14
    for operation in operations:
        print(operation.label)
        check(operation, GenerationMode.POSITIVE, served.model)
        # A route that takes any text has no request that breaks its own schema.
        with contextlib.suppress(Unsatisfiable):
            check(operation, GenerationMode.NEGATIVE, served.model)
        # One of the operations is to change the engine's settings.
        httpx.post(configure, params=settings_before, timeout=240).raise_for_status()


def check(operation: Any, mode: GenerationMode, model: str) -> None:
    @REQUESTS
    @given(case=operation.as_strategy(generation_mode=mode))
    def every_answer(case: Any) -> None:
        case.body = bounded(case.body, model)
        case.call_and_validate(checks=CHECKS)

    every_answer()
