"""What a set of replicas is made of."""

from __future__ import annotations

from dataclasses import dataclass

from parallm_openai.scaling_settings import ReplicaSettings
from parallm_openai.settings import DraftSettings, EngineConfig, ModelSettings, RequestDefaults, ServerSettings


@dataclass(frozen=True)
class Plan:
    """The settings of `serve` that hold for replicas. Where Ray Serve listens, and certificates, are its own matter."""

    model: ModelSettings
    drafting: DraftSettings
    config: EngineConfig
    defaults: RequestDefaults
    server: ServerSettings
    replicas: ReplicaSettings
