"""The application that Ray Serve deploys: its file, and the health of a replica."""

from __future__ import annotations

import asyncio

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema
from support.processes import ROOT
from support.servers import demo_target

from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.replicas.application import build
from parallm_openai.replicas.calls import ReplicaLost
from parallm_openai.replicas.engine import Engine
from parallm_openai.settings import EngineConfig


def test_ray_serve_takes_the_example() -> None:
    written = yaml.safe_load((ROOT / "examples" / "serve_replicas.yaml").read_text(encoding="utf-8"))
    application = ServeDeploySchema.model_validate(written).applications[0]
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    bound = [each for each in build(application.args)._bound_deployment.init_args if isinstance(each, Application)]
    deployments = {each._bound_deployment.name: each._bound_deployment for each in bound}
    assert {each.name for each in application.deployments} <= deployments.keys()
    scaling = deployments["Engine"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 8, 24)


def test_a_replica_whose_engine_has_failed_is_unhealthy_and_sends_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AsyncEngine(demo_target(), EngineConfig())
    replica = Engine.__new__(Engine)
    replica._engine, replica.name = engine, "one"
    replica._check_engine()

    def fail() -> bool:
        raise MemoryError

    monkeypatch.setattr(engine._engine, "_take_commands", fail)
    engine.call(lambda: None)
    engine._engine._thread.join(30)
    with pytest.raises(ReplicaLost, match="one"):
        replica._check_engine()
    with pytest.raises(RuntimeError, match="the engine has failed"):
        asyncio.run(replica.check_health())
