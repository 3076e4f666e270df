"""Thoughts stay within their budget, and a grammar for the answer begins where the answer does, marks or none."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.tiny import DRAFTERS, greedy, run_all, seeded

from parallm_openai.engine.constraint import Mask
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.events import CallArguments, CallStart, Content, Event
from parallm_openai.text.grammar.answer_grammar import AnswerGrammar, AnswerMatcher, Bound, Fork, Free
from parallm_openai.text.reasoning import harmony
from parallm_openai.text.reasoning.splitter import Beginning, Marks
from parallm_openai.text.token_bytes import Lexicon

EOS = 0
THINK = Marks("<think>", "</think>")
FRAME = Marks("<answer>", "</answer>")
CHANNEL = Marks("<|channel>thought", "<channel|>")
SPECIAL = ["</s>", *harmony.MARKS, "<|channel>", "<channel|>", "</answer>"]
PIECES = ["<th", "ink", "</think", ">{", "k>{", ">\n\n", "</think>a", "<answer", "ana", "lysis", "final", "thought"]
TOKENS = [*SPECIAL, *string.ascii_lowercase, *" \n<>/{}=._", *PIECES, "commentary", "assistant", "to=functions."]
IDS = {token: index for index, token in enumerate(TOKENS)}
LEXICON = Lexicon([token.encode() for token in TOKENS], range(len(SPECIAL)))
WORDS = ("{a}", "{}", "{}{}", "<th", "<an", "<cha", " ")


@dataclass(frozen=True)
class Words:
    """A grammar: one of these texts, in any tokens that are not marks."""

    words: tuple[str, ...] = WORDS

    def matcher(self) -> WordsMatcher:
        return WordsMatcher(self)

    def allows(self, text: str, token: int) -> bool:
        if token == EOS:
            return text in self.words
        return token >= len(SPECIAL) and any(word.startswith(text + TOKENS[token]) for word in self.words)


class WordsMatcher:
    def __init__(self, grammar: Words) -> None:
        self.grammar = grammar
        self.tokens: list[int] = []
        self.error: str | None = None

    @property
    def text(self) -> str:
        return "".join(TOKENS[token] for token in self.tokens)

    @property
    def finished(self) -> bool:
        return EOS in self.tokens or not any(word.startswith(self.text) and word != self.text for word in WORDS)

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        text = self.text
        for draft in drafts:
            if not self.grammar.allows(text, draft) or draft == EOS:
                return None
            text += TOKENS[draft]
        bits = np.packbits([self.grammar.allows(text, token) for token in range(len(TOKENS))], bitorder="little")
        return np.pad(bits, (0, -len(bits) % 4)).view(np.uint32)

    def advance(self, token: int) -> None:
        if not self.grammar.allows(self.text, token):
            self.error = f"{TOKENS[token]!r} after {self.text!r}"
        self.tokens.append(token)


@dataclass(frozen=True)
class Case:
    """A family's way to answer, where the answer begins, and what binds it."""

    format: ChatFormat
    beginning: Beginning = Beginning.FRESH
    budget: int | None = None
    bound: bool = True
    calls: tuple[str, ...] = ()
    thinks: bool = True

    def grammar(self) -> AnswerGrammar:
        calls = dict.fromkeys(self.calls, Words())
        answer = Words() if self.bound else None
        nodes, start = self.format.script(self.beginning, answer, calls, IDS.get, thinks=self.thinks)
        return AnswerGrammar(nodes, start, LEXICON, len(TOKENS), (EOS,), self.budget, must=self.bound)

    def read(self, tokens: list[int]) -> list[Event]:
        tools = [{"type": "function", "function": {"name": name}} for name in self.calls]
        parser = self.format.parser(self.beginning, tools, bound=self.bound)
        events = [event for token in tokens if token != EOS for event in parser.feed(TOKENS[token], (token,))]
        return events + parser.finish()


