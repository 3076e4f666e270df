"""Replicas take the settings of `serve`, from flags or from Ray Serve's own file, and refuse what they cannot do."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import typer
import yaml
from pydantic import ValidationError
from support.processes import ROOT

from parallm_openai.cli import replicas
from parallm_openai.cli.replica_file import plan_of
from parallm_openai.scaling_settings import ReplicaSettings
from parallm_openai.settings import ServerSettings, TlsSettings

EXAMPLE = ROOT / "examples" / "serve_replicas.yaml"


def refused(capsys: pytest.CaptureFixture[str], settings: ServerSettings, tls: TlsSettings) -> str:
    with pytest.raises(typer.Exit) as caught:
        replicas.check(settings, tls)
    assert caught.value.exit_code == 2
    return capsys.readouterr().err


def test_without_ray_the_error_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'parallm-openai[ray]'" in refused(capsys, ServerSettings(), TlsSettings())


@pytest.mark.parametrize(
    ("settings", "tls", "said"),
    [
        ({"uds": "/x"}, {}, "--uds: replicas cannot be served on a socket"),
        ({}, {"ssl_certfile": "x", "ssl_ca_certs": "y"}, "--ssl-ca-certs: Ray Serve cannot ask clients"),
    ],
)
def test_what_ray_serve_cannot_do_is_refused(
    settings: Any, tls: Any, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    assert said in refused(capsys, ServerSettings(**settings), TlsSettings(**tls))
    replicas.check(ServerSettings(), TlsSettings())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_replicas": 3}, "--max-replicas: needs --replicas"),
        ({"replica_routing": "prefix"}, "--replica-routing: needs --replicas"),
        ({"replicas": 3, "max_replicas": 2}, "--max-replicas: must be at least --replicas, which is 3"),
        ({"replicas": 3, "target_ongoing_requests": 2}, "--target-ongoing-requests: needs --max-replicas"),
    ],
)
def test_settings_of_replicas_fit_together(given: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ReplicaSettings(**given)


def test_the_example_is_a_plan() -> None:
    application = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["applications"][0]
    plan = plan_of(application["args"])
    assert (plan.replicas.replicas, plan.replicas.max_replicas, plan.config.max_batch_size) == (2, 8, 32)
    module, _, name = application["import_path"].partition(":")
    assert f"def {name}(" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_batch": 3}, "there is no setting 'max_batch'; did you mean 'max-batch-size'?"),
        ({"port": 80}, "there is no setting 'port'"),
        ({"max-batch-size": 0}, "max_batch_size"),
        ({"max-replicas": 2}, "--max-replicas: needs --replicas"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        plan_of(given)


def test_other_programs_names_are_keys_of_the_file_too() -> None:
    assert plan_of({"max_num_seqs": 5, "replicas": 1}).config.max_batch_size == 5


def test_keys_come_from_the_environment_unless_the_file_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLM_API_KEY", "one two")
    assert plan_of({}).server.api_keys == ("one", "two")
    assert plan_of({"api-key": ["three"]}).server.api_keys == ("three",)
