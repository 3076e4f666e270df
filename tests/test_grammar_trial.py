"""A hostile grammar costs its own request an error, and nobody anything else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from functools import partial

import psutil
import pytest
from support.servers import demo_target

from parallm_openai.text.grammar.compiler import TRIAL_PARSER, Grammars
from parallm_openai.text.grammar.token_grammar import GrammarBusyError, GrammarError
from parallm_openai.text.grammar.trial import GrammarTrial, TooSlowError, TrialLimits
from parallm_openai.text.tokenizer import Tokenizer

# Each test starts a process of its own.
pytestmark = pytest.mark.slow

TARGET = demo_target()


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    limits = TrialLimits(slow_seconds=1.0, parser=TRIAL_PARSER)
    tokenizer = Tokenizer(TARGET.tokenizer, TARGET.vocab_size)
    made = Grammars(tokenizer.wrapper._tokenizer, TARGET.vocab_size, TARGET.eos_token_ids, limits)
    yield made
    made.close()


def chain_of_references(length: int) -> dict[str, object]:
    def link(to: str) -> dict[str, object]:
        return {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{to}"}}, "required": ["x"]}

    links: dict[str, object] = {f"d{at}": link(f"d{at + 1}") for at in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


def chain_of_rules(length: int) -> str:
    return "start: r0\n" + "".join(f'r{at}: "a" r{at + 1}\n' for at in range(length)) + f'r{length}: "b"\n'


def test_a_schema_of_a_thousand_references_is_served(grammars: Grammars) -> None:
    assert grammars.json_schema(chain_of_references(1000)).matcher().error is None


def test_a_lark_grammar_of_three_thousand_rules_is_served(grammars: Grammars) -> None:
    assert grammars.lark(chain_of_rules(3000)).matcher().error is None


@pytest.mark.parametrize("length", [100_000, 250_000])
def test_rules_that_overflow_the_stack_are_refused(grammars: Grammars, length: int) -> None:
    with pytest.raises(GrammarError):
        grammars.lark(chain_of_rules(length))
    assert grammars.regex("[0-9]{3}").matcher().error is None


@pytest.mark.parametrize("multiple", [99_999_989, 9_999_991])
def test_a_number_that_never_compiles_is_refused_in_time(grammars: Grammars, multiple: int) -> None:
    with pytest.raises(GrammarError, match=r"too (long|much memory)"):
        grammars.json_schema({"type": "integer", "multipleOf": multiple})


def test_a_limit_that_is_met_some_tokens_later_is_found_at_once(grammars: Grammars) -> None:
    properties = {f"p{at}": {"type": "string"} for at in range(2500)}
    with pytest.raises(GrammarError):
        grammars.json_schema({"type": "object", "properties": properties})


def test_a_limit_that_is_met_behind_a_long_forced_text_is_found_too(grammars: Grammars) -> None:
    wide = {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(2500)}}
    schema = {"type": "object", "properties": {"a": {"const": "long " * 100}, "b": wide}, "required": ["a", "b"]}
    with pytest.raises(GrammarError):
        grammars.json_schema(schema)


def test_a_grammar_that_would_hold_up_every_step_is_refused(grammars: Grammars) -> None:
    with pytest.raises(GrammarError):
        grammars.regex("ab" * 400_000)


@pytest.mark.slow
def test_slow_grammars_hold_up_no_quick_one(grammars: Grammars) -> None:
    bombs = [
        grammars.submit(partial(grammars.json_schema, {"type": "integer", "multipleOf": 99_000_001 + 2 * n}))
        for n in range(8)
    ]
    while not any(bomb.running() for bomb in bombs):
        time.sleep(0.01)
    time.sleep(1)
    assert grammars.submit(lambda: grammars.regex("quick{7}")).result(timeout=240).matcher().error is None
    assert not all(bomb.done() for bomb in bombs)
    assert {type(bomb.exception(timeout=120)) for bomb in bombs} <= {TooSlowError, GrammarError, GrammarBusyError}


def test_a_refusal_is_remembered(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    run = GrammarTrial.run

    def counted(trial: GrammarTrial, grammar: str, seconds: float) -> int:
        tried.append(grammar)
        return run(trial, grammar, seconds)

    monkeypatch.setattr(GrammarTrial, "run", counted)

    def refuse() -> int:
        with pytest.raises(GrammarError):
            grammars.json_schema({"type": "integer", "multipleOf": 99_999_971})
        return len(tried)

    assert 0 < refuse() == refuse()


def test_many_who_ask_for_one_grammar_compile_it_once(grammars: Grammars) -> None:
    found: list[object] = []
    ask = [threading.Thread(target=lambda: found.append(grammars.regex("[a-z]{2,7}x"))) for _ in range(16)]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert len({id(grammar) for grammar in found}) == 1


def test_a_lost_child_costs_no_request(grammars: Grammars) -> None:
    grammars.regex("a{3}")
    for trial in grammars._trials:
        assert trial._process is not None
        trial._process.kill()
    for size in range(4, 8):
        assert grammars.regex(f"b{{{size}}}").matcher().error is None


def test_closing_ends_the_children_and_what_they_compile() -> None:
    tokenizer = Tokenizer(TARGET.tokenizer, TARGET.vocab_size)
    made = tokenizer.grammars(TARGET.eos_token_ids)
    before = set(psutil.Process().children())
    pending = made.submit(lambda: made.json_schema({"type": "integer", "multipleOf": 99_999_989}))
    while not set(psutil.Process().children()) - before:
        time.sleep(0.01)
    made.close()
    with pytest.raises(GrammarError):
        pending.result(timeout=30)


def test_what_is_kept_stays_within_its_bytes(grammars: Grammars) -> None:
    cache = grammars._cache
    for at in range(20):
        grammars.lark('start: "' + "x" * 20_000 + f'{at}"')
    assert 20 * 20_000 < cache.bytes <= cache._limit
    cache._limit, limit = 100_000, cache._limit
    grammars.regex("c{9}")
    assert cache.bytes <= 100_000
    cache._limit = limit


def test_a_schema_is_judged_by_its_text_alone(grammars: Grammars) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}}
    assert grammars.json_schema(schema) is grammars.json_schema(json.loads(json.dumps(schema)))
