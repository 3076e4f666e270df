"""Other ways to write a request.

Paths under the prefix of a proxy or with a slash at the end, OpenAI's paths without `/v1`, and HEAD for GET.
"""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/v1"
# Clients whose base URL lacks the prefix send these.
BARE = ("/chat/completions", "/completions", "/responses", "/models", "/embeddings", "/messages")


class Paths:
    """Passes requests on under the paths that the routes know.

    What looks at a path inside, above all at whether it needs a key, sees one without `root_path`.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if self.root_path and path == self.root_path and scope["method"] in ("GET", "HEAD"):
                # The page's links are relative to a folder.
                await RedirectResponse(f"{path}/", status_code=308)(scope, receive, send)
                return
            if self.root_path and f"{path}/".startswith(f"{self.root_path}/"):
                path = path.removeprefix(self.root_path)
            path = path.rstrip("/") or "/"
            if any(path == bare or path.startswith(f"{bare}/") for bare in BARE):
                path = PREFIX + path
            scope = {**scope, "path": path}
        await self.app(scope, receive, send)


class Heads:
    """Passes a HEAD on as the GET that it asks about. The server itself leaves the body of the answer out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)
