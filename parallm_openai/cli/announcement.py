"""What `serve` says once it serves: where, what, with which settings, and what to try."""

from __future__ import annotations

import ipaddress
import json
import shlex
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from parallm_openai.catalog.sizes import in_bytes
from parallm_openai.settings import EngineConfig

if TYPE_CHECKING:
    from parallm_openai.engine.async_engine import AsyncEngine
    from parallm_openai.models.loading import LoadedModel

Facts = list[tuple[str, str]]

COMMAND = "parallm-openai"
COPIES = "from the text so far and earlier answers"
DRAFTERS = {
    "suffix": COPIES,
    "mtp+suffix": f"by the model's own head for multi-token prediction, or {COPIES}",
    "none": "none: every step gives each request one token",
}


@dataclass(frozen=True)
class Address:
    """Where the server is: its URLs, the one for this machine first, or one URL behind the socket at `uds`."""

    urls: tuple[str, ...]
    uds: str | None = None

    @classmethod
    def of(cls, listener: socket.socket, *, secure: bool) -> Address:
        scheme = "https" if secure else "http"
        if listener.family == socket.AF_UNIX:
            return cls((f"{scheme}://localhost",), str(listener.getsockname()))
        host, port = listener.getsockname()[:2]
        return cls(tuple(f"{scheme}://{each}:{port}" for each in _hosts(host)))


def _hosts(host: str) -> list[str]:
    """The hosts that lead to a listener's address, as a URL has them."""
    bound = ipaddress.ip_address(host.partition("%")[0])
    if not bound.is_unspecified:
        return [f"[{host}]" if bound.version == 6 else host]
    loopback = "127.0.0.1" if bound.version == 4 else "[::1]"
    return [loopback, *_addresses(bound.version)]


def _addresses(version: int) -> list[str]:
    """This machine's addresses in its networks."""
    import psutil

    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    addresses = [address for each in found if (address := _address(each)) is not None]
    # A server on :: takes IPv4 as well, unless the system says otherwise.
    reached = [each for each in addresses if each.version == version or version == 6]
    return [
        f"[{each}]" if each.version == 6 else str(each)
        for each in reached
        if not (each.is_loopback or each.is_link_local)
    ]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        # Network cards have addresses of their own, which are none of IP.
        return None


def describe(target: LoadedModel, draft: LoadedModel | None, engine: AsyncEngine) -> Facts:
    """Name and value of what matters about a server that runs."""
    from parallm_openai.doctor import one_line

    config = engine.config
    shared = [] if target.ranks is None else [("ranks", str(target.ranks))]
    return [
        ("model", one_line(target)),
        *shared,
        ("memory", _memory(target, draft, engine)),
        ("context", f"{engine.context_length} tokens"),
        ("batch", f"{config.max_batch_size} requests of {config.max_batch_tokens} tokens in all, at most"),
        ("drafts", _drafts(config, draft, engine)),
    ]


def _memory(target: LoadedModel, draft: LoadedModel | None, engine: AsyncEngine) -> str:
    weights = target.weight_bytes + (0 if draft is None else draft.weight_bytes)
    from parallm_openai.engine.cache.states import MOST_KEPT

    config, traits = engine.config, engine.traits
    caches = (config.max_batch_tokens + config.prefix_cache_tokens) * traits.token_bytes
    # A running row has its states before and after a step, and keeps some for later rows.
    caches += (2 + MOST_KEPT) * traits.state_bytes * config.max_batch_size
    return f"{in_bytes(weights)} of weights" + (f", caches up to {in_bytes(caches)}" if caches else "")


def _drafts(config: EngineConfig, draft: LoadedModel | None, engine: AsyncEngine) -> str:
    speculation = engine.stats()["speculative_stats"]
    drafter = speculation["drafter"]
    if drafter == "none":
        return DRAFTERS["none"]
    if not speculation["enabled"]:
        return "none: switched off"
    # A target that cannot speculate is served without the draft model.
    by = DRAFTERS.get(drafter) or f"by {draft.name if draft is not None else drafter}, or {COPIES}"
    length = f"up to {config.max_draft_tokens}" if config.draft_length == "auto" else str(config.draft_length)
    return f"{by}, {length} tokens a step"


def announce(address: Address, model: str, facts: Facts, *, needs_key: bool) -> None:
    """Say where the server is: in a frame on a terminal, in plain lines elsewhere."""
    url, *others = address.urls
    place = f" on the socket {address.uds}" if address.uds is not None else ""
    first = f"Serving {model} at {url}/v1{place} (chat at {url}, documentation at {url}/docs; Ctrl-C stops)."
    facts = [*(("also at", other) for other in others), *facts]
    if sys.stdout.isatty():
        _print_framed(first, facts)
    else:
        typer.echo("\n".join(["", first, *(f"  {name:8} {value}" for name, value in facts)]))
    typer.echo(f"\nTry:\n\n  {_curl(address, model, needs_key)}\n" + _chat(address, needs_key))


def _print_framed(title: str, facts: Facts) -> None:
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column(style="bold"), Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
    for name, value in facts:
        table.add_row(name, Text(value))
    Console().print(Panel(Group(Text(title, style="green"), Text(), table), expand=False))


def _curl(address: Address, model: str, needs_key: bool) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    socket_flag = "" if address.uds is None else f"--unix-socket {shlex.quote(address.uds)} "
    key = "-H 'Authorization: Bearer YOUR_KEY' " if needs_key else ""
    url = f"{address.urls[0]}/v1/chat/completions"
    return f"curl {socket_flag}{url} -H 'Content-Type: application/json' {key}-d '{body}'"


def _chat(address: Address, needs_key: bool) -> str:
    """The line that chats with this server, if the command can reach it."""
    if address.uds is not None:
        return ""
    return f"  {_command()} chat --url {address.urls[0]}{' --api-key YOUR_KEY' if needs_key else ''}\n"


def _command() -> str:
    """What to type for this command: its path if a shell would not find its name, as outside its environment."""
    if shutil.which(COMMAND) is not None:
        return COMMAND
    beside = Path(sys.executable).with_name(COMMAND)
    return shlex.quote(str(beside)) if beside.is_file() else COMMAND
