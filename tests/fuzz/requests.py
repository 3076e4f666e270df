"""Requests as well-behaved clients send them: what mutations begin with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[dict[str, Any]]
FEW = 16

QUESTIONS = ["Hello!", "What is the weather in Paris?", "What is 12 + 30?", "Tell me a story.", "JSON: Anna is 7."]
TOOL = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def _object(model: str, needed: dict[str, Any], optional: dict[str, st.SearchStrategy[Any]]) -> Strategy:
    return st.fixed_dictionaries({"model": st.just(model), **needed}, optional=optional)


@cache
def sampling() -> dict[str, st.SearchStrategy[Any]]:
    """The fields that every generating route has."""
    return {
        "temperature": st.sampled_from([0, 0.7, 2]),
        "top_p": st.sampled_from([0, 0.5, 1]),
        "seed": st.integers(0, 99),
        "presence_penalty": st.sampled_from([-2, 0.5]),
        "frequency_penalty": st.sampled_from([-2, 0.5]),
        "logit_bias": st.just({"300": -100, "65": 2}),
        "stop": st.sampled_from([".", ["a", "b"], []]),
        "top_k": st.sampled_from([-1, 0, 1, 40]),
        "min_p": st.sampled_from([0, 0.1, 1]),
        "repetition_penalty": st.sampled_from([0.5, 1.2, 10]),
        "min_tokens": st.sampled_from([0, 5]),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.just([5, 6]),
        "use_speculative": st.booleans(),
        "guided_regex": st.just("[a-z]{1,5}"),
        "guided_json": st.just(SCHEMA),
        "grammar": st.just('start: "a" | "b"'),
        "stream": st.booleans(),
    }


@cache
def chat(model: str) -> Strategy:
    message = st.sampled_from(QUESTIONS).map(lambda text: {"role": "user", "content": text})
    parts = st.sampled_from(QUESTIONS).map(lambda text: {"role": "user", "content": [{"type": "text", "text": text}]})
    return _object(
        model,
        {"messages": st.lists(message | parts, min_size=1, max_size=2), "max_tokens": st.integers(1, FEW)},
        {
            **sampling(),
            "n": st.integers(1, 3),
            "logprobs": st.just(True),
            "top_logprobs": st.integers(0, 3),
            "stream_options": st.just({"include_usage": True}),
            "response_format": st.sampled_from(
                [
                    {"type": "text"},
                    {"type": "json_object"},
                    {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
                ]
            ),
            "tools": st.just([{"type": "function", "function": TOOL}]),
            "tool_choice": st.sampled_from(
                ["auto", "none", "required", {"type": "function", "function": {"name": "get_weather"}}]
            ),
            "parallel_tool_calls": st.booleans(),
            "reasoning_effort": st.sampled_from(["none", "low"]),
            "thinking_budget": st.integers(0, 5),
            "chat_template_kwargs": st.just({"enable_thinking": True}),
            "metadata": st.just({"a": "b"}),
        },
    )


@cache
def completion(model: str) -> Strategy:
    prompts: list[Any] = ["Once upon a time", [300, 301], ["a", "b"], [[300], [301, 302]], None]
    return _object(
        model,
        {"prompt": st.sampled_from(prompts), "max_tokens": st.integers(1, FEW)},
        {
            **sampling(),
            "n": st.integers(1, 2),
            "best_of": st.integers(1, 3),
            "echo": st.booleans(),
            "logprobs": st.integers(0, 3),
            "suffix": st.just("the end"),
            "stream_options": st.just({"include_usage": True}),
        },
    )


@cache
def response(model: str) -> Strategy:
    items = [
        {"role": "user", "content": "Hello!"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c", "output": "20"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ]
    inputs = st.sampled_from(QUESTIONS) | st.lists(st.sampled_from(items), min_size=1, max_size=4)
    return _object(
        model,
        {"input": inputs, "max_output_tokens": st.integers(1, FEW)},
        {
            **sampling(),
            "instructions": st.just("Be short."),
            "tools": st.just([{"type": "function", **TOOL}]),
            "tool_choice": st.sampled_from(["auto", "required", {"type": "function", "name": "get_weather"}]),
            "text": st.sampled_from(
                [
                    {"format": {"type": "json_object"}},
                    {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}, "verbosity": "medium"},
                ]
            ),
            "reasoning": st.just({"effort": "low"}),
            "store": st.booleans(),
            "include": st.just(["message.output_text.logprobs"]),
            "top_logprobs": st.integers(0, 2),
            "metadata": st.just({"a": "b"}),
            "truncation": st.just("disabled"),
        },
    )


@cache
def generate(model: str) -> Strategy:
    del model
    prompt = st.sampled_from(["Once upon", [300, 301]])
    return st.fixed_dictionaries({"prompt": prompt, "max_tokens": st.integers(1, FEW)}, optional=sampling())


@cache
def generate_batch(model: str) -> Strategy:
    del model
    prompts = st.lists(st.sampled_from(["Once upon", [300, 301], ""]), min_size=1, max_size=4)
    options = {name: value for name, value in sampling().items() if name != "stream"}
    return st.fixed_dictionaries({"prompts": prompts, "max_tokens": st.integers(1, FEW)}, optional=options)


ROUTES: dict[str, Callable[[str], Strategy]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/responses": response,
    "/v1/generate": generate,
    "/v1/generate_batch": generate_batch,
    "/v1/chat/completions/render": chat,
    "/tokenize": lambda model: _object(
        model, {"prompt": st.sampled_from(QUESTIONS)}, {"add_special_tokens": st.booleans()}
    ),
    "/detokenize": lambda model: _object(model, {"tokens": st.lists(st.integers(0, 2047), max_size=5)}, {}),
}
