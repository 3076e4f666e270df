"""The snippets of the documents: where each stands, and what of it can be checked."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from support.processes import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Programs beside our own that a shell block may hold, because something else checks them or there is nothing to check.
SHELL = {"git", "source"}
# Clients that compat/ runs, or that docs/clients.md says are not run.
CLIENTS = {"aider", "claude", "lm_eval", "open-webui"}

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# A line that Markdown shows as code because it is indented: the first of a paragraph, and not one of a list.
_INDENTED = re.compile(r"^\n {4,}(?! *(?:[-*]|\d+\.) )\S.*$", re.MULTILINE)
_SHELL = re.compile(
    r"""(?P<quoted>'[^']*'|"(?:\\.|[^"\\])*")|(?P<joined>\\\n)|(?P<comment>(?:(?<=\s)|^)\#[^\n]*)|(?P<end>\n)|.""",
    re.MULTILINE,
)
_STATUS = re.compile(r"# (\d{3})\b")
_ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A block of code: `language` is the first word after its fence, empty if there is none."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line of a shell block, and the HTTP status that its comment says it gets (`# 404: ...`)."""

    snippet: Snippet
    text: str
    status: int = 200

    def __str__(self) -> str:
        return f"{self.snippet}: {self.text:.40}"

    @property
    def stages(self) -> list[Stage]:
        """The programs of the line, which pipes and the like connect."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split, lexer.commenters = True, ""
        stages: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set("|&;"):
                stages.append([])
            else:
                stages[-1].append(word)
        return [Stage.of(words) for words in stages if words]


@dataclass(frozen=True)
class Stage:
    """A program with its arguments, and the variables before it."""

    variables: dict[str, str]
    program: str
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, words: list[str]) -> Stage:
        assignments = list(takewhile(_ASSIGNMENT.fullmatch, words))
        program, *arguments = words[len(assignments) :] or [""]
        arguments = list(takewhile(lambda word: not word.startswith(">"), arguments))
        return cls(dict(each.split("=", 1) for each in assignments), program, tuple(arguments))


def snippets_of(text: str, page: str) -> list[Snippet]:
    """The blocks of a document, fenced or indented."""
    found = [Snippet(page, _line(text, each.start()), *_parts(each)) for each in _FENCE.finditer(text)]
    rest = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    found += [Snippet(page, _line(rest, each.start()) + 1, "", each[0].strip()) for each in _INDENTED.finditer(rest)]
    return found


def snippets(*languages: str) -> list[Snippet]:
    """Those of all documents, in these languages or in any."""
    every = [each for page in PAGES for each in snippets_of(page.read_text(encoding="utf-8"), _name(page))]
    return [each for each in every if not languages or each.language in languages]


def commands_of(snippet: Snippet) -> Iterator[Command]:
    """The command lines of a shell block."""
    line, status = "", 200
    for part in _SHELL.finditer(snippet.text):
        if part.lastgroup == "joined":
            line += " "
        elif part.lastgroup == "comment":
            said = _STATUS.match(part[0])
            status = int(said[1]) if said else 200
        elif part.lastgroup == "end":
            if line.strip():
                yield Command(snippet, line.strip(), status)
            line, status = "", 200
        else:
            line += part[0]


def commands() -> list[Command]:
    return [command for snippet in snippets("sh") for command in commands_of(snippet)]


def calls_of(command: Command) -> list[tuple[dict[str, str], list[str]]]:
    """The calls of `parallm-openai` in a command line: the variables that it gets, and its arguments.

    Raises ValueError if there is a program in it that nobody checks.
    """
    calls = []
    for stage in command.stages:
        program = Path(stage.program).name
        if program == "parallm-openai":
            calls.append((stage.variables, list(stage.arguments)))
        elif program == "mlx.launch":
            # What it starts comes after the two dashes.
            calls.append((stage.variables, list(stage.arguments[stage.arguments.index("--") + 2 :])))
        elif program == "docker-less-run.sh":
            calls += [(stage.variables, words) for words in [passed_on(stage.arguments)] if words is not None]
        elif not _is_checked(stage, command.snippet.page):
            raise ValueError(f"{command}: nobody checks {stage.program}; such a block is ```text")
    return calls


def passed_on(arguments: tuple[str, ...]) -> list[str] | None:
    """What `docker-less-run.sh` calls `parallm-openai` with; None if it does not."""
    words = [word for word in arguments if word not in ("--cuda", "--setup-only", "--test")]
    if "--test" in arguments or "--setup-only" in arguments:
        assert not words or "--test" in arguments, words
        return None
    known = ("serve", "chat", "generate", "doctor", "bench", "models")
    return words if words and words[0] in known else ["serve", *words]


def _is_checked(stage: Stage, page: str) -> bool:
    if stage.program == "export":
        return all(_ASSIGNMENT.fullmatch(word) for word in stage.arguments)
    if stage.program == "python":
        return (ROOT / stage.arguments[0]).is_file()
    if stage.program in CLIENTS:
        return page in ("README.md", "docs/clients.md")
    if stage.program == "pip":
        return stage.arguments[0] == "install" and set(stage.arguments[1:]) <= _installable()
    if stage.program == "serve":
        return stage.arguments[0] == "deploy" and (ROOT / stage.arguments[1]).is_file()
    return stage.program in {"curl", "ray", *SHELL} or (ROOT / stage.program).is_file()


def _installable() -> set[str]:
    """The package, alone and with each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {project["name"], *(f"{project['name']}[{extra}]" for extra in project["optional-dependencies"])}


def packages_of(program: str) -> set[str]:
    """The packages that a Python program imports."""
    found = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
    return found


def _parts(fence: re.Match[str]) -> tuple[str, str]:
    indent, info, text = fence.groups()
    return (info.split() or [""])[0], re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))