formats = [ChatFormat(THINK), ChatFormat(CHANNEL), ChatFormat(THINK, frame=FRAME), ChatFormat(frame=FRAME)]
formats.append(ChatFormat(CHANNEL, frame=Marks(CHANNEL.end, "</answer>")))
cases = st.builds(
    Case,
    st.sampled_from([*formats, ChatFormat(harmony=True)]),
    st.sampled_from(Beginning),
    st.sampled_from([None, 0, 1, 5]),
    st.booleans(),
).filter(lambda case: case.format != ChatFormat(frame=FRAME) or case.beginning is not Beginning.THOUGHTS)
harmony_cases = st.builds(
    Case,
    st.just(ChatFormat(harmony=True)),
    st.sampled_from(Beginning),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.sampled_from([(), ("f",), ("f", "f.g_h")]),
    st.booleans(),
)


def tokens_of(mask: Mask | None) -> set[int]:
    if mask is None:
        return set(range(len(TOKENS)))
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return {int(token) for token in np.flatnonzero(bits[: len(TOKENS)])}


def by_the_book(grammar: AnswerGrammar, tokens: list[int]) -> set[int]:
    """What may follow, found by reading everything from the start again for each token of the vocabulary."""
    return {token for token in range(len(TOKENS)) if _legal(grammar, [*tokens, token])}


def _legal(grammar: AnswerGrammar, tokens: list[int]) -> bool:
    name, text, began, thought = grammar.start, "", 0, 0
    for at, token in enumerate(tokens):
        node, more = grammar.nodes[name], TOKENS[token]
        last = at == len(tokens) - 1
        if isinstance(node, Bound):
            return _within(node, tokens[began:])
        if isinstance(node, Free):
            strict = grammar.nodes[node.then] != Bound()
            over = node.end in text + more and not (text + more).endswith(node.end)
            spent = node.thoughts and grammar.budget is not None and thought >= grammar.budget
            if last and spent:
                return token in _closing(node.end, text)
            if last and (token in node.barred or (grammar.must and token == EOS) or (strict and over)):
                return False
            text, thought = text + more, thought + node.thoughts
            if node.end in text:
                name, text, began = node.then, text.partition(node.end)[2], at + 1
        else:
            outcome = _forked(grammar, node, text + more, last, token, tokens[began:], thought)
            if isinstance(outcome, bool):
                return outcome
            name, text, began, thought = outcome[0], outcome[1], began if outcome[2] else at + 1, thought + outcome[3]
    return True


def _closing(end: str, text: str) -> list[int]:
    done = max(size for size in range(len(end)) if text.endswith(end[:size]))
    return _spelling(end, done) or _spelling(end, 0)


def _spelling(text: str, size: int) -> list[int]:
    at = 0
    while at < size:
        mark = max((len(mark) for mark in SPECIAL if text[at:].startswith(mark)), default=1)
        at += mark
    found = [index for index, token in enumerate(TOKENS) if text[size:].startswith(token)]
    return [] if at > size else [index for index in found if index < len(SPECIAL)] or found


def _within(node: Bound, tokens: list[int]) -> bool:
    if not isinstance(node.grammar, Words):
        return True
    text = "".join(TOKENS[token] for token in tokens[:-1])
    if tokens[-1] in node.closings:
        return text in WORDS
    return node.grammar.allows(text, tokens[-1])


def _forked(
    grammar: AnswerGrammar, node: Fork, text: str, last: bool, token: int, tokens: list[int], thought: int
) -> bool | tuple[str, str, bool, int]:
    """Whether the last token is legal; of an earlier one the next node, text, whether tokens are kept, thoughts."""
    bound = grammar.nodes[node.otherwise] if node.otherwise is not None else None
    if bound == Bound():
        if last:
            return True
        text = text.lstrip()
    before = text[: len(text) - len(TOKENS[token])]
    spent = node.otherwise is None and grammar.budget is not None and thought >= grammar.budget
    for way, then in node.ways:
        closed = spent and isinstance(grammar.nodes[then], Free) and grammar.nodes[then].thoughts  # type: ignore[union-attr]
        if last and way.startswith(before) and not closed and token in _spelling(way, len(before)):
            return True
        if not last and text.startswith(way):
            rest = text[len(way) :]
            return then, rest, False, int(bool(rest) and isinstance(grammar.nodes[then], Free))
    if last:
        return isinstance(bound, Bound) and _fits(bound, tokens)
    if any(way.startswith(text) for way, _ in node.ways):
        return "header" if node is grammar.nodes["header"] else _name(grammar, node), text, True, 0
    assert node.otherwise is not None
    return node.otherwise, "", True, 0


