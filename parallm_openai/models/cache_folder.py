"""Where this package keeps what it makes for this machine; importable without `mlx`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """The user's folder for this package, made where it is missing.

    Raises OSError or RuntimeError where neither it nor one of the user's own in the temporary folder can be had.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "parallm-openai"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # A per-user name: another user's folder in a shared /tmp is neither trusted nor writable.
    folder = Path(tempfile.gettempdir()) / f"parallm-openai-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user; set XDG_CACHE_HOME")
    return folder


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`; unless it is there already, `make` writes it, under the same name in a scratch folder of its own.

    It is there whole or not at all: other processes take it as soon as it is. Raises what `make` raises.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            draft = Path(scratch) / target.name
            make(draft)
            os.replace(draft, target)
    return target
