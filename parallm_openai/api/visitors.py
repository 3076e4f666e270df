"""Decides by a browser's headers which web pages may call this server, and under which host names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from parallm_openai.api.errors import ApiError
from parallm_openai.api.leniency import HEADER as IGNORED
from parallm_openai.origins import ANY, DEFAULT_PORTS, LOOPBACK, as_browsers_write

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


def host_of(authority: str) -> str | None:
    """The lower-case host of `host:port`, without brackets; None if it is no host."""
    found = _AUTHORITY.fullmatch(authority)
    return found[1].lower().strip("[]").removesuffix(".") if found else None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, by name or by address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Visitors:
    """Decides, by the headers alone, whether a request may come in."""

    def __init__(self, origins: Sequence[str], hosts: Sequence[str]) -> None:
        """`origins` have passed `check_origin`, `hosts` `check_host`. Names of this machine are always allowed."""
        self.any_origin = ANY in origins
        self._loopback = LOOPBACK in origins
        named = [each for each in origins if each not in (ANY, LOOPBACK)]
        self._origins = [re.compile(re.escape(each).replace(r"\*", r"[a-z0-9._:\[\]-]+")) for each in named]
        self._any_host = ANY in hosts
        self._hosts = [re.compile(re.escape(each).replace(r"\*", r"[a-z0-9._-]+")) for each in hosts if each != ANY]

    def allow_origin(self, origin: str) -> bool:
        """Whether pages of this origin may call the server."""
        origin = as_browsers_write(origin)
        if self.any_origin or any(each.fullmatch(origin) for each in self._origins):
            return True
        scheme, _, authority = origin.partition("://")
        host = host_of(authority) if scheme in DEFAULT_PORTS else None
        return self._loopback and host is not None and is_loopback(host)

    def refusal(self, headers: Headers, *, safe: bool) -> ApiError | None:
        """The reason to refuse this request, if any. `safe` requests change nothing, and CORS hides their answers."""
        authority = headers.get("host")
        # Clients of HTTP/1.0 may leave it out; no browser does.
        if authority is not None and not self._any_host and not self._is_own_name(authority):
            return _refused(
                "host_not_allowed",
                f"This server is not called {authority[:200]!r}. Start it with --allowed-hosts to serve other names.",
            )
        if safe or self.any_origin:
            return None
        if max(len(headers.getlist(name)) for name in ("origin", "sec-fetch-site")) > 1:
            return _refused("origin_not_allowed", "'Origin' and 'Sec-Fetch-Site' may be sent only once.")
        origin = headers.get("origin")
        if origin is not None:
            if self.allow_origin(origin) or self._is_own_page(origin, authority or ""):
                return None
            return _refused(
                "origin_not_allowed",
                f"Pages of {origin[:200]!r} may not call this server. --cors-origins {origin[:200]} would allow them.",
            )
        # Only browsers send it. With `none` the user opened the page; any other value means a page of another site.
        site = headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin"):
            return None
        return _refused("origin_not_allowed", "Pages of other sites may not call this server without an Origin.")

    def _is_own_name(self, authority: str) -> bool:
        host = host_of(authority)
        return host is not None and (is_loopback(host) or any(each.fullmatch(host) for each in self._hosts))

    def _is_own_page(self, origin: str, authority: str) -> bool:
        """Whether the request comes from this server's own page.

        A host name that is not known to be its own may be an attacker's, pointed at this server by DNS rebinding.
        """
        if as_browsers_write(origin).partition("://")[2] != authority.lower():
            return False
        return self._is_own_name(authority) or _is_address(host_of(authority) or "")


def _refused(code: str, message: str) -> ApiError:
    return ApiError(403, message, code=code, headers={"Vary": "Origin"})


class Cors(CORSMiddleware):
    """Starlette's CORS for the origins that may call this server; it refuses preflights of others without details."""

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        super().__init__(
            app,
            allow_origins=[ANY] if visitors.any_origin else [],
            allow_methods=["*"],
            allow_headers=["*"],
            # Browsers ask for it before a page from elsewhere may call a private address.
            allow_private_network=True,
            expose_headers=["x-request-id", "request-id", "openai-processing-ms", "retry-after", IGNORED],
        )
        self.visitors = visitors

    def is_allowed_origin(self, origin: str) -> bool:
        return self.visitors.allow_origin(origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        refusal = self.visitors.refusal(request_headers, safe=False)
        return refusal.response() if refusal is not None else super().preflight_response(request_headers)


class Gate:
    """Answers requests that may not come in with a 403.

    CORS alone would let any page reconfigure the server: browsers ask before a request only if no form could send
    it, and otherwise only hide the answer.
    """

    SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self.app = app
        self.visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self.visitors.refusal(Headers(scope=scope), safe=scope["method"] in self.SAFE)
            if refusal is not None:
                await refusal.response(scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)
