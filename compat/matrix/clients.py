"""Which clients there are: the folders of `compat/`, and the packages that they pin."""

from __future__ import annotations

import ast
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

COMPAT = Path(__file__).resolve().parents[1]
ROOT = COMPAT.parent
ENVIRONMENTS = ROOT / ".compat"
TOOLS = COMPAT / "requirements.txt"

# Starting over costs minutes; longer than this, and a client hangs.
SECONDS = 600


# The flags of a client whose tests need no server.
BRINGS_MODEL = ("none",)


# Clients without a folder: what is checked instead of a run, and why they do not run.
NOT_RUN = {
    "open_webui": (
        "Open WebUI 0.12.4: requests as its source builds them (tests/test_api_known_requests.py).",
        "its package requires PyTorch with its CUDA libraries and 100 more, several GB in all",
    ),
    "zed": (
        "Zed: requests as its source builds them (tests/test_api_known_requests.py).",
        "it has no way to run without a window",
    ),
}


@dataclass(frozen=True)
class Client:
    """One folder: its tests, and `requirements.txt`, `package.json` or both."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def environment(self) -> Path:
        """The folder that holds what is installed for this client alone."""
        return ENVIRONMENTS / self.name

    @property
    def pins(self) -> dict[str, str]:
        """The Python packages and their versions."""
        return pins(self.folder / "requirements.txt")

    @property
    def node_packages(self) -> list[str]:
        file = self.folder / "package.json"
        return sorted(json.loads(file.read_text(encoding="utf-8")).get("dependencies", {})) if file.exists() else []

    @property
    def serve(self) -> tuple[str, ...]:
        """Flags of the server that it is tested with; none are the defaults."""
        file = self.folder / "serve.args"
        return tuple(file.read_text(encoding="utf-8").split()) if file.exists() else ()

    @property
    def brings_model(self) -> bool:
        """Whether its tests start servers of their own, with a model that they make."""
        return self.serve == BRINGS_MODEL

    @property
    def checked(self) -> str:
        """The first paragraph of its tests' docstring."""
        first = sorted(self.folder.glob("test_*.py"))[0]
        words = ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or ""
        return " ".join(words.split("\n\n")[0].split())


def clients() -> list[Client]:
    found = {file.parent for name in ("requirements.txt", "package.json") for file in COMPAT.glob(f"*/{name}")}
    return [Client(folder) for folder in sorted(found)]


def pins(requirements: Path) -> dict[str, str]:
    """The packages that a list pins, without their extras, and the versions."""
    if not requirements.exists():
        return {}
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    found = {}
    for line in filter(None, lines):
        package, exact, version = line.partition("==")
        if not exact:
            raise ValueError(f"{requirements}: {line!r} pins no exact version (package==version)")
        found[package.partition("[")[0].strip()] = version.strip()
    return found


def installed_version(package: str) -> str | None:
    """Its version in this interpreter's environment."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
