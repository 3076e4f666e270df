"""Chatting on the page: with the bundled model, and with answers that the model would not give."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from support.chat_requests import WEATHER
from support.servers import RunningServer

from page.chat import (
    COMPLETIONS,
    answering,
    answers,
    button,
    questions,
    said,
    say,
    set_option,
    text_of,
    wait_for_answer,
    wait_until,
    with_fields,
)
from parallm_openai.engine.request import Request
from parallm_openai.engine.worker import QueueFullError
from parallm_openai.settings import ServerSettings

pytestmark = pytest.mark.slow

Open = Callable[..., Any]
ENDLESS = {"ignore_eos": True, "max_tokens": 1000}


def test_an_answer_streams_and_stops_when_told(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.route(COMPLETIONS, with_fields(**ENDLESS))
    say(page, "Tell me a story.")
    wait_until(page, lambda: len(said(page)) > 40)
    early = said(page)
    wait_until(page, lambda: len(said(page)) > len(early) + 20)
    button(page, "Stop").click()
    answer = wait_for_answer(page)
    assert "You stopped this answer." in answer.inner_text()
    assert text_of(answer).startswith(early[:20])
    server.wait_until_idle()


def test_escape_stops_and_the_chat_goes_on(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.route(COMPLETIONS, with_fields(**ENDLESS))
    say(page, "Tell me a story.")
    wait_until(page, lambda: len(said(page)) > 40)
    page.keyboard.press("Escape")
    wait_for_answer(page)
    page.unroute(COMPLETIONS)
    set_option(page, "Temperature", "0")
    say(page, "What is the capital of France?")
    assert "Paris" in text_of(wait_for_answer(page, 2))


def test_versions_are_kept_and_survive_a_reload(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    set_option(page, "Temperature", "0")
    say(page, "What is the capital of France?")
    first = text_of(wait_for_answer(page))
    assert "Paris" in first

    set_option(page, "System prompt", "You are a pirate.")
    button(answers(page), "Regenerate").click()
    page.get_by_text("2/2", exact=True).wait_for()
    button(page, "Previous version").click()
    page.get_by_text("1/2", exact=True).wait_for()
    assert text_of(wait_for_answer(page)) == first

    questions(page).hover()
    button(questions(page), "Edit").click()
    page.get_by_role("textbox", name="Edit the message").fill("What is the capital of Italy?")
    page.keyboard.press("Enter")
    wait_until(page, lambda: "Rome" in said(page))
    wait_for_answer(page)
    assert questions(page).locator(".body").inner_text() == "What is the capital of Italy?"

    before = page.locator(".messages").inner_text()
    page.reload()
    wait_for_answer(page)
    assert page.locator(".messages").inner_text() == before
    button(questions(page), "Previous version").click()
    page.get_by_text("What is the capital of France?", exact=True).last.wait_for()
    assert page.get_by_role("link", name="What is the capital of France?").get_attribute("aria-current") == "page"


def test_earlier_messages_stay_as_they_are_while_another_is_written(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    say(page, "Hello!")
    first = wait_for_answer(page).locator(".body").locator("xpath=*").first
    first.evaluate("element => element.dataset.seen = 'yes'")
    say(page, "What is the capital of France?")
    wait_until(page, lambda: answers(page).count() == 2 and text_of(answers(page).last) != "")
    updates = "() => new Promise(done => { const seen = []; const watch = new MutationObserver(c => seen.push(...c)); "
    updates += "watch.observe(document.querySelector('.assistant .body'), {childList: true, subtree: true}); "
    updates += "setTimeout(() => done(seen.length), 200); })"
    button(answers(page).last, "Regenerate").click()
    wait_until(page, lambda: page.get_by_text("2/2", exact=True).count() == 1)
    assert page.evaluate(updates) == 0


def test_chats_are_renamed_and_deleted(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    for question in ("Hello!", "What is the capital of France?"):
        button(page, "New chat").click()
        say(page, question)
        wait_for_answer(page)
    page.get_by_role("link", name="Hello!").click()
    page.get_by_role("heading", name="Hello!").wait_for()
    assert questions(page).locator(".body").inner_text() == "Hello!"
    button(page, "Rename Hello!").click()
    page.get_by_label("Title").fill("Greetings")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Greetings").wait_for()
    button(page, "Delete Greetings").click()
    button(page.get_by_role("dialog"), "Delete").click()
    page.get_by_role("heading", name="New chat").wait_for()
    page.reload()
    page.get_by_role("link", name="What is the capital of France?").wait_for()
    assert page.get_by_role("link", name="Greetings").count() == 0


def test_two_tabs_show_the_same_chats_and_lose_nothing(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    say(page, "Hello!")
    wait_for_answer(page)
    other = page.context.new_page()
    other.goto(page.url)
    wait_for_answer(other)
    say(page, "What is the capital of France?")
    wait_for_answer(page, 2)
    wait_for_answer(other, 2)
    button(answers(other).first, "Regenerate").click()
    other.get_by_text("2/2", exact=True).wait_for()
    say(page, "Tell me a joke.")
    wait_for_answer(page, 2)
    other.reload()
    wait_for_answer(other, 2)
    assert other.get_by_text("2/2", exact=True).count() == 1
    assert other.get_by_text("Tell me a joke.", exact=True).count() == 1
    button(other, "Previous version").first.click()
    other.get_by_text("What is the capital of France?", exact=True).wait_for()
    button(other, "Delete Hello!").click()
    button(other.get_by_role("dialog"), "Delete").click()
    page.get_by_text("None yet.").wait_for()
    page.get_by_role("heading", name="New chat").wait_for()


def test_options_are_what_the_server_gets(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    wanted = {"Temperature": "0.5", "Top-p": "0.9", "Top-k": "40", "Max tokens": "7", "Seed": "3"}
    for name, value in {**wanted, "System prompt": "Be brief."}.items():
        set_option(page, name, value)
    with page.expect_request(COMPLETIONS) as request:
        say(page, "Hello!")
    sent = request.value.post_data_json
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    fields = {name: sent[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "model")}
    assert fields == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 7,
        "seed": 3,
        "model": server.model.name,
    }
    wait_for_answer(page)
    button(page, "Options").click()
    page.get_by_label("Temperature").fill("9")
    page.get_by_text("Temperature must be between 0 and 2.").wait_for()


def test_calls_are_shown_and_their_results_sent(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    set_option(page, "Temperature", "0")
    set_option(page, "Tools", json.dumps([WEATHER["function"]]))
    say(page, "What is the weather in Paris?")
    answer = wait_for_answer(page)
    assert "get_weather" in answer.inner_text()
    assert re.search(r'"city": "Paris"', answer.inner_text())
    with page.expect_request(COMPLETIONS) as request:
        page.get_by_label("Result of this call").fill('{"temperature": 21}')
        page.keyboard.press("Enter")
    *_, call, result = request.value.post_data_json["messages"]
    assert result["content"] == '{"temperature": 21}'
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    assert text_of(wait_for_answer(page, 2))


def test_thoughts_stand_apart_from_the_answer(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.route(
        COMPLETIONS,
        answering({"reasoning_content": "France, so "}, {"reasoning_content": "Paris."}, {"content": "Paris"}),
    )
    say(page, "The capital?")
    answer = wait_for_answer(page)
    assert text_of(answer) == "Paris"
    assert not answer.get_by_text("France, so Paris.").is_visible()
    answer.get_by_text("Thoughts").click()
    answer.get_by_text("France, so Paris.").wait_for()


def test_drafted_tokens_are_marked_in_the_text(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    with server.configured(draft_length=4):
        set_option(page, "Temperature", "0")
        say(page, "Tell me a story.")
        answer = wait_for_answer(page)
    plain = text_of(answer)
    button(answer, "Show drafted tokens").click()
    marked = answer.locator(".pieces")
    assert marked.locator(".accepted").count() > 5
    assert marked.locator(".sampled").count() > 5
    assert re.sub(r"\s+", " ", marked.inner_text()).strip() == re.sub(r"\s+", " ", plain).strip()


MARKDOWN = """## Title

