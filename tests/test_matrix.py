"""Every feature with every other: any two choices meet in some case, and the output is that of plain decoding.

A case answers chats over HTTP in a batch, with drafts, among neighbours of other kinds. Its reference is the same model
without drafts and stored prefixes, one request at a time. docs/matrix.md shows what is crossed.
"""

from __future__ import annotations

import atexit
import copy
import runpy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from allpairspy import AllPairs
from support import families, mtp_heads
from support.kinds import KINDS, disturbed
from support.processes import ROOT
from support.servers import RunningServer, demo_target, running_server

from parallm_openai.engine import step, verification
from parallm_openai.engine.cache.states import BatchStates, RowStates
from parallm_openai.engine.row import Row
from parallm_openai.models.loading import LoadedModel

Body = dict[str, Any]
Choice = dict[str, Any]

FACTORS: dict[str, list[str]] = {
    "family": ["dense", "linear attention", "short convolution", "state space", "recurrent"],
    "drafter": ["suffix", "fair draft", "perfect draft", "hostile draft", "dense draft", "MTP head", "none"],
    "draft length": ["auto", "3", "7"],
    # Under rejection the tokens of sampled rows depend on the drafts; their distribution does not.
    "sampling": ["greedy", "greedy, acceptance by rejection", "seeded", "seeded, top-p, top-k and min-p"],
    "penalties": ["none", "presence and frequency", "repetition"],
    "bias": ["none", "some"],
    "logprobs": ["none", "three"],
    "answer": ["free", "JSON", "regex", "a tool that must be called", "tools that may be called"],
    "thoughts": ["none", "some", "within a budget"],
    "stop": ["none", "a string"],
    "choices": ["one", "three"],
    "prefix": ["new", "stored"],
    "memory": ["ample", "rows are sent back"],
}
FUNCTIONS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": True,
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
    }
    for name in ("add", "multiply")
]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}}, "required": ["ok"]}
QUESTION = "Once upon a time there was a lighthouse, and once upon a time there was a boat. Which of them was first?"
# The fields of a request that make up a choice.
FIELDS: Mapping[str, Mapping[str, Body]] = {
    "sampling": {
        "greedy": {"temperature": 0},
        "greedy, acceptance by rejection": {"temperature": 0},
        "seeded": {"temperature": 1, "seed": 11},
        "seeded, top-p, top-k and min-p": {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.02, "seed": 11},
    },
    "penalties": {
        "none": {},
        "presence and frequency": {"presence_penalty": 0.7, "frequency_penalty": 0.3},
        "repetition": {"repetition_penalty": 1.2},
    },
    "bias": {"none": {}, "some": {"logit_bias": {"5": -100, "17": 2, "300": 3}}},
    "logprobs": {"none": {}, "three": {"logprobs": True, "top_logprobs": 3}},
    "answer": {
        "free": {},
        "JSON": {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}},
        "regex": {"structured_outputs": {"regex": "[a-f ]{3,20}!"}},
        "a tool that must be called": {"tools": FUNCTIONS, "tool_choice": "required"},
        "tools that may be called": {"tools": FUNCTIONS},
    },
    "thoughts": {"none": {}, "some": {}, "within a budget": {"thinking_budget": 6}},
    "stop": {"none": {}, "a string": {"stop": ["e", "ing"]}},
    "choices": {"one": {}, "three": {"n": 3}},
}


@dataclass(frozen=True)
class Case:
    """One choice of each factor."""

    chosen: tuple[str, ...]

    def __getitem__(self, factor: str) -> str:
        return self.chosen[list(FACTORS).index(factor)]

    def __str__(self) -> str:
        return ", ".join(self.chosen)

    @property
    def body(self) -> Body:
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
        for factor, fields in FIELDS.items():
            body |= fields[self[factor]]
        return body

    @property
    def thinks(self) -> bool:
        return self["thoughts"] != "none"

    @property
    def engine(self) -> dict[str, Any]:
        length = self["draft length"]
        return {
            "draft_length": length if length == "auto" else int(length),
            "speculative_acceptance": "rejection" if "rejection" in self["sampling"] else "coupled",
            "max_batch_size": 6,
            "max_batch_tokens": 160 if self["memory"] == "rows are sent back" else 32_768,
            "prefill_chunk": 32,
        }


# A head's layer is of its family, and only one of these has heads.
HEADS = {"family": ["linear attention"], "drafter": ["MTP head"]}
OTHERS = {"drafter": [name for name in FACTORS["drafter"] if name not in HEADS["drafter"]]}
CASES = [Case(tuple(chosen)) for some in (OTHERS, HEADS) for chosen in AllPairs(list({**FACTORS, **some}.values()))]


@cache
def loaded(kind: str, *, thinks: bool = False) -> LoadedModel:
    """A random model with the bundled tokenizer; if it thinks, with a template that opens its thoughts."""
    target = demo_target()
    config = {**families.config(KINDS[kind].family), "vocab_size": target.vocab_size}
    tokenizer = copy.deepcopy(target.tokenizer)
    if thinks:
        begin = "<|im_start|>assistant\\n"
        before, _, after = str(tokenizer.chat_template).rpartition(begin)
        tokenizer.chat_template = f"{before}{begin}<think>\\n{after}"
    model = families.build(config, seed=3)
    return replace(target, model=model, config=config, name=kind, tokenizer=tokenizer, path=_heads())