def _fits(bound: Bound, tokens: list[int]) -> bool:
    return all(_within(bound, tokens[: size + 1]) for size in range(len(tokens)))


def _name(grammar: AnswerGrammar, node: Fork) -> str:
    return next(name for name, each in grammar.nodes.items() if each is node)


def likely(grammar: AnswerGrammar, allowed: set[int], luck: random.Random) -> int:
    """A token that leads somewhere more often than chance would."""
    marks = [token for token in sorted(allowed) if "<" in TOKENS[token] or ">" in TOKENS[token]]
    return luck.choice(marks if marks and luck.random() < 0.5 else sorted(allowed))


@pytest.mark.slow
@settings(max_examples=150)
@given(case=st.one_of(cases, harmony_cases), luck=st.randoms(use_true_random=False))
def test_a_mask_is_what_reading_everything_again_would_allow(case: Case, luck: random.Random) -> None:
    grammar = case.grammar()
    matcher = grammar.matcher()
    tokens: list[int] = []
    while len(tokens) < 40 and not matcher.finished:
        allowed = tokens_of(matcher.allowed(()))
        assert allowed == by_the_book(grammar, tokens)
        token = likely(grammar, allowed, luck)
        matcher.advance(token)
        assert matcher.error is None
        tokens.append(token)
        if token == EOS:
            return


@settings(max_examples=150)
@given(case=st.one_of(cases, harmony_cases), luck=st.randoms(use_true_random=False))
def test_drafts_are_judged_as_they_would_be_committed(case: Case, luck: random.Random) -> None:
    ahead, behind = (case.grammar().matcher() for _ in range(2))
    drafts: tuple[int, ...] = ()
    for _ in range(30):
        if ahead.finished:
            break
        allowed = tokens_of(ahead.allowed(()))
        assert tokens_of(behind.allowed(drafts)) == allowed
        behind.allowed((*drafts, *(luck.randrange(len(TOKENS)) for _ in range(3))))
        token = likely(case.grammar(), allowed, luck)
        ahead.advance(token)
        drafts += (token,)
        if token == EOS:
            break
        if luck.random() < 0.3:
            for draft in drafts:
                behind.advance(draft)
            drafts = ()


def test_what_a_bound_answer_says_is_of_its_grammar_and_its_thoughts_are_beside_it() -> None:
    ended = 0

    @settings(max_examples=200)
    @given(case=st.one_of(cases, harmony_cases), luck=st.randoms(use_true_random=False))
    def check(case: Case, luck: random.Random) -> None:
        nonlocal ended
        ended += bound_answer_ends(replace(case, bound=True), luck)

    check()
    assert ended > 100


def bound_answer_ends(case: Case, luck: random.Random) -> bool:
    """Write an answer by the mask and hold it against its grammar. False if it had no end within 300 tokens."""
    matcher = case.grammar().matcher()
    tokens: list[int] = []
    while not matcher.finished and len(tokens) < 300:
        token = likely(case.grammar(), tokens_of(matcher.allowed(())), luck)
        matcher.advance(token)
        tokens.append(token)
        if token == EOS:
            break
    ended = matcher.finished or tokens[-1:] == [EOS]
    events = case.read(tokens)
    content = "".join(event.text for event in events if isinstance(event, Content))
    arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
    calls = [event.name for event in events if isinstance(event, CallStart)]
    if ended:
        assert (arguments if calls else content) in WORDS
        assert not (calls and content)
        assert set(calls) <= set(case.calls)
    else:
        assert any(word.startswith(content) for word in WORDS)
    return ended


@pytest.mark.slow
@pytest.mark.parametrize(
    "format", [*formats[:3], ChatFormat(harmony=True)], ids=["word", "channel", "frame", "harmony"]
)
def test_a_step_remembers_nothing_of_the_thoughts_but_what_could_become_a_mark(format: ChatFormat) -> None:
    matcher: AnswerMatcher = Case(format, Beginning.THOUGHTS).grammar().matcher()
    masks = set()
    for _ in range(30_000):
        matcher.advance(IDS["a"])
        masks.add(id(matcher.allowed((IDS["<"],))))
    assert len(masks) == 1
    assert len(matcher._place.text) < 20
    assert not matcher._place.tokens


