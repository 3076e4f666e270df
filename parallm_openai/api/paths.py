"""Other ways to write a request: OpenAI's paths without `/v1`, and HEAD for whatever can be read by GET."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/v1"
# Clients whose base URL lacks the prefix send these.
BARE = ("/chat/completions", "/completions", "/responses", "/models", "/embeddings", "/messages")


class Paths:
    """Passes such requests on as the routes know them. The server itself leaves the body of a HEAD's answer out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if any(path == bare or path.startswith(f"{bare}/") for bare in BARE):
                scope = {**scope, "path": PREFIX + path}
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)