@cache
def _heads() -> Path:
    """A folder with the head of the one family that has one."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    weights = mtp_heads.head_weights(KINDS["linear attention"].family)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@cache
def drafter(kind: str, name: str) -> Any:
    """What drafts: a model, the name of a drafter that needs none, or nothing."""
    noise = {"perfect draft": 0.0, "fair draft": 0.1, "dense draft": 0.1, "hostile draft": 3.0}
    if name not in noise:
        return {"none": None, "MTP head": "mtp"}.get(name, name)
    own = loaded("dense" if name == "dense draft" else kind)
    return replace(own, model=disturbed(families.build(own.config, seed=3), noise[name]))


def answered(server: RunningServer, body: Body) -> list[Choice]:
    with server.client as client:
        answer = client.post("/v1/chat/completions", json={"model": server.model.name, **body})
    assert answer.status_code == 200, answer.text
    choices: list[Choice] = answer.json()["choices"]
    for choice in choices:
        # Their ids are random.
        for call in choice["message"].get("tool_calls") or ():
            del call["id"]
        if choice.get("logprobs"):
            choice["logprobs"] = [
                (entry["token"], pytest.approx(entry["logprob"], abs=1e-3)) for entry in choice["logprobs"]["content"]
            ]
    return choices


@pytest.fixture(scope="module")
def references() -> Iterator[Servers]:
    """Servers without any of what is tried, by family and whether it thinks; made when they are wanted."""
    with ExitStack() as stack:
        yield Servers(stack)


class Servers(dict[tuple[str, bool], RunningServer]):
    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, key: tuple[str, bool]) -> RunningServer:
        kind, thinks = key
        plain = running_server(None, model=loaded(kind, thinks=thinks), max_batch_size=1, prefix_cache_tokens=0)
        self[key] = self._stack.enter_context(plain)
        return self[key]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_features_together_change_no_output(
    case: Case, references: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answered(references[case["family"], case.thinks], case.body)
    found, drafted = together(case)
    assert found == expected
    # The engine recovers from a step that failed; the output would not tell.
    assert not [record.message for record in caplog.records if record.name == step.log.name]
    if case["draft length"] != "auto" and case["drafter"] not in ("none", "suffix"):
        assert drafted > 0, "a case without drafts says nothing of them"


def together(case: Case) -> tuple[list[Choice], int]:
    """The choices of a case, answered with all that it asks for; and how many tokens were drafted."""
    model = loaded(case["family"], thinks=case.thinks)
    with running_server(drafter(case["family"], case["drafter"]), model=model, **case.engine) as server:
        if case["prefix"] == "stored":
            answered(server, case.body | {"max_tokens": 2, "n": 1})
        with ThreadPoolExecutor(4) as pool:
            neighbours = [pool.submit(answered, server, neighbour(number)) for number in range(3)]
            found = answered(server, case.body)
            for each in neighbours:
                each.result()
        return found, server.engine.stats()["speculative_stats"]["drafted_tokens"]


def neighbour(number: int) -> Body:
    return {
        "messages": [{"role": "user", "content": QUESTION[: 20 * number + 5]}],
        "max_tokens": 5 + 9 * number,
        "temperature": 1,
        "seed": number,
    }


def test_any_two_choices_meet_in_some_case() -> None:
    wanted = {
        frozenset((choice, other))
        for a, b in combinations(FACTORS, 2)
        for choice, other in product(_named(a), _named(b))
        if other[1] not in HEADS["drafter"] or a != "family" or choice[1] in HEADS["family"]
    }
    met = {frozenset(pair) for case in CASES for pair in combinations(zip(FACTORS, case.chosen, strict=True), 2)}
    assert met == wanted


def _named(factor: str) -> list[tuple[str, str]]:
    return [(factor, choice) for choice in FACTORS[factor]]


# Errors that must show in some case: what is done wrong, and how.

PLANTED: dict[str, tuple[object, str, Callable[[Any], Callable[..., Any]]]] = {
    "a state is that of a shorter beginning": (
        BatchStates,
        "copy_of",
        lambda own: lambda self, slot, length: _mislabelled(own(self, slot, length)),
    ),
    "a rejected draft is accepted": (verification, "accepted_count", lambda own: lambda draft, sampled: len(draft)),
    "penalties and grammars do not see drafts": (
        Row,
        "position",
        lambda own: lambda self, depth, drafts=(): own(self, depth, ()),
    ),
    "noise depends on the place in the batch": (
        Row,
        "position",
        lambda own: lambda self, *given: replace(own(self, *given), seed=self.seed + max(self.slot, 0)),
    ),
    "positions are sampled in the wrong order": (
        verification,
        "_positions",
        lambda own: lambda row, slot, drafts: own(row, slot, drafts)[::-1],
    ),
}


def _mislabelled(states: RowStates) -> RowStates:
    """A row's states with the earliest in the place of the newest."""
    if states.kept and states.spans:
        earliest = states.kept[min(states.kept)]
        states.spans = [replace(earliest, start=states.spans[-1].start)]
    return states


@pytest.mark.slow
@pytest.mark.parametrize("error", PLANTED)
def test_an_error_shows_in_some_case(error: str, references: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = PLANTED[error]
    for case in CASES:
        expected = answered(references[case["family"], case.thinks], case.body)
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, wrong(getattr(owner, name)))
            if together(case)[0] != expected:
                return
    pytest.fail("no case has noticed")


def test_the_page_says_what_is_crossed() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "matrix.py"))["page"]
    assert f"{page()}\n" == (ROOT / "docs" / "matrix.md").read_text(), "run scripts/matrix.py, as it says"
