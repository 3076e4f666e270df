"""Codex CLI, headless (`codex exec`), with a made model that recites its calls: commands run and their output goes
back, the tools of MCP servers, pictures, conversations that are resumed, refusals.
"""

from __future__ import annotations

import json
import os
import sys
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
    call("exec_command", cmd="echo made-$((40 + 2))"),
    call("mcp__sums__add", a=40, b=2),
    call("view_image", path="pixel.png"),
    "The command printed made-42.",
    "You asked twice.",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = write_reciter(tmp_path_factory.mktemp("model") / NAME, SCRIPT)
    with serving(["--model", str(model)]) as served:
        yield served


class Codex:
    """The program with a home and a project of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._program = node_modules(HERE) / ".bin" / "codex"
        self._home, self._project = folder / "home", folder / "project"
        for each in (self._home, self._project):
            each.mkdir()
        (self._project / "pixel.png").write_bytes(PIXEL)
        config = documented("Codex CLI", "toml", url, NAME)
        sums = f"command = {json.dumps(sys.executable)}\nargs = [{json.dumps(str(HERE / 'mcp_server.py'))}]\n"
        (self._home / "config.toml").write_text(f"{config}\n[mcp_servers.sums]\n{sums}", encoding="utf-8")

    def __call__(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """The exit status and the events of `codex exec`."""
        # The test's own commands are harmless, and Codex' sandbox needs a kernel that containers may not have.
        options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        environment = os.environ | {"HOME": str(self._home), "CODEX_HOME": str(self._home)}
        return events_of([str(self._program), "exec", *options, *arguments], self._project, environment, SECONDS)

    @property
    def kept(self) -> str:
        """What Codex keeps of its conversations."""
        return "".join(file.read_text(encoding="utf-8") for file in self._home.glob("sessions/**/*.jsonl"))


@pytest.fixture
def codex(tmp_path: Path, url: str) -> Codex:
    return Codex(tmp_path, url)


def completed(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in items if item["type"] == kind]


def test_a_command_is_run_and_its_output_answered(codex: Codex) -> None:
    status, events = codex("Count.")
    assert status == 0
    assert events[0]["type"] == "thread.started"
    (command,) = completed(events, "command_execution")
    assert (command["aggregated_output"], command["exit_code"]) == ("made-42\n", 0)
    # Codex puts the tools of each MCP server into a namespace.
    (added,) = completed(events, "mcp_tool_call")
    assert (added["server"], added["tool"], added["status"]) == ("sums", "add", "completed")
    assert "the sum is 42" in json.dumps(added["result"])
    # A picture that the model views, though it reads none, does not end the run.
    assert "data:image/png;base64" in codex.kept
    assert [message["text"] for message in completed(events, "agent_message")] == ["The command printed made-42."]
    assert events[-1]["type"] == "turn.completed"
    usage = events[-1]["usage"]
    assert usage["output_tokens"] > 0
    # Each request after the first finds the one before it in the prefix cache.
    assert usage["cached_input_tokens"] > usage["input_tokens"] / 2


def test_a_conversation_is_resumed(codex: Codex) -> None:
    assert codex("Count.")[0] == 0
    status, events = codex("resume", "--last", "Count again.")
    assert status == 0
    assert [message["text"] for message in completed(events, "agent_message")] == ["You asked twice."]


def test_a_refusal_is_shown(codex: Codex) -> None:
    status, events = codex("--model", "nonsense", "Count.")
    assert status == 1
    assert events[-1]["type"] == "turn.failed"
    assert f"This server has: {NAME}." in events[-1]["error"]["message"]
