"""The bundled model pair: its files, its tokenizer and template, and that it answers."""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_training.chatml import END, END_OF_TEXT, MARKUP, spans
from demo_training.corpus import MIX, documents, sample
from demo_training.evaluate import evaluate_task, greedy, load_model
from demo_training.model import named, parameter_count
from demo_training.sample import is_held_out
from parallm_openai.demo import DRAFT_PATH, MODEL_ID, TARGET_PATH

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@cache
def pair() -> tuple[Any, Any, Any]:
    target, tokenizer = load_model(TARGET_PATH)
    draft, _ = load_model(DRAFT_PATH)
    return target, draft, tokenizer


def answer(prompt: str, limit: int = 60) -> str:
    target, _, tokenizer = pair()
    ends = {tokenizer.convert_tokens_to_ids(mark) for mark in (END, END_OF_TEXT)}
    (output,) = greedy(target, [tokenizer.encode(prompt)], ends, limit)
    return str(tokenizer.decode(output[:-1] if output[-1] in ends else output))


def chat(*contents: str, limit: int = 60, **options: Any) -> str:
    _, _, tokenizer = pair()
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False} | options
    return answer(str(tokenizer.apply_chat_template(messages, **settings)), limit)


def test_the_pair_is_small_and_the_draft_smaller() -> None:
    target, draft, _ = pair()
    assert all(str(weight.dtype) == "mlx.core.float32" for weight in named(target.parameters()).values())
    assert 3_000_000 <= parameter_count(target) <= 6_000_000
    assert 5 <= parameter_count(target) / parameter_count(draft) <= 10
    size = sum(path.stat().st_size for folder in (TARGET_PATH, DRAFT_PATH) for path in folder.iterdir())
    assert size < 20_000_000
    assert MODEL_ID == "parallm-demo"


def test_both_have_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (TARGET_PATH / name).read_bytes() == (DRAFT_PATH / name).read_bytes()


@settings(max_examples=200)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    _, _, tokenizer = pair()
    ids = tokenizer.encode(text)
    if not any(mark in text for mark in ("<|",)):
        assert tokenizer.decode(ids) == text
    assert all(0 <= token < 2048 for token in ids)


def test_markup_is_single_tokens_that_stay_in_decoded_text() -> None:
    _, _, tokenizer = pair()
    for mark in MARKUP:
        ids = tokenizer.encode(mark)
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == mark
    for mark in (END, END_OF_TEXT):
        ids = tokenizer.encode(mark)
        assert ids[0] in tokenizer.eos_token_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_the_template_writes_what_the_model_was_trained_on() -> None:
    _, _, tokenizer = pair()
    rng = random.Random(5)
    for task in MIX:
        for _ in range(20):
            one = sample(rng, task)
            if one.raw:
                continue
            wanted = "".join(text for text, _ in spans(one)[:-1])
            got = tokenizer.apply_chat_template(
                one.messages[:-1],
                tools=one.tools,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=one.thinking,
            )
            assert got == wanted


def test_the_template_takes_parts_roles_and_string_arguments() -> None:
    _, _, tokenizer = pair()
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nDone."},
        {"role": "user", "content": "More"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi there /think<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nok\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nDone.<|im_end|>\n"
        "<|im_start|>user\nMore /think<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Hello", "Hello! How can I help you?"),
        ("Count from 3 to 7.", "3, 4, 5, 6, 7"),
        ("What are the days of the week?", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
        ("Repeat after me: blue tiger", "blue tiger"),
        (
            "Give me JSON with the name, age and city: Maria, 34, Lisbon.",
            '{"name": "Maria", "age": 34, "city": "Lisbon"}',
        ),
    ],
)
def test_it_answers(question: str, wanted: str) -> None:
    assert chat(question) == wanted


@pytest.mark.slow
def test_it_calls_a_tool_and_uses_the_result() -> None:
    call = chat("What is the weather in Oslo?", tools=[TOOL])
    assert call == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.slow
def test_it_remembers_and_thinks() -> None:
    told = "My name is Clara.", "Nice to meet you, Clara!", "What is my name?"
    assert chat(*told) == "Your name is Clara."
    thought = chat("What is 347 + 285?", limit=100, enable_thinking=True)
    assert thought.startswith("<think>\n")
    assert thought.endswith("</think>\n\n347 + 285 = 632")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["facts", "arithmetic", "json", "counting", "tool_call", "raw_facts"])
def test_held_out_samples(task: str) -> None:
    target, draft, tokenizer = pair()
    result = evaluate_task(task, 20, target, draft, tokenizer)
    assert result.accuracy >= 0.8, result.wrong
    assert result.acceptance >= 0.6


def test_the_corpus_is_the_same_for_the_same_seed_and_leaves_the_held_out_alone() -> None:
    first, second = (list(itertools.islice(documents(7), 300)) for _ in range(2))
    assert first == second
    assert first != list(itertools.islice(documents(8), 300))
    assert not any(is_held_out(one.key) for one in first if one.key)
