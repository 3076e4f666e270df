"""The conversation of `parallm-openai chat`: what the user enters, line by line, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from parallm_openai import interrupts
from parallm_openai.cli.answers import AnswerError, Cost, Message, Piece, Screen, Source, without_controls
from parallm_openai.cli.options import Option, options_of
from parallm_openai.cli.sampling import ChatSampling

PROMPT, MORE = ">>> ", "... "
# Begins and ends a message of several lines.
QUOTES = '"""'

HELP = """\
/help            this list
/reset           forget the conversation; the system message stays
/system [TEXT]   set the system message, or show it
/set [NAME VALUE]  set a sampling parameter such as temperature, or show them; default as the VALUE unsets it
/stats           say after each answer what it cost, or stop doing so
/save FILE       write the conversation to a file, as JSON
/load FILE       take up a conversation from such a file
/bye             leave, as Ctrl-D does

Ctrl-C stops an answer. Begin a message of several lines with \"\"\" and end it so, or end lines with \\."""

# What users of `ollama run` type for the same.
SAME = {"/?": "/help", "/clear": "/reset", "/exit": "/bye", "/quit": "/bye"}
OLLAMA_SETS = {"system": "/system", "parameter": "/set"}


class Chat:
    """A conversation, and the settings that its commands change."""

    def __init__(self, source: Source, sampling: ChatSampling, *, system: str | None, stats: bool) -> None:
        self.source = source
        self.sampling = sampling
        self.system = system
        self.stats = stats
        self.history: list[Message] = []
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: typer.echo(HELP),
            "/reset": self._reset,
            "/system": self._system,
            "/set": self._set,
            "/stats": self._switch_stats,
            "/save": self._save,
            "/load": self._load,
        }

    def answer(self, text: str) -> None:
        """Have a message answered, on the screen and in the history. What is stopped counts as far as it got."""
        self.history.append({"role": "user", "content": text})
        cost, said, screen = Cost(), "", Screen(sys.stdout, sys.stdout)
        try:
            with interrupts.raised_once(), closing(self._pieces(cost)) as pieces:
                for piece in pieces:
                    screen.show(piece)
                    said += "" if piece.thought else piece.text
        except KeyboardInterrupt:
            pass
        except AnswerError as error:
            screen.end()
            self.history.pop()
            complain(f"{error}")
            return
        screen.end()
        if said:
            self.history.append({"role": "assistant", "content": said})
        else:
            self.history.pop()
        if self.stats:
            typer.secho(f"({cost})", dim=True)

    def _pieces(self, cost: Cost) -> Generator[Piece, None, None]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        yield from self.source.answer([*system, *self.history], self.sampling, cost)

    # Commands

    def carry_out(self, line: str) -> bool:
        """Carry out a line that begins with a slash. Returns False if it ends the chat."""
        name, _, rest = line.partition(" ")
        name, rest = SAME.get(name, name), rest.strip()
        if name == "/bye":
            return False
        if name == "/set":
            name, rest = _as_ollama_sets(rest)
        if (command := self.commands.get(name)) is None:
            complain(f"there is no {name}; /help lists what there is, and a space before the slash sends the line")
        else:
            command(rest)
        return True

    def _reset(self, _: str) -> None:
        self.history.clear()
        typer.secho("The conversation is forgotten.", dim=True)

    def _system(self, text: str) -> None:
        if text:
            self.system = text
        typer.secho(f"system: {self.system}" if self.system else "There is no system message.", dim=True)

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        options = {option.field: option for option in options_of(ChatSampling)}
        option = options.get(name.lstrip("-").replace("-", "_"))
        if option is not None and value.strip():
            self._change(option, value.strip())
        elif rest:
            complain(f"/set takes a name and a value; the names are {', '.join(options)}")
        else:
            for field in options:
                typer.secho(f"{field:20} {_shown(getattr(self.sampling, field))}", dim=True)

    def _change(self, option: Option, value: str) -> None:
        changed = self.sampling.model_dump(exclude_unset=True) | {option.field: value}
        if value == "default":
            del changed[option.field]
        try:
            self.sampling = ChatSampling.model_validate(changed)
        except ValidationError:
            complain(f"{option.field} must be {option.kind}, not {value!r:.80}")
        else:
            typer.secho(f"{option.field}: {_shown(getattr(self.sampling, option.field))}", dim=True)

    def _switch_stats(self, value: str) -> None:
        self.stats = {"on": True, "off": False}.get(value, not self.stats)
        typer.secho(f"Tokens and speed of each answer are {'shown' if self.stats else 'not shown'}.", dim=True)

    def _save(self, file: str) -> None:
        if not file:
            complain("/save takes the name of a file")
            return
        content = {"model": self.source.name, "system": self.system, "messages": self.history}
        # Half of a surrogate pair, which a terminal may send, becomes an escape of JSON.
        text = json.dumps(content, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace")
        try:
            _path(file).write_bytes(text + b"\n")
            typer.secho(f"Saved to {file}.", dim=True)
        except OSError as error:
            complain(f"{file}: {error.strerror or error}")

    def _load(self, file: str) -> None:
        try:
            content = json.loads(_path(file).read_text("utf-8"))
            self.system, self.history = _conversation(content)
            typer.secho(f"Loaded {len(self.history)} messages from {file}.", dim=True)
        except OSError as error:
            complain(f"{file or '/load'}: {error.strerror or error}")
        except (ValueError, KeyError, TypeError, RecursionError):
            complain(f"{file} is no conversation that /save has written")


def _path(file: str) -> Path:
    """The path that a user has entered. Raises OSError if there can be none."""
    try:
        path = Path(file).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError) as error:
        raise OSError(str(error)) from error
    if "\0" in file:
        raise OSError("the name has a null character")
    return path


