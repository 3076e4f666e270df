"""`parallm-openai chat`, line by line: what it answers, what its commands do, and what goes wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from support.servers import RunningServer
from typer.testing import CliRunner

from parallm_openai.cli import app
from parallm_openai.cli.answers import AnswerError, Piece, Screen

QUESTION = "What is the capital of France?"


def chat(entered: str, *arguments: str) -> Any:
    """The result of a chat into which these lines are entered."""
    return CliRunner().invoke(app, ["chat", *arguments], input=entered)


def with_server(server: RunningServer, *entered: str, flags: tuple[str, ...] = ()) -> Any:
    result = chat("\n".join(entered), "--url", server.url, "--temp", "0", *flags)
    assert result.exit_code == 0, result.output
    return result


def answer_to(server: RunningServer, *messages: dict[str, str]) -> str:
    with server.client as client:
        body = {"messages": list(messages), "temperature": 0}
        return str(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.slow
def test_an_engine_in_the_process_answers_as_a_server_does(server: RunningServer) -> None:
    local = chat(f"{QUESTION}\n", "demo", "--temp", "0", "--draft-length", "3", "--stats")
    assert local.exit_code == 0, local.output
    assert local.stdout.startswith(answer_to(server, user(QUESTION)))
    assert "drafted tokens accepted)" in local.stdout


def test_the_conversation_is_kept(server: RunningServer) -> None:
    first = answer_to(server, user(QUESTION))
    second = answer_to(server, user(QUESTION), {"role": "assistant", "content": first}, user("Thanks"))
    assert with_server(server, QUESTION, "", "Thanks").stdout == f"{first}\n{second}\n"


def test_reset_forgets_it_and_system_stays(server: RunningServer) -> None:
    system = {"role": "system", "content": "You are a poet."}
    said = with_server(server, QUESTION, "/reset", QUESTION, "/system", flags=("--system", "You are a poet.")).stdout
    expected = answer_to(server, system, user(QUESTION))
    assert said == f"{expected}\nThe conversation is forgotten.\n{expected}\nsystem: You are a poet.\n"


def test_a_message_may_have_several_lines(server: RunningServer) -> None:
    expected = answer_to(server, user("Repeat:\none two"))
    assert with_server(server, '"""Repeat:', 'one two"""').stdout == f"{expected}\n"
    assert with_server(server, "Repeat:\\", "one two").stdout == f"{expected}\n"
    # Inside the quotes a slash begins no command.
    assert "there is no" not in with_server(server, '"""/bye"""').stderr


def test_parameters_can_be_set(server: RunningServer) -> None:
    said = with_server(server, "/set max_tokens 2", QUESTION, "/set max-tokens default", "/set", "/stats", QUESTION)
    lines = said.stdout.splitlines()
    assert lines[0] == "max_tokens: 2"
    assert answer_to(server, user(QUESTION)).startswith(lines[1])
    assert lines[2] == "max_tokens: default"
    assert [line.split() for line in lines if line.startswith("temperature")] == [["temperature", "0.0"]]
    assert any(line.startswith("(") and "tokens/s" in line for line in lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temperature 9", "temperature must be a number from 0 to 2, not '9'"),
        ("/set colour red", "/set takes a name and a value; the names are top_p, "),
        ("/nonsense", "there is no /nonsense; /help lists what there is"),
        ("/save", "/save takes the name of a file"),
        ("/save /no/such/folder/chat.json", "/no/such/folder/chat.json: No such file"),
        ("/load /no/such/chat.json", "/no/such/chat.json: No such file"),
        ("/save ~nobody-of-that-name/chat.json", "~nobody-of-that-name/chat.json: Could not determine home directory"),
        ("/load ~nobody-of-that-name/chat.json", "~nobody-of-that-name/chat.json: Could not determine home directory"),
        ("/save chat\0.json", "the name has a null character"),
        ("/load", "Is a directory"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(server: RunningServer, line: str, said: str) -> None:
    result = with_server(server, line, QUESTION)
    assert said in result.stderr
    assert answer_to(server, user(QUESTION)) in result.stdout


def test_a_conversation_is_saved_and_taken_up_again(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    with_server(server, "/system Be brief.", QUESTION, f"/save {file}")
    first = answer_to(server, {"role": "system", "content": "Be brief."}, user(QUESTION))
    messages = [user(QUESTION), {"role": "assistant", "content": first}]
    assert json.loads(file.read_text()) == {"model": "parallm-demo", "system": "Be brief.", "messages": messages}
    expected = answer_to(server, {"role": "system", "content": "Be brief."}, *messages, user("Thanks"))
    said = with_server(server, f"/load {file}", "Thanks").stdout
    assert said == f"Loaded 2 messages from {file}.\n{expected}\n"


@pytest.mark.parametrize(
    "content",
    ["no JSON", "[]", "{}", '{"messages": [{"role": "tool", "content": ""}]}', '{"messages": 3}', "[" * 10**5],
)
def test_a_file_that_is_no_conversation_changes_nothing(server: RunningServer, tmp_path: Path, content: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    result = with_server(server, QUESTION, f"/load {file}", f"/save {file}")
    assert f"{file} is no conversation that /save has written" in result.stderr
    assert len(json.loads(file.read_text())["messages"]) == 2


def test_what_users_of_ollama_type_works(server: RunningServer) -> None:
    lines = ("/set system Be brief.", "/set parameter temperature 0.5", "/set verbose", "/set quiet", "/clear", "/?")
    result = with_server(server, *lines, "/exit", "never sent")
    assert result.stderr == ""
    for said in ("system: Be brief.", "temperature: 0.5", "shown.", "not shown.", "forgotten", "/bye"):
        assert said in result.stdout
    assert "never" not in result.stdout


def test_a_message_that_does_not_fit_is_refused_and_not_kept(server: RunningServer) -> None:
    result = with_server(server, "x " * 9000, QUESTION)
    assert "maximum context length" in result.stderr
    assert result.stdout.strip() == answer_to(server, user(QUESTION))


# Terminals


class ATerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Moves the cursor, sets the window's title by ESC and by its eight-bit form, rings, and hides what stands before.
HOSTILE = "a\x1b[2J\x1b]0;t\x07\x9d0;t\x9c\x08\rb\x7f"


def test_an_answer_cannot_steer_the_terminal() -> None:
    terminal, file = ATerminal(), io.StringIO()
    Screen(terminal, terminal).show(Piece(f"{HOSTILE}\tcaf\u00e9\r\n\U0001f600"))
    assert terminal.getvalue() == "a\ufffd[2J\ufffd]0;t\ufffd\ufffd0;t\ufffd\ufffdb\ufffd\tcaf\u00e9\n\U0001f600"
    Screen(file, file).show(Piece(HOSTILE))
    assert file.getvalue() == HOSTILE


def test_what_a_server_says_of_an_error_cannot_either() -> None:
    assert str(AnswerError(HOSTILE)).isprintable()


# Servers


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--url", "http://127.0.0.1:9"], 1, "http://127.0.0.1:9 does not answer"),
        (["--url", "http://[::1"], 1, "http://[::1 is no URL"),
        (
            ["--url", "http://127.0.0.1:9", "--api-key", "k\u00e9"],
            1,
            "the API key has characters that no header can have",
        ),
        (["--url", "127.0.0.1:8080"], 2, "--url: must begin with http:// or https://"),
        (["--api-key", "key"], 2, "--api-key: needs --url"),
        (["--temperature", "3"], 2, "--temperature: must be a number from 0 to 2"),
        (["--chat-template-args", "x"], 2, "--chat-template-args: this is no JSON"),
        (["/no/such/model"], 1, "there is no model folder or file /no/such/model"),
    ],
)
def test_a_chat_that_cannot_begin_says_why(arguments: list[str], status: int, said: str) -> None:
    result = chat("Hello\n", *arguments)
    assert result.exit_code == status
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_model_of_a_server_is_checked(server: RunningServer) -> None:
    result = chat("", "other", "--url", f"{server.url}/v1/")
    assert result.exit_code == 1
    assert f"{server.url} has no model other; it has parallm-demo" in result.stderr


def test_a_servers_key_is_sent(start_server: Any) -> None:
    from parallm_openai.settings import ServerSettings

    running = start_server(settings=ServerSettings(api_keys=("key",)))
    refused = chat("", "--url", running.url)
    assert refused.exit_code == 1
    assert "401: You didn't provide an API key" in refused.stderr
    answered = chat(QUESTION, "--url", running.url, "--api-key", "key", "--temp", "0")
    assert answered.stdout.strip() == answer_to_with_key(running)


def answer_to_with_key(server: RunningServer) -> str:
    with server.client as client:
        client.headers["Authorization"] = "Bearer key"
        body = {"messages": [user(QUESTION)], "temperature": 0}
        return str(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])
