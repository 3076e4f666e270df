"""Answers inside a family's own marks, over HTTP: what is thought, said and called, whatever the model would say.

The models are tiny and random, so that nothing but the server makes their answers right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import families
from support.chat_requests import streamed, whole
from support.chat_templates import published, source
from support.servers import RunningServer, running_server
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from parallm_openai.models.loading import LoadedModel, load
from parallm_openai.text.reasoning.harmony import MARKS

GPT_OSS = """
{%- for message in messages -%}
{{- '<|start|>' + message.role -}}
{%- if message.role == 'assistant' %}<|channel|>final{% endif -%}
{{- '<|message|>' + message.content + '<|end|>' -}}
{%- endfor -%}
{%- if tools %}{{ '# Tools ' + tools | tojson }}{% endif -%}
{%- if add_generation_prompt %}<|start|>assistant{% endif -%}
"""
TURNS = """
{%- for message in messages -%}
{%- if message.role == 'assistant' %}BEFORE{{ message.content }}AFTER{% else %}{{ message.content }}{% endif %}<eot>
{%- endfor -%}
{%- if false %}START END{% endif -%}
"""


def turns(start: str, end: str, before: str = "", after: str = "") -> str:
    template = TURNS.replace("START", start).replace("END", end)
    return template.replace("BEFORE", before).replace("AFTER", after)


# Each with its template, the tokens of its marks and the one that ends its thoughts.
FAMILIES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "harmony": (GPT_OSS, MARKS, "<|end|>"),
    "mistral": (turns("[THINK]", "[/THINK]"), ("[THINK]", "[/THINK]"), "[/THINK]"),
    "seed": (turns("<seed:think>", "</seed:think>"), ("<seed:think>", "</seed:think>"), "</seed:think>"),
    "gemma4": (turns("<|channel>thought", "<channel|>"), ("<|channel>", "<channel|>"), "<channel|>"),
    "command": (
        turns("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        "<|END_THINKING|>",
    ),
    "in letters": (turns("<think>", "</think>", "<response>", "</response>"), (), ""),
}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
SCHEMA = {"type": "object", "properties": {"n": NUMBER}, "required": ["n"], "additionalProperties": False}
JSON: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}
PICK: dict[str, Any] = {"type": "function", "function": {"name": "mcp.pick", "parameters": SCHEMA}}
LATE: dict[str, Any] = {"type": "function", "function": {"name": "late", "parameters": SCHEMA}}


def model(folder: Path, template: str, marks: tuple[str, ...]) -> LoadedModel:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<eot>", *marks)])
    size = tokenizer.get_vocab_size()
    settings = families.config("llama") | {"vocab_size": size, "eos_token_id": 256, "max_position_embeddings": 4096}
    families.write("llama", folder, built=families.build(settings, seed=3))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(settings))
    configuration = json.loads((folder / "tokenizer_config.json").read_text())
    configuration |= {"eos_token": "<eot>", "unk_token": None, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    return load(folder, name="tiny")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with ExitStack() as stack:

        @cache
        def start(family: str) -> RunningServer:
            template, marks, _ = FAMILIES[family]
            target = model(tmp_path_factory.mktemp("tiny"), template, marks)
            return stack.enter_context(running_server("suffix", model=target, max_batch_size=16))

        yield start


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(server: RunningServer, family: str, **body: Any) -> dict[str, Any]:
    """A request's body; the mark that ends thoughts is made likely, which random weights would hardly write."""
    mark = FAMILIES[family][2]
    bias = {str(256 + 1 + FAMILIES[family][1].index(mark)): 4} if mark else {}
    defaults = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "n": 2, "seed": 5}
    return {"model": server.model.name, "logit_bias": bias, **defaults, **body}


