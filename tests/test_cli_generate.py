"""`parallm-openai generate`: where prompts come from, and how answers are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from parallm_openai.cli import app


def generate(*arguments: str, piped: str = "") -> Any:
    return CliRunner().invoke(app, ["generate", *arguments], input=piped)


def printed(*arguments: str, piped: str = "") -> str:
    result = generate(*arguments, piped=piped)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return str(result.stdout)


pytestmark = pytest.mark.slow
SHORT = ("--max-tokens", "6")


def test_one_answer_streams_and_several_are_the_same() -> None:
    single = printed("Once upon a time", *SHORT)
    assert printed("Once upon a time", "Hello", *SHORT).startswith(single)
    assert json.loads(printed("Once upon a time", "--jsonl", *SHORT))["text"] == single.removesuffix("\n")


def test_prompts_come_by_flag_and_from_standard_input() -> None:
    expected = printed("Once upon a time", *SHORT)
    assert printed("-p", "Once upon a time", *SHORT) == expected
    assert printed(*SHORT, piped="Once upon a time\n") == expected
    assert printed("-", *SHORT, piped="Once upon a time\n") == expected
    both = [json.loads(line) for line in printed("Hello", "-", "--jsonl", *SHORT, piped="a\nb\n").splitlines()]
    assert [each["prompt"] for each in both] == ["Hello", "a\nb"]


def test_what_is_piped_in_is_no_prompt_if_there_is_another() -> None:
    assert printed("Once upon a time", *SHORT, piped="ignored") == printed("Once upon a time", *SHORT)


def test_a_system_message_makes_it_a_chat() -> None:
    plain = printed("What is the capital of France?", "--chat", "-n", "20")
    assert "Paris" in plain
    assert printed("What is the capital of France?", "--chat", "--chat", "-n", "20") == plain
    lines = printed(
        "What is the capital of France?", "Hi", "--system", "You are kind.", "--jsonl", "-n", "20"
    ).splitlines()
    results = [json.loads(line) for line in lines]
    assert [each["prompt"] for each in results] == ["What is the capital of France?", "Hi"]
    assert all(each["text"] and each["reasoning"] == "" for each in results)


def test_an_answer_ends_before_a_stop_string() -> None:
    whole = printed("What is the capital of France?", "--chat", "-n", "20").removesuffix("\n")
    assert printed("What is the capital of France?", "--chat", "-n", "20", "--stop", "Paris") == (
        whole.partition("Paris")[0] + "\n"
    )


def test_drafts_change_no_answer_and_are_counted() -> None:
    expected = printed("Once upon a time", "-n", "30", "--draft", "none")
    result = generate("Once upon a time", "-n", "30", "--num-draft-tokens", "3", "--stats")
    assert result.stdout == expected
    assert "30 tokens, the first after " in result.stderr
    assert "drafted tokens accepted)" in result.stderr
    result = generate("Once upon a time", "-n", "30", "--draft", "none", "--jsonl", "--stats")
    assert json.loads(result.stdout)["drafted"] == 0
    assert result.stderr == "(30 tokens)\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "Hello"], "demo is a model: give it as -m demo"),
        (["owner/name", "Hello"], "owner/name is a model: give it as -m owner/name"),
        (["-", "-"], "standard input (-) can be only one of the prompts"),
        (["--top-k", "-1", "x"], "--top-k: must be a whole number of at least 0"),
        (["--temp", "x", "x"], "--temp: must be a number from 0 to 2, not 'x'"),
        (["--draft", "suffix", "--draft-model", "y", "x"], "give either --draft or --draft-model, not both"),
        (["--ignore-chat-template", "x"], "prompts are continued as they are, unless --chat"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], said: str) -> None:
    result = generate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_word_alone_is_a_prompt_whatever_it_is(tmp_path: Path) -> None:
    assert printed("demo", *SHORT)
    assert len(printed("-p", "demo", "Hello", "--jsonl", *SHORT).splitlines()) == 2
