"""What a user does on the page, and answers as a server would stream them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

    Handler = Callable[[Route], None]

# Milliseconds, for machines much slower than the one that this was written on.
PATIENCE = 60_000
COMPLETIONS = "**/v1/chat/completions"


def say(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name="Message", exact=True)
    box.fill(text)
    box.press("Enter")


def button(page: Page | Locator, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def answers(page: Page) -> Locator:
    return page.get_by_role("article", name="Assistant")


def questions(page: Page) -> Locator:
    return page.get_by_role("article", name="You")


def text_of(answer: Locator) -> str:
    return answer.locator(".body").inner_text()


def wait_for_answer(page: Page, count: int = 1) -> Locator:
    """The last of so many answers, once it is complete."""
    last = answers(page).nth(count - 1)
    button(last, "Regenerate").wait_for()
    return last


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    """Playwright's own waiting for a function is code that the page's policy does not run."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < deadline, "it does not come true"
        page.wait_for_timeout(50)


def said(page: Page) -> str:
    """What the first answer says so far."""
    bodies = answers(page).locator(".body")
    return bodies.first.inner_text() if bodies.count() else ""


def set_option(page: Page, name: str, value: str) -> None:
    button(page, "Options").click()
    page.get_by_label(name).fill(value)
    page.keyboard.press("Escape")


def with_fields(**fields: Any) -> Handler:
    """Send requests on to the server with these fields added."""

    def handle(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        route.continue_(post_data=json.dumps(body | fields))

    return handle


def answering(*deltas: dict[str, Any], reason: str = "stop") -> Handler:
    """Answer requests with these deltas, whatever they ask."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    events = [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices]
    body = "".join([*events, "data: [DONE]\n\n"])
    return lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body)
