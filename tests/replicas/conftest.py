"""One cluster of two replicas for all tests here. Without Ray they are skipped: `scripts/test_replicas` installs it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from support.replicas import Cluster, cluster

collect_ignore_glob = [] if importlib.util.find_spec("ray") else ["test_*.py"]


@pytest.fixture(scope="session")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("replicas") / "log") as made:
        yield made
