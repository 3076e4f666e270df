"""Answers that concern every replica: each is asked, and one answer is made of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from parallm_openai.api.errors import ApiError
from parallm_openai.replicas.calls import Whole

CONFIGURE, STATS, METRICS, STEPS = "/v1/configure", "/v1/stats", "/metrics", "/v1/engine/steps"
PATHS = frozenset((CONFIGURE, STATS, METRICS, STEPS))


def combine(path: str, answers: Sequence[Whole], chosen: str | None, own: CollectorRegistry) -> Whole:
    """One answer. It is that of the replica `chosen`, or of the first by name, if a path has no sum of all.

    If a replica has refused, that is the answer. Raises ApiError if there is no such replica.
    """
    answers = sorted(answers, key=lambda each: each.replica)
    refused = next((each for each in answers if each.status != 200), None)
    if refused is not None:
        return refused
    shown = answers[0] if chosen is None else _named(chosen, answers)
    match path:
        case "/v1/stats":
            return _with_body(shown, _stats(shown, answers))
        case "/metrics":
            return _with_body(shown, _metrics(answers, own))
        case _:
            return shown


def _named(name: str, answers: Sequence[Whole]) -> Whole:
    found = next((each for each in answers if each.replica == name), None)
    if found is None:
        known = ", ".join(each.replica for each in answers)
        message = f"There is no replica '{name[:200]}'. Replicas: {known}."
        raise ApiError(404, message, param="replica", code="replica_not_found")
    return found


def _stats(shown: Whole, answers: Sequence[Whole]) -> bytes:
    numbers: dict[str, dict[str, Any]] = {each.replica: json.loads(each.body) for each in answers}
    body = {**numbers[shown.replica], "replica": shown.replica, "replicas": numbers}
    return json.dumps(body, separators=(",", ":")).encode()


def _with_body(answer: Whole, body: bytes) -> Whole:
    headers = [each for each in answer.headers if each[0].lower() != b"content-length"]
    length = (b"content-length", str(len(body)).encode())
    return Whole(answer.replica, answer.status, [*headers, length], body)


def _metrics(answers: Iterable[Whole], own: CollectorRegistry) -> bytes:
    """The metrics of all replicas, with a label that says whose they are, and the ingress's own."""
    registry = CollectorRegistry()
    registry.register(_Labelled(answers))
    return generate_latest(registry) + generate_latest(own)


class _Labelled(Collector):
    def __init__(self, answers: Iterable[Whole]) -> None:
        self._families: dict[str, Metric] = {}
        for answer in answers:
            for family in text_string_to_metric_families(answer.body.decode()):
                known = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [
                    each._replace(labels={**each.labels, "replica": answer.replica}) for each in family.samples
                ]

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()