def _conversation(content: dict[str, Any]) -> tuple[str | None, list[Message]]:
    """The system message and the others of a saved conversation. Raises ValueError, KeyError or TypeError."""
    messages, system = content["messages"], content.get("system")
    if not (system is None or isinstance(system, str)):
        raise ValueError("the system message is no text")
    for message in messages:
        if message["role"] not in ("user", "assistant") or not isinstance(message["content"], str):
            raise ValueError("a message is none")
    return system, [{"role": message["role"], "content": message["content"]} for message in messages]


def _as_ollama_sets(rest: str) -> tuple[str, str]:
    """`/set system …`, `/set parameter …`, `/set verbose` and `/set quiet` as our own commands; others as they are."""
    word, _, more = rest.partition(" ")
    if word in ("verbose", "quiet"):
        return "/stats", "on" if word == "verbose" else "off"
    return (OLLAMA_SETS[word], more.strip()) if word in OLLAMA_SETS else ("/set", rest)


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return ", ".join(map(repr, value)) or "none" if isinstance(value, tuple) else str(value)


def complain(message: str) -> None:
    typer.secho(message, fg="red", err=True)


def converse(chat: Chat) -> None:
    """Read and answer until the input ends."""
    if sys.stdin.isatty():
        # Importing it gives `input` its editing keys and history.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        typer.secho(f"{without_controls(chat.source.name)}. /help lists commands, Ctrl-D leaves.", dim=True)
    # One that comes just after an answer must not end the conversation.
    with interrupts.ignored():
        while (text := _entered()) is not None:
            if text.startswith("/") and "\n" not in text:
                if not chat.carry_out(text.rstrip()):
                    return
            elif text.strip():
                chat.answer(text.strip())


def _entered() -> str | None:
    """What the user enters next; None at the end of the input."""
    try:
        with interrupts.raised():
            return _message()
    except KeyboardInterrupt:
        typer.echo("\n(Ctrl-D or /bye leaves)")
        return ""
    except EOFError:
        if sys.stdin.isatty():
            typer.echo()
        return None
    except UnicodeDecodeError:
        complain("that is not text in UTF-8")
        return ""


def _message() -> str:
    """The next message or command. Raises EOFError at the end of the input, and KeyboardInterrupt."""
    line = _line(PROMPT)
    if line.startswith(QUOTES):
        return _quoted(line.removeprefix(QUOTES))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(_line(MORE))
    return "\n".join(lines)


def _quoted(line: str) -> str:
    """A message up to the quotes that end it."""
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(_line(MORE))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    # A quoted line is a message, even if it begins with a slash.
    return " " + "\n".join(lines).strip("\n")


def _line(prompt: str) -> str:
    return input(prompt if sys.stdin.isatty() else "")
