"""Simon Willison's `llm` on its command line: prompts, streams, dialogues, schemas, tools, logs, over three APIs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LLM = Path(sys.executable).with_name("llm")
WEATHER = """
def get_weather(city: str) -> str:
    "Get the current weather of a city"
    return '{"city": "%s", "temperature": 21}' % city
"""
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
}
# One model under three names: each is asked over an API of its own.
MODELS = """
- {{model_id: chat, model_name: {model}, api_base: "{url}", supports_tools: true, supports_schema: true}}
- {{model_id: responses, model_name: {model}, api_base: "{url}", supports_tools: true, supports_schema: true,
   responses: true}}
- {{model_id: completions, model_name: {model}, api_base: "{url}", completion: true}}
"""
Run = Callable[..., str]


@pytest.fixture
def llm(served: Any, tmp_path: Path) -> Run:
    models = tmp_path / "extra-openai-models.yaml"
    models.write_text(MODELS.format(model=served.model, url=served.url))
    own = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [LLM, *arguments], env=own, input=stdin, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def asked(model: str) -> list[str]:
    return ["-m", model, "-o", "temperature", "0"]


@pytest.mark.parametrize("model", ["chat", "responses"])
def test_a_prompt_streams_what_it_gets_as_a_whole(llm: Run, model: str) -> None:
    streamed = llm(*asked(model), "What is the capital of France?")
    assert "Paris" in streamed
    assert llm(*asked(model), "--no-stream", "What is the capital of France?") == streamed
    assert llm(*asked(model), "What is the capital", stdin="of France?") != ""


def test_a_prompt_is_continued(llm: Run) -> None:
    assert "4" in llm(*asked("completions"), "-o", "max_tokens", "8", "1, 2, 3,")


@pytest.mark.parametrize("model", ["chat", "responses"])
def test_a_dialogue_goes_on_and_is_logged(llm: Run, model: str) -> None:
    llm(*asked(model), "What is the capital of France?")
    assert llm("-c", *asked(model), "And of Spain?")
    first, second = json.loads(llm("logs", "--json", "-n", "2"))
    assert first["conversation_id"] == second["conversation_id"]
    assert second["input_tokens"] > first["input_tokens"] + first["output_tokens"] > first["output_tokens"] > 0


@pytest.mark.parametrize("model", ["chat", "responses"])
def test_a_schema_binds_the_answer(llm: Run, model: str) -> None:
    answer = json.loads(llm(*asked(model), "--schema", json.dumps(PERSON), "Hello!"))
    assert isinstance(answer["name"], str)
    assert isinstance(answer["age"], int)


@pytest.mark.parametrize("model", ["chat", "responses"])
@pytest.mark.parametrize("streaming", [[], ["--no-stream"]], ids=["streamed", "whole"])
def test_a_python_function_is_called_and_answered(llm: Run, model: str, streaming: list[str]) -> None:
    answer = llm(*asked(model), *streaming, "--functions", WEATHER, "What is the weather in Paris?")
    assert "21" in answer
    *_, call, final = json.loads(llm("logs", "--json"))
    assert [each["arguments"] for each in call["tool_calls"]] == [{"city": "Paris"}]
    assert final["tool_results"]


def test_a_chat_goes_line_by_line(llm: Run) -> None:
    said = llm("chat", *asked("chat"), stdin="Hello!\nWhat is the capital of France?\nexit\n")
    assert "Paris" in said
    assert len(json.loads(llm("logs", "--json"))) == 2
