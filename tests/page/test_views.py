"""The engine's view, the documentation, and how the page looks: on a phone, by keyboard, light and dark."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import RunningServer

from page.chat import COMPLETIONS, answering, answers, button, say, wait_for_answer, wait_until
from parallm_openai.settings import ServerSettings

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = pytest.mark.slow

Open = Callable[..., Any]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
WIDE = f"""{"word" * 100}

| {" | ".join("a long heading of a column" for _ in range(8))} |
| {" | ".join("---" for _ in range(8))} |
| {" | ".join("cell" for _ in range(8))} |

```
{"a line of code that is far too long for any phone " * 5}
```

`{"inline" * 60}` https://example.com/{"path" * 60}
"""


@contextmanager
def concurrent_chats(server: RunningServer, count: int) -> Iterator[None]:
    """So many chats that run until the block ends."""
    body = {
        "model": server.model.name,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "ignore_eos": True,
        "stream": True,
        "max_tokens": 1500,
    }
    ended = threading.Event()

    def chat(seed: int) -> None:
        while not ended.is_set():
            with (
                server.client as client,
                client.stream("POST", "/v1/chat/completions", json=body | {"seed": seed}) as answer,
            ):
                for _ in answer.iter_lines():
                    if ended.is_set():
                        return

    with server.configured(draft_length=4), ThreadPoolExecutor(count) as pool:
        chats = [pool.submit(chat, seed) for seed in range(count)]
        try:
            yield
        finally:
            ended.set()
        for each in chats:
            each.result(60)
    server.wait_until_idle()


# In a column of the picture, the blocks of pixels that are not empty and lie apart.
BLOCKS = """() => {
    const canvas = document.querySelector(".lanes canvas");
    const scale = devicePixelRatio;
    const height = canvas.height - 26 * scale;
    const columns = [0.3, 0.35, 0.4, 0.45].map((at) => {
        const pixels = canvas.getContext("2d").getImageData(Math.floor(canvas.width * at) + 3, 0, 1, height).data;
        let blocks = 0, empty = 9;
        for (let y = 0; y < height; y += 1) {
            if (pixels[4 * y + 3] === 0) empty += 1;
            else {
                if (empty > 2 * scale) blocks += 1;
                empty = 0;
            }
        }
        return blocks;
    });
    return Math.max(...columns);
}"""


def test_the_engines_view_has_a_lane_for_each_running_row(server: RunningServer, open_page: Open) -> None:
    page = open_page(f"{server.url}/#/engine")
    with concurrent_chats(server, 8):
        button(page, "20 s").click()
        picture = page.locator(".lanes canvas")
        wait_until(page, lambda: (picture.get_attribute("aria-label") or "").startswith("8 requests running"))
        wait_until(page, lambda: int(page.evaluate(BLOCKS)) >= 8)
        button(page, "Pause").click()
        assert page.evaluate(BLOCKS) == 8
        tiles = {
            tile.locator("h3").inner_text(): tile.locator("p").inner_text() for tile in page.locator(".tile").all()
        }
        shares = page.locator(".panel", has_text="Acceptance by depth").locator("dd").all_inner_texts()
        rows = page.locator("tbody tr").all_inner_texts()
    assert len(rows) >= 8
    assert float(tiles["Output"].split()[0].replace(",", "")) > 0
    assert re.fullmatch(r"[\d.]+ of 32 rows", tiles["Batch"])
    assert 0 < int(tiles["Accepted"].split()[0]) <= 100
    assert tiles["Draft length"] == "4.0 tokens"
    assert set(tiles) >= {"First token", "Between tokens", "Queue", "Memory", "Prefix cache", "Requests"}
    assert len(shares) >= 4
    assert all(re.fullmatch(r"\d+ %", share.strip()) for share in shares)


def test_the_view_says_that_the_server_is_gone_and_goes_on_when_it_is_back(
    server: RunningServer, open_page: Open
) -> None:
    page = open_page(f"{server.url}/#/engine")
    page.get_by_text("in all").wait_for()
    page.context.set_offline(True)
    page.get_by_text("The server does not answer.").wait_for()
    page.context.set_offline(False)
    page.get_by_text("The server does not answer.").wait_for(state="hidden")


def test_requests_of_other_keys_are_lanes_without_tokens(
    start_server: Callable[..., RunningServer], open_page: Open
) -> None:
    server = start_server(settings=ServerSettings(api_keys=("mine", "theirs"), graceful_timeout=1))
    page = open_page(f"{server.url}/#/engine")
    page.get_by_label("Key", exact=True).fill("mine")
    page.keyboard.press("Enter")
    page.get_by_text("in all", exact=True).wait_for()
    body = {"model": server.model.name, "prompt": "Hi", "max_tokens": 20, "ignore_eos": True}
    with server.client as client:
        client.post("/v1/completions", json=body, headers={"Authorization": "Bearer theirs"})
    page.get_by_text("Requests of other keys are shown without their tokens.").wait_for()
    cells = page.locator("tbody tr").first.locator("td").all_inner_texts()
    assert cells == ["–", "–", "20", "–", "–"]


def test_the_documentation_works_without_another_server(server: RunningServer, open_page: Open) -> None:
    page = open_page(f"{server.url}/docs")
    page.get_by_text("/v1/models", exact=True).click()
    button(page, "Try it out").click()
    button(page, "Execute").click()
    page.locator(".live-responses-table").get_by_text(server.model.name).first.wait_for()


SIDEWAYS = """() => [document.scrollingElement, ...document.querySelectorAll(".scroller, .engine, .chats, dialog")]
    .filter((element) => element.scrollWidth > element.clientWidth + 1)
    .map((element) => `${element.tagName}.${element.className}: ${element.scrollWidth}`)"""


def test_nothing_scrolls_sideways_on_a_phone(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url, **PHONE)
    page.get_by_role("heading", name="What shall we talk about?").wait_for()
    assert page.evaluate(SIDEWAYS) == []
    page.route(COMPLETIONS, answering({"reasoning_content": "hm" * 200}, {"content": WIDE}))
    say(page, "x" * 300)
    wait_for_answer(page)
    assert page.evaluate(SIDEWAYS) == []
    button(page, "Options").click()
    assert page.evaluate(SIDEWAYS) == []
    page.keyboard.press("Escape")
    button(page, "Menu").click()
    page.get_by_role("navigation").get_by_role("link", name="Engine").click()
    page.locator("tbody tr").first.wait_for()
    assert page.evaluate(SIDEWAYS) == []
    page.get_by_role("navigation").wait_for(state="hidden")


def in_sight(element: Locator) -> bool:
    box = element.bounding_box()
    return box is not None and box["y"] >= 0


def test_the_keyboard_is_enough(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.get_by_role("heading", name="What shall we talk about?").wait_for()
    skip = page.get_by_role("link", name="Skip to content")
    assert not in_sight(skip)
    skip.focus()
    assert in_sight(skip)
    names = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        names.add(
            page.evaluate(
                """() => {
                    const { activeElement: at } = document;
                    const style = getComputedStyle(at.matches(".composer textarea") ? at.parentElement : at);
                    const seen = style.outlineStyle !== "none" || style.boxShadow !== "none";
                    return `${at.ariaLabel ?? at.innerText.trim()}${seen ? "" : " has no focus mark"}`;
                }"""
            )
        )
    assert {"New chat", "Engine", "API documentation", "API key", "Options", "Message", "Send"} <= names
    page.get_by_role("textbox", name="Message").focus()
    page.keyboard.type("Hello!")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("How are you?")
    assert answers(page).count() == 0
    page.keyboard.press("Enter")
    wait_for_answer(page)
    page.get_by_role("textbox", name="Message").focus()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.value") == "Hello!\nHow are you?"
    page.keyboard.press("Escape")
    assert page.get_by_role("textbox", name="Edit the message").count() == 0


# Colours

PAIRS = [
    *(("text", back) for back in ("page", "side", "raised", "hover", "accent-soft", "accepted-soft")),
    *(("quiet", back) for back in ("page", "side", "raised", "hover", "accent-soft")),
    *(("accent", back) for back in ("page", "raised", "accent-soft")),
    ("on-accent", "accent"),
    ("on-accent", "accent-strong"),
    ("danger", "danger-soft"),
    ("danger", "page"),
]
# What is no text.
SHAPES = [("accepted", "raised"), ("rejected", "raised"), ("sampled", "raised"), ("line-strong", "page")]


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """By WCAG 2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("chosen", ["by the system", "by the user"])
def test_both_themes_have_contrast(server: RunningServer, open_page: Open, scheme: str, chosen: str) -> None:
    other = {"light": "dark", "dark": "light"}[scheme]
    page = open_page(server.url, color_scheme=scheme if chosen == "by the system" else other)
    page.get_by_role("heading", name="What shall we talk about?").wait_for()
    if chosen == "by the user":
        for _ in range(1 if scheme == "light" else 2):
            page.get_by_role("button", name=re.compile("^Theme")).click()
        page.reload()
    names = sorted({name for pair in PAIRS + SHAPES for name in pair})
    colours = page.evaluate(
        "names => Object.fromEntries(names.map(name => [name, "
        "getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))",
        names,
    )
    assert (luminance(colours["page"]) > 0.5) == (scheme == "light")
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in PAIRS}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in SHAPES}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 3} == {}
