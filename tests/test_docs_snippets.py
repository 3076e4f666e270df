"""Every snippet of README.md and docs/: programs and `curl` run, command lines and configurations are parsed.

A snippet that nobody can check says so by its language: `text`, or one of `UNCHECKED`.
"""

from __future__ import annotations

import configparser
import importlib.util
import io
import json
import plistlib
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import filterfalse
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from support.processes import ROOT
from support.servers import RunningServer
from support.snippets import (
    PAGES,
    Command,
    Snippet,
    calls_of,
    commands,
    commands_of,
    packages_of,
    snippets,
    snippets_of,
)

from compat.documented import MODEL, URL, run
from parallm_openai import cli

# Examples of output, and files of other programs. compat/ runs the JavaScript, tests/page the browser's.
UNCHECKED = {"text", "nginx", "html", "js"}


def ini(text: str) -> configparser.ConfigParser:
    """A unit of systemd, in which a name may stand more than once."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


PARSERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "ini": ini,
    "xml": lambda text: plistlib.loads(text.encode()),
}
# Files that command lines name: the settings are those that the page shows.
FILES = {
    "serve.toml": next(each.text for each in snippets("toml") if each.page == "docs/settings.md"),
    "prompts.jsonl": '{"prompt": "Hello"}\n',
}
# What commands call once they have read their arguments.
BEGINNINGS = (
    *(f"cli.{command}.prepare" for command in ("serve", "generate", "doctor", "chat", "models")),
    "cli.serve.launch",
    "cli.answers.ServerSource",
    "cli.bench_run.run",
    "catalog.listing.list_models",
    "catalog.fetching.fetch_model",
    "catalog.removal.removal_of",
)
HELP = {"-h", "--help", "--version"}

Begins = Callable[[dict[str, str], list[str]], bool]


class Begun(Exception):
    """A command has read all its arguments, and begins."""


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Begins:
    """Whether `parallm-openai` takes these variables and arguments; it does nothing else."""

    def begun(*_arguments: Any, **_options: Any) -> None:
        raise Begun

    for function in BEGINNINGS:
        monkeypatch.setattr(f"parallm_openai.{function}", begun)
    # Ray Serve is an extra.
    monkeypatch.setattr("parallm_openai.cli.serve.check_replicas", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def begins(variables: dict[str, str], arguments: list[str]) -> bool:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        command: Any = typer.main.get_command(cli.app)
        try:
            command.main(arguments)
        except Begun:
            return True
        except SystemExit as end:
            return not end.code and bool(HELP & {*arguments})
        return False

    return begins


def replaced(text: str, server: RunningServer) -> str:
    return text.replace(URL, server.url).replace(MODEL, server.model.name)


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_a_snippet_is_one_that_is_checked_or_says_that_it_is_not(snippet: Snippet) -> None:
    assert snippet.language in {"python", "sh", *PARSERS, *UNCHECKED}, snippet.text


@pytest.mark.parametrize("snippet", snippets(*PARSERS), ids=str)
def test_configurations_parse(snippet: Snippet) -> None:
    assert PARSERS[snippet.language](snippet.text)


@pytest.mark.parametrize("snippet", snippets("ini", "xml"), ids=str)
def test_services_start_commands_that_there_are(snippet: Snippet, begins: Begins) -> None:
    if snippet.language == "xml":
        program, *arguments = plistlib.loads(snippet.text.encode())["ProgramArguments"]
    else:
        program, *arguments = shlex.split(ini(snippet.text)["Service"]["ExecStart"])
    assert Path(program).name == "parallm-openai"
    assert begins({}, arguments)


@pytest.mark.parametrize("command", commands(), ids=str)
def test_command_lines_have_flags_and_values_that_there_are(
    command: Command, begins: Begins, capsys: pytest.CaptureFixture[str]
) -> None:
    for variables, arguments in calls_of(command):
        assert begins(variables, arguments), capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in commands() if each.text.startswith("curl ")], ids=str)
def test_requests_get_the_status_that_is_said(server: RunningServer, command: Command) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    assert URL in command.text
    asked = replaced(command.text, server).replace(
        "curl ", "curl --silent --show-error --write-out '\n%{http_code}' ", 1
    )
    with server.configured():
        answer, _, status = run(["bash", "-c", asked]).rpartition("\n")
    assert int(status) == command.status, answer
    assert_capital(command.text, answer)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_programs_run(server: RunningServer, snippet: Snippet) -> None:
    if missing := sorted(filterfalse(is_installed, packages_of(snippet.text))):
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert_capital(snippet.text, run([sys.executable, "-c", replaced(snippet.text, server)], ROOT))


def is_installed(package: str) -> bool:
    """A folder of compat/ that is called like a package is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def assert_capital(asked: str, answer: str) -> None:
    """The documents' question has its answer."""
    assert ("Paris" if "capital of France?" in asked else "") in answer


