"""Which GGUF file a path means. Imports nothing heavy, as every model's path comes by here."""

from __future__ import annotations

from pathlib import Path

MAGIC = b"GGUF"


class GgufError(ValueError):
    """A GGUF file that cannot be loaded, with the reason."""


def gguf_file(path: Path) -> Path | None:
    """The GGUF file at `path`: the path itself, or the only such file of a folder without safetensors.

    Programs store such files without the suffix too, so a file counts by its first bytes. Raises GgufError for a folder
    with several.
    """
    if path.is_file():
        return path if is_gguf(path) else None
    if any(path.glob("model*.safetensors")):
        return None
    # A projector for images often lies beside the model that it belongs to.
    found = sorted(file for file in path.glob("*.gguf") if "mmproj" not in file.name.lower())
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise GgufError(f"{path} holds several GGUF files; name one of them: {names}")
    return found[0] if found else None


def is_gguf(file: Path) -> bool:
    """Whether the file begins as GGUF files do."""
    if not file.is_file():
        # To read a pipe would be to wait for somebody to write to it.
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
