"""The settings of replicas in a configuration file of Ray Serve, by the names of `serve`'s flags."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from parallm_openai.cli.options import options_of
from parallm_openai.replicas.plan import Plan
from parallm_openai.scaling_settings import ReplicaSettings
from parallm_openai.setting_types import Settings
from parallm_openai.settings import DraftSettings, EngineConfig, ModelSettings, RequestDefaults, ServerSettings

KINDS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "drafting": DraftSettings,
    "config": EngineConfig,
    "defaults": RequestDefaults,
    "server": ServerSettings,
    "replicas": ReplicaSettings,
}
# Ray Serve's own file says these.
OF_SERVE = ("host", "port", "uds")


def plan_of(given: Mapping[str, Any]) -> Plan:
    """The plan of such settings. Raises ValueError, naming the setting that is wrong.

    Keys that it does not have come from their environment variables: such a file is no place for secrets.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in KINDS}
    places = {
        key: (name, option.field)
        for name, kind in KINDS.items()
        for option in options_of(kind)
        for key in option.keys
        if option.name not in OF_SERVE
    }
    for written, value in given.items():
        key = written.replace("_", "-")
        if key not in places:
            near = difflib.get_close_matches(key, places, n=1)
            raise ValueError(f"there is no setting '{written}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        name, field = places[key]
        values[name][field] = value
    for option in options_of(ServerSettings):
        if option.secret and (kept := os.environ.get(str(option.variable))) is not None:
            values["server"].setdefault(option.field, kept.split())
    made: dict[str, Any] = {name: kind.model_validate(values[name]) for name, kind in KINDS.items()}
    return Plan(**made)
