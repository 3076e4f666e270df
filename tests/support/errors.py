"""A small request, and the error that a refused one gets."""

from __future__ import annotations

from typing import Any

import httpx

COMPLETION: dict[str, Any] = {"model": "parallm-demo", "prompt": "Hi", "max_tokens": 2}


def assert_error(response: httpx.Response, status: int, code: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    return str(error["message"])