def answers(server: RunningServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices, which are the same however they are asked for."""
    choices = whole(server, body)
    assert streamed(server, body) == choices
    assert whole(server, body | {"use_speculative": False}) == choices
    return choices


def usage(server: RunningServer, body: dict[str, Any]) -> tuple[int, int]:
    with server.client as client:
        counted = client.post("/v1/chat/completions", json=body).json()["usage"]
    return counted["completion_tokens_details"]["reasoning_tokens"], counted["completion_tokens"]


@pytest.mark.parametrize("form", [JSON, {"guided_regex": r"\s*[a-z]{2}<\|end\|> ?"}, {"grammar": 'start: "<" /[a-z]/'}])
@pytest.mark.parametrize("budget", [None, 0, 6])
def test_a_format_binds_the_answer_and_not_its_thoughts(
    serve: Any, family: str, form: dict[str, Any], budget: int | None
) -> None:
    if form.get("guided_regex") and family == "harmony":
        form = {"guided_regex": r"\s*[a-z]{2} ?"}
    server = serve(family)
    body = asked(server, family, **form, **({} if budget is None else {"thinking_budget": budget}))
    ended = 0
    for choice in answers(server, body):
        ended += choice["finish_reason"] == "stop"
        if choice["finish_reason"] == "length":
            assert budget is None
        elif "response_format" in form:
            assert 0 <= json.loads(choice["content"])["n"] <= 99
        else:
            assert re.fullmatch(form.get("guided_regex", "<[a-z]"), choice["content"])
    assert ended or budget is None


@pytest.mark.parametrize("budget", [0, 1, 9])
def test_a_budget_ends_thoughts_in_any_marks_and_they_are_counted(serve: Any, family: str, budget: int) -> None:
    server = serve(family)
    _, marks, mark = FAMILIES[family]
    never = {str(256 + 1 + marks.index(mark)): -100} if mark else {}
    body = asked(server, family, **JSON, thinking_budget=budget, n=1, logit_bias=never)
    [choice] = answers(server, body)
    assert 0 <= json.loads(choice["content"])["n"] <= 99
    reasoning, completion = usage(server, body)
    longest = len("<|channel|>analysis<|message|><|end|><response></response>")
    assert bool(choice["reasoning"].strip()) <= bool(reasoning)
    assert reasoning <= budget + longest
    assert reasoning < completion


def test_a_response_has_its_format_too(serve: Any, family: str) -> None:
    server = serve(family)
    body = {"model": server.model.name, "input": "Hi", "max_output_tokens": 300, "thinking_budget": 5, "seed": 1}
    with server.client as client:
        format = {"type": "json_schema", "name": "n", "schema": SCHEMA}
        answer = client.post("/v1/responses", json=body | {"text": {"format": format}}).json()
    texts = [item["content"][0]["text"] for item in answer["output"] if item["type"] == "message"]
    assert [set(json.loads(text)) for text in texts] == [{"n"}]
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] < answer["usage"]["output_tokens"]


def test_a_message_that_is_gone_on_with_has_its_format_at_once(serve: Any, family: str) -> None:
    server = serve(family)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So:"}]
    body = asked(server, family, **JSON, messages=messages, continue_final_message=True)
    for choice in answers(server, body):
        assert set(json.loads(choice["content"])) == {"n"}
        assert not choice["reasoning"]


def test_stop_strings_end_no_thoughts(serve: Any, family: str) -> None:
    server = serve(family)
    form = {"guided_regex": "[xyz]{20}"}
    letters = list("abcd")
    body = asked(server, family, **form, thinking_budget=100, stop=letters, n=1)
    [choice] = answers(server, body)
    assert re.fullmatch("[xyz]{20}", choice["content"])
    [cut] = answers(server, asked(server, family, **form, thinking_budget=100, stop=["x", "y", "z"], n=1))
    assert (cut["content"], cut["finish_reason"]) == ("", "stop")
    assert cut["reasoning"] == choice["reasoning"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "mcp.pick"}}])
@pytest.mark.parametrize("stop", [None, ["n", "{"]])
def test_harmony_calls_can_be_required(serve: Any, choice: Any, stop: Any) -> None:
    server = serve("harmony")
    body = asked(server, "harmony", tools=[PICK, LATE], tool_choice=choice, thinking_budget=8, max_tokens=500)
    # Content before a call, harmony's preamble, is free: it ends as thoughts do.
    found = answers(server, body | ({"stop": stop} if stop and choice != "required" else {}))
    called = [call for answer in found for call in answer["calls"]]
    for name, arguments in called:
        assert name in (("mcp.pick", "late") if choice == "required" else ("mcp.pick",))
        assert set(json.loads(arguments)) == {"n"}
    assert all(answer["finish_reason"] in ("tool_calls", "length", "stop") for answer in found)
    assert all(answer["calls"] or answer["finish_reason"] != "tool_calls" for answer in found)


def test_a_harmony_answer_beside_tools_is_a_call_or_in_its_format(serve: Any) -> None:
    server = serve("harmony")
    kinds = set()
    for seed in range(4):
        body = asked(server, "harmony", tools=[PICK], **JSON, thinking_budget=3, seed=seed, n=4)
        for choice in whole(server, body):
            kinds.add(choice["finish_reason"])
            [text] = [arguments for _, arguments in choice["calls"]] or [choice["content"]]
            assert set(json.loads(text)) == {"n"}
            assert bool(choice["calls"]) == (choice["finish_reason"] == "tool_calls")
    assert kinds == {"stop", "tool_calls"}


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        published("openai-gpt-oss-120b", MARKS),
        published("CohereForAI-c4ai-command-r7b-12-2024-tool_use", FAMILIES["command"][1]),
        published("google-gemma-4-31B-it", FAMILIES["gemma4"][1]),
        published("mistralai-Ministral-3-14B-Reasoning-2512", FAMILIES["mistral"][1]),
        published("MiniMax-M2", ("<think>", "</think>")),
    ],
)
def test_the_makers_own_templates_bind_the_answer(
    name: str, marks: tuple[str, ...], start_server: Any, tmp_path: Path
) -> None:
    server = start_server(model=model(tmp_path, source(name), marks))
    for thinking in (None, True, False):
        options = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 300, "n": 2, "seed": 2}
        for choice in whole(server, body | JSON | options | {"thinking_budget": 7}):
            assert set(json.loads(choice["content"])) == {"n"}
            assert not any(mark in choice["content"] + choice["reasoning"] for mark in marks)
