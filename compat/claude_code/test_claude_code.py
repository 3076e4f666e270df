"""Claude Code, headless (`claude -p`), with a made model that recites its calls: commands, files, pictures, tools that
it loads when they are searched for, conversations that go on, refusals.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compat.agent_events import events_of
from compat.documented import documented
from compat.matrix.server import serving
from compat.node_client import SECONDS, node_modules
from compat.pictures import PIXEL
from compat.reciter import NAME, call, write_reciter

HERE = Path(__file__).parent
SCRIPT = [
    call("Bash", command="echo made-$((40 + 2))", description="Count"),
    call("Write", file_path="{project}/note.txt", content='two lines,\n"quoted"'),
    call("Read", file_path="{project}/pixel.png"),
    call("ToolSearch", query="select:CronList", max_results=1),
    call("CronList"),
    "The command printed made-42.",
    "You asked twice.",
]
ALLOWED = "Bash Write Read ToolSearch CronList"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pixel.png").write_bytes(PIXEL)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[str]:
    node_modules(HERE)
    script = [said.replace("{project}", str(project)) for said in SCRIPT]
    model = write_reciter(tmp_path_factory.mktemp("model") / NAME, script)
    with serving(["--model", str(model)]) as served:
        yield served.removesuffix("/v1")


class Claude:
    """The program with a home of its own; its conversations are about one project."""

    def __init__(self, home: Path, project: Path, url: str) -> None:
        # npm may leave out the step that puts the program in its place.
        self._program = node_modules(HERE) / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"
        self._project = project
        exports = re.findall(r"^export (\w+)=(.*)$", documented("Claude Code", "sh", url, NAME), re.MULTILINE)
        # Nothing of the machine's own settings.
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home), **dict(exports)}

    def __call__(self, question: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        """The exit status and the events of `claude -p`."""
        shown = ["--output-format", "stream-json", "--verbose", "--allowedTools", ALLOWED]
        command = [shutil.which("node") or "node", str(self._program), "-p", *options, *shown, "--", question]
        return events_of(command, self._project, self._environment, SECONDS)


@pytest.fixture(scope="module")
def claude(tmp_path_factory: pytest.TempPathFactory, project: Path, url: str) -> Claude:
    return Claude(tmp_path_factory.mktemp("home"), project, url)


@pytest.fixture(scope="module")
def first(claude: Claude) -> list[dict[str, Any]]:
    """The events of the first question to the project."""
    status, events = claude("Count.")
    assert status == 0, events[-1]
    return events


def blocks(events: list[dict[str, Any]], sender: str, kind: str) -> list[dict[str, Any]]:
    messages = [event["message"] for event in events if event["type"] == sender]
    found = [block for message in messages for block in message["content"]]
    return [block for block in found if block["type"] == kind]


def test_tools_are_run_and_their_results_answered(first: list[dict[str, Any]], project: Path) -> None:
    called = [block["name"] for block in blocks(first, "assistant", "tool_use")]
    assert called == ["Bash", "Write", "Read", "ToolSearch", "CronList"]
    results = blocks(first, "user", "tool_result")
    assert len(results) == len(called)
    assert not [result for result in results if result.get("is_error")]
    assert results[0]["content"] == "made-42"
    assert (project / "note.txt").read_text() == 'two lines,\n"quoted"'
    assert [block["text"] for block in blocks(first, "assistant", "text")] == ["The command printed made-42."]
    assert (first[-1]["type"], first[-1]["subtype"], first[-1]["is_error"]) == ("result", "success", False)


def test_a_picture_does_not_end_the_conversation(first: list[dict[str, Any]]) -> None:
    contents = [result["content"] for result in blocks(first, "user", "tool_result")]
    (picture,) = [content for content in contents if isinstance(content, list) and content[0]["type"] == "image"]
    place = contents.index(picture)
    assert place < len(contents) - 1


def test_a_tool_that_is_searched_for_is_loaded(first: list[dict[str, Any]]) -> None:
    """Claude Code falls back to sending all tools in full if a server refuses a reference to one."""
    results = [result["content"] for result in blocks(first, "user", "tool_result")]
    assert [{"type": "tool_reference", "tool_name": "CronList"}] in results


def test_what_was_read_is_found_in_the_prefix_cache(first: list[dict[str, Any]]) -> None:
    usage = first[-1]["usage"]
    assert usage["output_tokens"] > 0
    # Each request reads what the one before it has read already, the first apart.
    assert usage["cache_read_input_tokens"] > 3 * usage["input_tokens"]


def test_a_conversation_goes_on(claude: Claude, first: list[dict[str, Any]]) -> None:
    status, events = claude("Count again.", "--continue")
    assert status == 0
    assert events[-1]["session_id"] == first[-1]["session_id"]
    assert events[-1]["result"] == "You asked twice."


def test_a_refusal_is_shown(claude: Claude) -> None:
    status, events = claude("Count.", "--model", "nonsense")
    assert status == 1
    assert events[-1]["is_error"]
    assert "nonsense" in events[-1]["result"]
