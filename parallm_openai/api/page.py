"""The page at `/`, the documentation at `/docs`, and the static files of both.

Everything comes from this package: a browser that shows them asks no other server for anything.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent.parent / "web"
# Where the static files are; a Keys middleware lets everybody read them.
PREFIX = "/page"

HEADERS = {
    # Scripts and styles are files of this server, so that nothing a model writes can run. The documentation's
    # icons are `data:` images in its style sheet.
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Browsers ask each time whether a file has changed, so that a new release is seen at once.
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files with the page's headers."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


def install(app: FastAPI) -> None:
    """Serve the page and the documentation."""
    # Some installers link a package's files from a cache.
    files = PageFiles(directory=FOLDER, follow_symlink=True)

    async def page(request: HttpRequest) -> Response:
        return await files.get_response("index.html", request.scope)

    async def docs(request: HttpRequest) -> Response:
        return await files.get_response("docs.html", request.scope)

    # Starlette's routes answer HEAD where they answer GET.
    app.add_route("/", page, include_in_schema=False)
    app.add_route("/docs", docs, include_in_schema=False)
    app.mount(PREFIX, files)
