"""The dashboard and the documentation name the metrics that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.processes import ROOT
from support.servers import demo_draft, running_server

DASHBOARD = json.loads((ROOT / "docs" / "metrics" / "grafana.json").read_text(encoding="utf-8"))
PAGE = ROOT / "docs" / "metrics.md"
# Labels that every sample has, and those that Prometheus itself adds.
COMMON, ADDED = {"model_name"}, {"instance", "job"}

SELECTOR = re.compile(r"\b((?:vllm|parallm):\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)\s*=~?\s*"')
GROUPING = re.compile(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Served:
    """A family of metrics as `/metrics` tells of it."""

    name: str
    kind: str
    samples: frozenset[str]
    labels: frozenset[str]
    meaning: str


@pytest.fixture(scope="module")
def served() -> list[Served]:
    with running_server(demo_draft(), draft_length=3) as server, server.client as client:
        body = {"prompt": "Once upon a time", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
        client.post("/v1/completions", json=body).raise_for_status()
        client.post("/v1/completions", json={})
        text = client.get("/metrics").text
    found = []
    for family in text_string_to_metric_families(text):
        # When a series began: Prometheus does not need them.
        if family.name.endswith("_created"):
            continue
        labels = frozenset(label for sample in family.samples for label in sample.labels)
        samples = frozenset(sample.name for sample in family.samples)
        suffix = "_total" if family.type == "counter" else ""
        found.append(Served(family.name + suffix, family.type, samples, labels, family.documentation))
    assert len(found) > 20
    return found


def queries() -> Iterator[str]:
    """All of the dashboard's PromQL."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_every_query_of_the_dashboard_asks_for_what_is_served(served: list[Served]) -> None:
    labels = {sample: family.labels | ADDED for family in served for sample in family.samples}
    asked = [match for query in queries() for match in SELECTOR.finditer(query)]
    assert len(asked) > 40
    for match in asked:
        name, selector = match.groups()
        assert name in labels, name
        assert set(LABEL.findall(selector or "")) <= labels[name], match[0]


def test_the_dashboard_groups_by_labels_that_are_served(served: list[Served]) -> None:
    count = 0
    for query in queries():
        there = {label for family in served if any(name in query for name in family.samples) for label in family.labels}
        for names in GROUPING.findall(query):
            count += 1
            assert {name.strip() for name in names.split(",")} <= there, query
    assert count > 10


def test_every_panel_asks_the_data_source_that_is_chosen_and_has_a_place_of_its_own() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval", "__range"}
    assert max(x for x, _ in taken) == 23


def test_the_page_lists_every_metric_with_its_type_labels_and_meaning(served: list[Served]) -> None:
    rows = re.findall(r"^\| `([a-z]+:\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    listed = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows}
    expected = {each.name: (each.kind, each.labels - COMMON - {"le"}, each.meaning) for each in served}
    assert listed == expected
    assert len(rows) == len(listed)


def test_the_configuration_to_paste_is_prometheus_own() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (job,) = yaml.safe_load(block)["scrape_configs"]
    assert job.keys() == {"job_name", "static_configs", "authorization"}
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8080"]}]


def test_the_line_of_json_on_the_page_has_the_keys_of_a_request() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (line,) = block.splitlines()
    written = re.findall(r"`(\w+)`", PAGE.read_text("utf-8").partition("| key | |")[2])
    assert json.loads(line).keys() <= set(written)
