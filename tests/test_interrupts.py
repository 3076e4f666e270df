"""Ctrl-C ends whatever a command is doing, at once, and never with a traceback, however often it is pressed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.terminal import CTRL_C, CTRL_D, Terminal, program

pytestmark = pytest.mark.slow

# The second is the status of a process that an interrupt meets at its very end. Shells call both 130.
INTERRUPTED = (130, -signal.SIGINT)

# Each makes the process say REACHED and stay in one phase of a command.
STAY = "import time\ndef stay(*_, **__):\n    print('REACHED', flush=True)\n    time.sleep(600)\n"
# A library that catches everything, such as one that tries again.
STUBBORN = (
    "import time\n"
    "def stay(*_, **__):\n"
    "    print('REACHED', flush=True)\n"
    "    for _ in range(600):\n"
    "        try:\n"
    "            time.sleep(1)\n"
    "        except BaseException:\n"
    "            pass\n"
)
PHASES = {
    "finding": "import parallm_openai.models.finding as module; module.find_model = stay\n"
    "import parallm_openai.models.loading as user; user.find_model = stay\n",
    "loading": "from parallm_openai.cpu import prepare; prepare()\n"
    "import parallm_openai.models.weights as module; module.read = stay\n",
    "warming": "from parallm_openai.cpu import prepare; prepare()\n"
    "import parallm_openai.engine.build as module; module.warm_up = stay\n",
}
COMMANDS = {
    "serve": ["serve", "demo", "--port", "0"],
    "chat": ["chat", "demo"],
    "generate": ["generate", "-m", "demo", "Hello"],
    "doctor": ["doctor", "demo", "--draft", "suffix"],
    "bench": ["bench", "--ways", "in-process", "--model", "demo", "--concurrency", "1"],
}


@pytest.fixture
def run() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        started.append(Terminal(*arguments, **options))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def press_twice(terminal: Terminal) -> int:
    """Interrupt it twice, and again if it has noticed only one: two that come together may be one to Python."""
    for seconds in (0.3, 2, 10, 30):
        terminal.send(CTRL_C)
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(seconds)
            break
    status = terminal.end()
    assert "Traceback" not in terminal.output, terminal.output
    assert "Exception" not in terminal.output, terminal.output
    return status


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("stay", [STAY, STUBBORN], ids=["patient", "stubborn"])
def test_a_command_ends_in_each_phase(run: Callable[..., Terminal], command: str, phase: str, stay: str) -> None:
    terminal = run(*COMMANDS[command], command=program(stay + PHASES[phase]))
    terminal.wait_for("REACHED")
    assert press_twice(terminal) in INTERRUPTED
    if phase != "finding":
        # The moving line has hidden the cursor.
        assert terminal.output.rfind("\x1b[?25h") > terminal.output.rfind("\x1b[?25l")


@pytest.mark.parametrize("command", ["fetch", "show", "list", "remove"])
def test_models_end_too(run: Callable[..., Terminal], command: str) -> None:
    patch = (
        "import parallm_openai.catalog.fetching as a, parallm_openai.catalog.description as b\n"
        "import parallm_openai.catalog.listing as c, parallm_openai.catalog.removal as d\n"
        "a.fetch_model = b.describe = c.list_models = d.removal_of = stay\n"
    )
    code = STAY + "from parallm_openai.cpu import prepare; prepare()\n" + patch
    terminal = run("models", command, *([] if command == "list" else ["demo"]), command=program(code))
    terminal.wait_for("REACHED")
    assert press_twice(terminal) in INTERRUPTED


@pytest.mark.parametrize("milliseconds", [10, 60, 150, 300, 600])
def test_a_command_ends_while_it_is_being_imported(run: Callable[..., Terminal], milliseconds: int) -> None:
    # Before that, an interrupt is Python's own affair.
    code = (
        "from parallm_openai import interrupts\n"
        "plain = interrupts.install\n"
        "interrupts.install = lambda: (plain(), print('REACHED', flush=True))\n"
    )
    terminal = run("serve", "demo", "--port", "0", command=program(code))
    terminal.wait_for("REACHED")
    time.sleep(milliseconds / 1000)
    terminal.send(CTRL_C)
    terminal.send(CTRL_C)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.output


def test_a_server_ends_while_it_serves_and_while_it_ends(run: Callable[..., Terminal]) -> None:
    terminal = run("serve", "demo", "--port", "0")
    terminal.wait_for("curl ")
    terminal.send(CTRL_C)
    terminal.send(CTRL_C)
    terminal.send(CTRL_C)
    assert terminal.end() in (0, 130)
    assert "Traceback" not in terminal.output
    assert "Exception" not in terminal.output


def test_what_bench_has_started_ends_with_it(run: Callable[..., Terminal]) -> None:
    code = (
        "import subprocess\n"
        "class Started(subprocess.Popen):\n"
        "    def __init__(self, *a, **k):\n"
        "        super().__init__(*a, **k)\n"
        "        if 'serve' in a[0]: print('STARTED', self.pid, flush=True)\n"
        "subprocess.Popen = Started\n"
    )
    terminal = run("bench", "--model", "demo", "--concurrency", "1", "--rounds", "500", command=program(code))
    terminal.wait_for("round 1 of 500")
    terminal.send(CTRL_C)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.output
    pid = int(terminal.output.partition("STARTED ")[2].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_answer_is_stopped_and_the_chat_goes_on(run: Callable[..., Terminal]) -> None:
    # The answer would go on for long.
    endless = (
        "import dataclasses\n"
        "from parallm_openai.text import defaults\n"
        "plain = defaults.asked\n"
        "defaults.asked = lambda **fields: dataclasses.replace(plain(**fields), ignore_eos=True)\n"
    )
    terminal = run("chat", "demo", "--temp", "0", command=program(endless))
    terminal.wait_for(">>> ")
    terminal.send("What is the capital of France?\n")
    terminal.wait_for("Paris")
    terminal.send(CTRL_C)
    terminal.send(CTRL_C)
    terminal.wait_for(">>> ")
    terminal.press(CTRL_C, "(Ctrl-D or /bye leaves)")
    terminal.wait_for(">>> ")
    terminal.press("half a li" + CTRL_C.decode(), "(Ctrl-D or /bye leaves)")
    terminal.wait_for(">>> ")
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.output


def test_a_start_shows_on_a_terminal_what_it_is_doing(run: Callable[..., Terminal]) -> None:
    terminal = run("serve", "demo", "--port", "0")
    terminal.wait_for("loading demo")
    terminal.wait_for("warming up")
    terminal.wait_for("Serving parallm-demo at")
    terminal.wait_for("╰")
    for name in ("model", "memory", "context", "batch", "drafts"):
        assert f"│ {name}" in terminal.text
    # What was logged meanwhile has not broken into the moving line.
    [logged] = [line for line in terminal.text.splitlines() if "ragged batching" in line]
    assert re.match(r"\r*20\d\d-", logged)
    terminal.send(CTRL_C)
    assert terminal.end() == 0
