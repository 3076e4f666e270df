"""The folder that keeps what is made for this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER_NAME = "parallm-openai"


def cache_folder() -> Path:
    """The user's folder for this package, or one in the temporary folder if that cannot be written.

    Makes it if it is missing. Raises OSError or RuntimeError if neither can be had.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / FOLDER_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # A per-user name: another user's folder in a shared /tmp is neither trusted nor writable.
    folder = Path(tempfile.gettempdir()) / f"{FOLDER_NAME}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user; set XDG_CACHE_HOME")
    return folder


def make_if_missing(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, after `make` has made it if it is not there. Raises what `make` raises.

    `make` writes a file of the same name in a scratch folder, which is then moved into place: other processes
    take the file as soon as it is there, so it must never be there in part.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            unfinished = Path(scratch) / target.name
            make(unfinished)
            os.replace(unfinished, target)
    return target
