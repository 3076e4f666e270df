"""An environment for each client, in which its pinned packages are installed once."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compat.matrix.clients import TOOLS, Client, installed_version, pins

INSTALLATION_SECONDS = 900


class NotInstalled(Exception):
    """Why a client cannot be run here. Its words stand in the matrix, so they name no path."""


@dataclass(frozen=True)
class Environment:
    python: Path
    # What is installed: the package and its version.
    versions: dict[str, str]


def installed(client: Client) -> Environment:
    """The environment of a client, made if it is not there yet or if its pins have changed."""
    python, versions = _python(client)
    return Environment(python, versions | _node(client))


def _python(client: Client) -> tuple[Path, dict[str, str]]:
    here = Path(sys.executable)
    # A client without Python packages, or one that is installed here in just that version, needs no environment.
    if all(installed_version(package) == version for package, version in client.pins.items()):
        return here, client.pins
    python = client.environment / "bin" / "python"
    lists = [TOOLS, client.folder / "requirements.txt"]
    if not _is_done(client.environment / ".python", lists):
        shutil.rmtree(client.environment, ignore_errors=True)
        _command([sys.executable, "-m", "venv", str(client.environment)], "a virtual environment cannot be made")
        # Modules are compiled when they are first imported: most never are.
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        _command([*install, *(word for each in lists for word in ("-r", str(each)))], "pip cannot install its packages")
        _done(client.environment / ".python", lists)
    code = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
    names = list(pins(client.folder / "requirements.txt"))
    found = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, timeout=120, check=True)
    return python, dict(zip(names, found.stdout.split(), strict=True))


def _node(client: Client) -> dict[str, str]:
    if not client.node_packages:
        return {}
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalled("Node and npm are not installed")
    files = [client.folder / "package.json", client.folder / "package-lock.json"]
    if not files[1].exists():
        raise NotInstalled("its package.json has no package-lock.json")
    folder = client.environment
    if not _is_done(folder / ".node", files):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, folder)
        _command([npm, "ci", "--no-audit", "--no-fund", "--prefix", str(folder)], "npm cannot install its packages")
        _done(folder / ".node", files)
    # Node looks for a module's packages beside the module.
    beside = client.folder / "node_modules"
    if beside.is_symlink() or not beside.exists():
        beside.unlink(missing_ok=True)
        beside.symlink_to(folder / "node_modules")
    described = (folder / "node_modules" / name / "package.json" for name in client.node_packages)
    versions = [json.loads(file.read_text(encoding="utf-8"))["version"] for file in described]
    return dict(zip(client.node_packages, versions, strict=True))


def _command(command: Sequence[str], failure: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALLATION_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{failure} in {INSTALLATION_SECONDS // 60} minutes") from None
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        raise NotInstalled(failure)


def _hash(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _is_done(stamp: Path, files: Sequence[Path]) -> bool:
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _hash(files)


def _done(stamp: Path, files: Sequence[Path]) -> None:
    stamp.write_text(_hash(files), encoding="utf-8")