def flags_of(command: Any) -> Iterator[str]:
    """The flags of a command and of those below it, under all names."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from flags_of(inner)


# Of docker-less-run.sh, pip, pytest and llama.cpp's tools.
OTHER_FLAGS = {"--cuda", "--setup-only", "--test", "--merge"}
# Pages that name other programs' flags: the first and last are compared with the settings by tests of their own.
OTHERS = {"cli.md", "migration.md", "settings.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OTHERS], ids=lambda page: page.name)
def test_flags_in_the_text_are_flags_that_there_are(page: Path) -> None:
    written = set(re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8")))
    assert written <= known_flags() | OTHER_FLAGS


def test_flags_that_others_flags_become_are_flags_that_there_are() -> None:
    """They stand in the last column of the tables."""
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    written = {
        flag
        for row in re.findall(r"\|([^|\n]*)\|$", text, re.MULTILINE)
        for flag in re.findall(r"`(--[a-z][a-z-]*)", row)
    }
    assert len(written) > 20
    assert written <= known_flags()


def known_flags() -> set[str]:
    return {*flags_of(typer.main.get_command(cli.app)), "--help"}


def test_snippets_of_every_kind_are_found() -> None:
    assert {each.language for each in snippets()} >= {"python", "sh", *PARSERS, "text", "nginx"}
    assert len([each for each in commands() if each.text.startswith("curl ")]) >= 8
    assert sum(len(calls_of(each)) for each in commands()) >= 30


def block(language: str, text: str) -> Snippet:
    (found,) = snippets_of(f"A sentence.\n\n```{language}\n{text}\n```\n", "docs/page.md")
    return found


@pytest.mark.parametrize(
    "text", ["    parallm-openai serve", "```\nparallm-openai serve\n```", "```console\n$ parallm-openai serve\n```"]
)
def test_a_snippet_without_a_known_language_is_noticed(text: str) -> None:
    (found,) = snippets_of(f"A sentence.\n\n{text}\n", "docs/page.md")
    with pytest.raises(AssertionError):
        test_a_snippet_is_one_that_is_checked_or_says_that_it_is_not(found)


@pytest.mark.parametrize(
    "text",
    [
        "wget http://127.0.0.1:8080",
        "scripts/absent",
        "curl http://a && nginx -t",
        "aider --model x",
        "pip install 'parallm-openai[absent]'",
        "serve deploy examples/absent.yaml",
    ],
)
def test_a_program_that_nobody_checks_is_noticed(text: str) -> None:
    (command,) = commands_of(block("sh", text))
    with pytest.raises(ValueError, match="nobody checks"):
        calls_of(command)


@pytest.mark.parametrize(
    "text",
    [
        "parallm-openai serve --no-such-flag",
        "parallm-openai serve --port many  # a comment",
        "MODEL=x .venv/bin/parallm-openai serve \\\n  --draft ngrams",
        "./docker-less-run.sh --cuda --max-batch-size 0",
        "PARALLM_PORT=many parallm-openai serve",
        "git diff | parallm-openai models sing",
    ],
)
def test_a_wrong_command_line_is_noticed(text: str, begins: Begins) -> None:
    ((variables, arguments),) = [call for command in commands_of(block("sh", text)) for call in calls_of(command)]
    assert not begins(variables, arguments)


def test_a_comment_says_which_status_a_request_gets() -> None:
    asked = block("sh", "# First.\ncurl 'http://a/#b' -d '{\n \"c\": 1}'  # 404: there is none\ncurl http://a")
    assert [(each.text, each.status) for each in commands_of(asked)] == [
        ("curl 'http://a/#b' -d '{\n \"c\": 1}'", 404),
        ("curl http://a", 200),
    ]
