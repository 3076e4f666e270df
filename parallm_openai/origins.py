"""How settings and browsers write the origin of a web page, the name of a host, and the path of a server."""

from __future__ import annotations

import re

ANY = "*"
# In a list of origins: every page that this machine itself serves.
LOOPBACK = "loopback"
DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(\*|(\*\.)?[^\s/?#@*,]+)")


def check_host(pattern: str) -> str:
    """A host name as `--allowed-hosts` takes it, in lower case. Raises ValueError."""
    if pattern != ANY and not _HOST.fullmatch(pattern):
        raise ValueError(f"{pattern!r} is no host name such as llm.example.com or *.example.com (any port is allowed)")
    return pattern.lower().strip("[]").removesuffix(".")


def check_origin(pattern: str) -> str:
    """An origin as `--cors-origins` takes it, as browsers write it. Raises ValueError."""
    if pattern in (ANY, LOOPBACK, "null"):
        return pattern
    if not _ORIGIN.fullmatch(pattern):
        raise ValueError(
            f"{pattern!r} is no origin such as http://localhost:3000 (scheme, host and port, without a path), "
            f"nor {LOOPBACK}, null or {ANY}"
        )
    return as_browsers_write(pattern)


# First parts of the server's own paths.
OWN_PATHS = frozenset(
    "api chat completions detokenize docs embeddings health messages metrics models openapi.json page ping responses "
    "tokenize tokenizer_info v1 version".split()
)


def check_root_path(path: str) -> str:
    """A path as `--root-path` takes it, without a slash at its end. Raises ValueError."""
    path = path.rstrip("/")
    if path and not _ROOT_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is no path such as /llm (a slash, then letters, digits and ._~-)")
    if path.removeprefix("/") in OWN_PATHS:
        raise ValueError(f"{path!r} is where the server has routes of its own: it must be another path, such as /llm")
    return path


def as_browsers_write(origin: str) -> str:
    """The origin in lower case, without the port that its scheme implies."""
    origin = origin.lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], "\0"))