def test_thoughts_that_an_answer_must_follow_cannot_end_the_sequence() -> None:
    bound = Case(ChatFormat(THINK), Beginning.THOUGHTS).grammar().matcher()
    assert EOS not in tokens_of(bound.allowed(()))
    free = Case(ChatFormat(THINK), Beginning.THOUGHTS, budget=3, bound=False).grammar().matcher()
    assert EOS in tokens_of(free.allowed(()))


@pytest.mark.parametrize("opening", ["<think>", "\n<think>", " \n <think>"])
def test_white_space_before_thoughts_takes_nothing_from_their_budget(opening: str) -> None:
    matcher = Case(ChatFormat(THINK), budget=2, bound=False).grammar().matcher()
    for character in f"{opening}ab":
        assert matcher.allowed(()) is None
        matcher.advance(IDS[character])
    assert tokens_of(matcher.allowed(())) == {IDS["<"], IDS["</think"]}


def test_an_answer_that_may_end_may_end_with_the_familys_own_mark() -> None:
    matcher = Case(ChatFormat(frame=FRAME)).grammar().matcher()
    for token in ["<answer", ">", "{", "}"]:
        assert IDS["</answer>"] not in tokens_of(matcher.allowed(()))
        matcher.advance(IDS[token])
    assert {IDS["</answer>"], EOS} <= tokens_of(matcher.allowed(()))
    matcher.advance(IDS["</answer>"])
    assert matcher.finished


# The engine's own tests have 61 tokens; these are enough for a word's mark and one of two tokens.
SMALL = Lexicon([f"{n};".encode() for n in range(50)] + [b"<a>", b"</a>", b"<b>", b"</b>"], range(50, 54))
SINGLE, DOUBLE = ChatFormat(Marks("<a>", "</a>")), ChatFormat(Marks("<a><b>", "</a></b>"))


def small(format: ChatFormat, beginning: Beginning, budget: int | None) -> AnswerGrammar:
    nodes, start = format.script(beginning, tiny.Sums(3, 6), {}, lambda _: None)
    return AnswerGrammar(nodes, start, SMALL, tiny.VOCAB, (EOS,), budget, must=True)


@pytest.mark.parametrize("drafter", ["none", "perfect draft", "hostile draft", "suffix"])
@pytest.mark.parametrize(("format", "end"), [(SINGLE, (51,)), (DOUBLE, (51, 53))], ids=["one token", "two tokens"])
def test_the_budget_ends_the_thoughts_and_the_answer_follows_its_grammar(
    drafter: str, format: ChatFormat, end: tuple[int, ...]
) -> None:
    bound = small(format, Beginning.THOUGHTS, budget=7)
    wanted = [seeded([n + 1], 60, seed=n, temperature=1.5, grammar=bound) for n in range(5)]
    run = run_all(tiny.core(DRAFTERS[drafter], eos=[EOS], draft_length=4), wanted)
    for request in wanted:
        made = run.tokens[request.id]
        at = next(at for at in range(len(made)) if tuple(made[at : at + len(end)]) == end)
        assert at <= 7
        answer = made[at + len(end) :]
        # The grammar allows the end of the sequence behind every token but the last, and nothing at all as no answer.
        assert 1 <= len(answer) <= 6
        assert EOS not in made
        assert all(tiny.Sums(3, 6).allows(answer[:at], token) for at, token in enumerate(answer))
        assert run.reason(request) is FinishReason.STOP


def test_a_model_that_does_not_think_is_bound_from_its_first_token() -> None:
    bound = small(SINGLE, Beginning.FRESH, budget=5)
    request = greedy([4], 30, grammar=bound, logit_bias={50: -100.0})
    run = run_all(tiny.core(eos=[EOS]), [request])
    made = run.tokens[request.id]
    assert 1 <= len(made) <= 6
    assert all(tiny.Sums(3, 6).allows(made[:at], token) for at, token in enumerate(made))
