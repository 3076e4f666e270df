"""Traces and step costs are files: what is written can be read, and what cannot be used is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated import step_costs

from parallm_openai.simulation.costs import StepCosts
from parallm_openai.simulation.problems import FileError
from parallm_openai.simulation.trace import Streams, TraceRequest, read_trace, write_trace
from parallm_openai.simulation.workloads import Workload


def one_forward(seconds: Any) -> dict[str, Any]:
    """A grid of one point."""
    return {"rows": [1], "sizes": [1], "contexts": [0], "seconds": [[[seconds]]]}


PREFIXES = st.lists(st.tuples(st.text(min_size=1, max_size=4), st.integers(1, 50)), max_size=3).map(tuple)


@settings(max_examples=30)
@given(prefix=PREFIXES, own=st.integers(0, 20), output=st.integers(1, 9), session=st.none() | st.text(min_size=1))
def test_a_trace_is_read_as_it_was_written(
    prefix: tuple[tuple[str, int], ...], own: int, output: int, session: str | None, tmp_path_factory: Any
) -> None:
    shared = sum(length for _, length in prefix)
    trace = [TraceRequest(0.0, 5, 1), TraceRequest(1.25, max(1, shared + own), output, prefix, session)]
    file = tmp_path_factory.getbasetemp() / "trace.jsonl"
    write_trace(file, trace)
    assert read_trace(file) == trace


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Invalid JSON: EOF while parsing an object at column 1"),
        ("[1, 2]", "line 2: Input should be an object"),
        ("null", "line 2: Input should be an object"),
        ('{"at": true, "prompt_tokens": 4, "output_tokens": 1}', "line 2: at: Input should be a valid number"),
        ('{"at": 1, "prompt_tokens": "4", "output_tokens": 1}', "line 2: prompt_tokens: Input should be a valid int"),
        ('{"at": 1, "prompt_tokens": 4.5, "output_tokens": 1}', "line 2: prompt_tokens: Input should be a valid int"),
        ('{"at": 1764255555, "prompt_tokens": 4, "output_tokens": 1}', "line 2: at: Input should be less than"),
        ('{"at": 1e999, "prompt_tokens": 4, "output_tokens": 1}', "line 2: at: "),
        ('{"at": 1, "prompt_tokens": 4, "output_tokens": 97}', "line 2: prompt_tokens and output_tokens: 101 together"),
        ('{"at": 1, "prompt_tokens": 3, "output_tokens": 1, "prefix": [["a"]]}', "line 2: prefix.0.1: Field required"),
        ('{"at": 1, "prompt_tokens": 3, "output_tokens": 1, "session": 7}', "line 2: session: Input should be"),
        ("[" * 100_000, "line 2: Invalid JSON"),
        ('{"at": 1, "prompt_tokens": 4}', "line 2: output_tokens: Field required"),
        ('{"at": 1, "prompt_tokens": 0, "output_tokens": 1}', "line 2: prompt_tokens: "),
        ('{"at": -1, "prompt_tokens": 1, "output_tokens": 1}', "line 2: at: "),
        ('{"at": 0.1, "prompt_tokens": 1, "output_tokens": 1}', "line 2: at: must not be before the 0.5"),
        ('{"at": 1, "prompt_tokens": 1, "output_tokens": 1, "user": "me"}', "line 2: user: Unexpected"),
        ('{"at": 1, "prompt_tokens": 3, "output_tokens": 1, "prefix": [["a", 4]]}', "line 2: prefix: has 4 tokens"),
        ('{"at": 1, "prompt_tokens": 3, "output_tokens": 1, "prefix": [["", 2]]}', "line 2: prefix.0.0: "),
        ('{"at": NaN, "prompt_tokens": 3, "output_tokens": 1}', "line 2: "),
    ],
)
def test_a_bad_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"at": 0.5, "prompt_tokens": 4, "output_tokens": 4}\n' + line + "\n")
    with pytest.raises(FileError) as raised:
        read_trace(file, context_length=100)
    assert str(raised.value).startswith(f"{file}: {said}")


def test_a_trace_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(FileError, match="has no requests"):
        read_trace(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="is not UTF-8"):
        read_trace(tmp_path / "binary.jsonl")


def test_a_request_may_fill_the_context(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.jsonl", [TraceRequest(0.0, 90, 10)])
    assert read_trace(tmp_path / "trace.jsonl", context_length=100)


@given(a=PREFIXES, b=PREFIXES, own=st.integers(0, 5))
def test_prompts_have_in_common_what_their_prefixes_have(
    a: tuple[tuple[str, int], ...], b: tuple[tuple[str, int], ...], own: int
) -> None:
    streams = Streams()
    expected = 0
    for (name, length), (other, other_length) in zip(a, b, strict=False):
        if name != other:
            break
        expected += min(length, other_length)
        if length != other_length:
            break
    prompts = [
        streams.prompt(TraceRequest(0.0, sum(length for _, length in prefix) + own + 1, 1, prefix)) for prefix in (a, b)
    ]
    (one, answer), (two, _) = prompts
    common = next((at for at, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    # A stream may go on with the same name: then the next part has more of it in common.
    assert common == expected or (common > expected and len({*dict(a), *dict(b)}) < len(a) + len(b))
    assert answer == one[-1]


def test_step_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    step_costs().write(tmp_path / "costs.json")
    assert StepCosts.read(tmp_path / "costs.json") == step_costs()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verify": {"rows": [1, 1], "sizes": [1], "contexts": [0], "seconds": [[[1]], [[1]]]}}, "verify: rows must"),
        ({"verify": {"rows": [1], "sizes": [1], "contexts": [0], "seconds": []}}, "verify: seconds must have an entry"),
        (
            {"verify": {"rows": [1, 2], "sizes": [1], "contexts": [0], "seconds": [[], [[1]]]}},
            "verify: seconds must have an entry",
        ),
        ({"draft": None}, "drafter: a draft model needs draft, draft_prefill and acceptance"),
        ({"acceptance": [1.5]}, "acceptance.0: Input should be less than or equal to 1"),
        ({"speed": 3}, "speed: Extra inputs"),
        ({"context_length": "long"}, "context_length: Input should be a valid integer"),
        ({"context_length": "4096"}, "context_length: Input should be a valid integer"),
        ({"context_length": 10**30}, "context_length: Input should be less than or equal to 10000000"),
        ({"verify": one_forward(0)}, "verify.seconds.0.0.0: Input should be greater than or equal to 0.000001"),
        ({"verify": one_forward(-1)}, "verify.seconds.0.0.0: Input should be greater than or equal to 0.000001"),
        ({"draft": one_forward("fast")}, "draft.seconds.0.0.0: Input should be a valid number"),
        ({"prefill": one_forward(float("nan"))}, "prefill.seconds.0.0.0: Input should be a finite number"),
        ({"prefill": one_forward(1e308)}, "prefill.seconds.0.0.0: Input should be less than or equal to 3600"),
        ({"step_seconds": [0.1]}, "step_seconds.1: Field required"),
        ({"step_seconds": [-0.1, 0]}, "step_seconds.0: Input should be greater than or equal to 0"),
        ({"spread": [0]}, "spread.0: Input should be greater than or equal to 0.1"),
        ({"spread": []}, "spread: Tuple should have at least 1 item"),
        ({"request_seconds": -1}, "request_seconds: Input should be greater than or equal to 0"),
        ({"serving_factor": 1e9}, "serving_factor: Input should be less than or equal to 1000"),
        ({"traits": {"padding_limit": 0, "forward_tokens": 1, "prefill_tokens": 1}}, "traits.padding_limit: Input"),
    ],
)
def test_bad_step_costs_are_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(json.loads(step_costs().model_dump_json()) | changes))
    with pytest.raises(FileError) as raised:
        StepCosts.read(file)
    assert str(raised.value).startswith(f"{file}: {said}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": "m"', "\xff", "[" * 100_000])
def test_what_holds_no_step_costs_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(FileError) as raised:
        StepCosts.read(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


def test_step_costs_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        StepCosts.read(tmp_path / "none.json")


def test_made_up_traces_survive_the_file(tmp_path: Path) -> None:
    trace = Workload(10.0, 10.0, content="agents").requests()
    write_trace(tmp_path / "trace.jsonl", trace)
    assert read_trace(tmp_path / "trace.jsonl") == trace
