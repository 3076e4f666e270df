"""Makes the pictures of the page anew: docs/images/*.png, of the bundled model in a headless Chromium.

    PYTHONPATH=.:tests python scripts/screenshots.py

It needs Chromium and Playwright (`pip install playwright`); Noto's fonts make the pictures look the same everywhere.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from page.chat import button, say, set_option, wait_for_answer, wait_until
from playwright.sync_api import Browser, Page, sync_playwright
from support.processes import Served

FOLDER = Path(__file__).parents[1] / "docs" / "images"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 760}
QUESTIONS = ["Write a Python function that computes the n-th Fibonacci number.", "Tell me a story."]
OTHER_CHATS = ["What is the capital of Norway?", "Tell me a joke.", "Name the planets."]
RUNNING = ["Tell me a story.", "Tell me a story about a fox.", "Please tell me a bedtime story."]


def open_page(browser: Browser, url: str, **options: object) -> Page:
    context = browser.new_context(**{"viewport": DESKTOP, **options})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    return page


def ask(page: Page, questions: Sequence[str]) -> None:
    """Ask all of these in one chat."""
    for count, question in enumerate(questions, 1):
        say(page, question)
        wait_for_answer(page, count)


def take(page: Page, name: str) -> None:
    """A picture without the pointer, the caret or a tip."""
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)
    page.screenshot(path=FOLDER / f"{name}.png")
    page.context.close()


def chat(browser: Browser, url: str) -> None:
    page = open_page(browser, url)
    set_option(page, "Temperature", "0")
    for question in OTHER_CHATS:
        button(page, "New chat").click()
        ask(page, [question])
    button(page, "New chat").click()
    ask(page, QUESTIONS)
    button(wait_for_answer(page, 2), "Show drafted tokens").click()
    take(page, "chat")


def phone(browser: Browser, url: str) -> None:
    page = open_page(
        browser, url, viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2, color_scheme="dark"
    )
    set_option(page, "Temperature", "0")
    ask(page, [QUESTIONS[0], OTHER_CHATS[1]])
    take(page, "phone")


def engine(browser: Browser, url: str, name: str, scheme: str) -> None:
    """While the chats run, paused once the picture is full."""
    page = open_page(browser, f"{url}/#/engine", color_scheme=scheme, viewport={"width": 1280, "height": 960})
    button(page, "1 s").click()
    label = page.locator(".lanes canvas")
    wait_until(page, lambda: (label.get_attribute("aria-label") or "").startswith("8 requests running"))
    page.wait_for_timeout(8000)
    button(page, "Pause").click()
    take(page, name)


@contextmanager
def eight_chats(url: str, model: str) -> Iterator[None]:
    ended = threading.Event()

    def run(seed: int) -> None:
        while not ended.is_set():
            question = {"role": "user", "content": RUNNING[seed % len(RUNNING)]}
            body = {"model": model, "messages": [question], "seed": seed, "min_tokens": 200, "max_tokens": 400}
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()
            seed += 8

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(run, seed) for seed in range(8)]
        try:
            yield
        finally:
            ended.set()
        for each in running:
            each.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium", help="the browser's program")
    parser.add_argument("--draft-length", default="4", help="of the server; auto may find that drafting does not pay")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    served = Served("--port", "0", "--draft-length", arguments.draft_length)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=arguments.chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            chat(browser, served.url)
            phone(browser, served.url)
            with eight_chats(served.url, served.model):
                engine(browser, served.url, "engine", "light")
                engine(browser, served.url, "engine-dark", "dark")
            browser.close()
    finally:
        served.process.terminate()
        served.process.wait(40)


if __name__ == "__main__":
    main()