Some **bold** and `code`, [a link](https://example.com).

3. three
4. four

- [x] done
- [ ] open

| left | right |
| --- | ---: |
| a | 1 |

```python
print("<b>")
```
"""


def test_markdown_is_shown_as_it_is_meant(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.route(COMPLETIONS, answering({"content": MARKDOWN}))
    say(page, "Hello!")
    body = wait_for_answer(page).locator(".body")
    assert body.locator("h2").inner_text() == "Title"
    assert body.locator("strong").inner_text() == "bold"
    link = body.get_by_role("link", name="a link")
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert body.locator("ol").get_attribute("start") == "3"
    assert [box.is_checked() for box in body.get_by_role("checkbox").all()] == [True, False]
    assert body.locator("td").last.evaluate("cell => getComputedStyle(cell).textAlign").endswith("right")
    assert body.locator("pre").inner_text().strip() == 'print("<b>")'


HOSTILE = """# Hello

<img src=x onerror="window.hurt = 'img'"> <script>window.hurt = 'script'</script>
<svg onload="window.hurt = 'svg'"></svg> <iframe srcdoc="<script>parent.hurt = 'iframe'</script>"></iframe>
<a href="javascript:window.hurt='raw'">raw</a> <form action="https://evil.example"><input name=q></form>

[script link](javascript:window.hurt='link') [data link](data:text/html,<script>1</script>)
[spaced]( java\tscript:window.hurt='tab' ) ![image](https://evil.example/pixel.png) <https://safe.example>

```html"><img src=x onerror="window.hurt='fence'">
<script>window.hurt = 'code'</script>
```

| a | b |
| --- | --- |
| <b onclick="window.hurt='cell'">x</b> | [y](vbscript:1) |
"""


def test_hostile_markdown_does_nothing(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.route(COMPLETIONS, answering(*({"content": piece} for piece in HOSTILE.splitlines(keepends=True))))
    say(page, HOSTILE)
    body = wait_for_answer(page).locator(".body")
    assert body.locator("h1").inner_text() == "Hello"
    assert (
        body.locator("img, script, svg, iframe, form, object, embed, style").count()
        == body.locator(".code svg").count()
    )
    attributes = body.evaluate(
        "body => [...body.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    )
    assert attributes == []
    links = body.evaluate("body => [...body.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert set(links) == {None, "https://evil.example/pixel.png", "https://safe.example"}
    for link in body.locator("a:not([href])").all():
        link.click()
    assert page.evaluate("window.hurt") is None


# What goes wrong, in plain words


def test_a_key_is_asked_for_and_kept(start_server: Callable[..., RunningServer], open_page: Open) -> None:
    server = start_server(settings=ServerSettings(api_keys=("secret",), graceful_timeout=1))
    page = open_page(server.url)
    page.get_by_label("Key", exact=True).fill("wrong")
    button(page, "Save").click()
    page.get_by_text("The server does not know the key").wait_for()
    page.get_by_label("Key", exact=True).fill("secret")
    button(page, "Save").click()
    page.get_by_role("dialog").wait_for(state="detached")
    set_option(page, "Temperature", "0")
    say(page, "What is the capital of France?")
    assert "Paris" in text_of(wait_for_answer(page))
    page.reload()
    wait_for_answer(page)
    assert page.get_by_role("dialog").count() == 0
    page.goto(f"{server.url}/docs")
    page.get_by_text("/v1/chat/completions", exact=True).wait_for()


def test_who_gives_no_key_is_told_and_not_asked_again(
    start_server: Callable[..., RunningServer], open_page: Open
) -> None:
    server = start_server(settings=ServerSettings(api_keys=("secret",), graceful_timeout=1))
    page = open_page(f"{server.url}/#/engine")
    page.get_by_label("Key", exact=True).wait_for()
    page.keyboard.press("Escape")
    button(page, "Enter the key").wait_for()
    assert page.get_by_role("dialog").count() == 0
    button(page, "Enter the key").click()
    page.get_by_label("Key", exact=True).fill("secret")
    page.keyboard.press("Enter")
    page.get_by_text("in all", exact=True).wait_for()


def test_a_full_queue_is_said_and_tried_again(
    server: RunningServer, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(requests: Sequence[Request]) -> None:
        raise QueueFullError("1024 requests are running or waiting already")

    page = open_page(server.url)
    with monkeypatch.context() as patched:
        patched.setattr(server.engine, "open", full)
        say(page, "Hello!")
        page.get_by_text("The server is busy: its queue is full.").wait_for()
    button(page, "Try again").click()
    wait_until(page, lambda: said(page) != "")
    wait_for_answer(page)


def test_a_server_that_is_gone_is_said_and_the_question_kept(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.get_by_role("heading", name="What shall we talk about?").wait_for()
    page.context.set_offline(True)
    say(page, "Hello!")
    page.get_by_text("The server does not answer.").wait_for()
    page.context.set_offline(False)
    button(page, "Try again").click()
    wait_until(page, lambda: said(page) != "")
    assert questions(page).locator(".body").inner_text() == "Hello!"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"error": {"message": "The server is shutting down.", "code": "unavailable"}}, "The server is shutting down."),
        (None, "The connection ended before the answer was complete."),
    ],
    ids=["error", "cut"],
)
def test_a_stream_that_breaks_is_said_and_its_text_kept(
    server: RunningServer, open_page: Open, event: dict[str, Any] | None, words: str
) -> None:
    page = open_page(server.url)
    chunk = {"choices": [{"index": 0, "delta": {"content": "Once upon"}, "finish_reason": None}]}
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in (chunk, event) if each is not None)
    page.route(COMPLETIONS, lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body))
    say(page, "Hello!")
    page.get_by_text(words).wait_for()
    assert text_of(wait_for_answer(page)) == "Once upon"


def test_a_mistake_of_the_request_is_told_in_the_servers_words(server: RunningServer, open_page: Open) -> None:
    page = open_page(server.url)
    page.route(COMPLETIONS, with_fields(temperature=9))
    with httpx.Client() as client:
        body = {"model": server.model.name, "messages": [{"role": "user", "content": "Hello!"}], "temperature": 9}
        message = client.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]["message"]
    say(page, "Hello!")
    page.get_by_text(message).wait_for()
