"""A cache of the model hub in a folder of the test's own, with the hub out of reach."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest


def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the hub's library have its cache there, and not ask the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def put_into_cache(folder: Path, cache: Path, model_id: str) -> Path:
    """A model's folder as the hub's library would have stored it; returns the repository's folder."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    return repository
