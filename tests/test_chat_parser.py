"""How an answer divides into thoughts, content and calls, however its text is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_templates import published, source
from support.parsing import cut, read, summary
from support.servers import demo_target
from support.tool_calls import TOOL
from transformers.utils.chat_template_utils import render_jinja_template

from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.events import CallArguments, CallStart
from parallm_openai.text.reasoning.harmony import MARKS
from parallm_openai.text.reasoning.splitter import THINKING, Beginning, Marks, answer_marks, thinking_marks
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.tools.families import FORMATS

HARMONY = ChatFormat(harmony=True)
ANALYSIS = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
WEATHER = '{"city": "Rome"}'


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def told(
    format: ChatFormat, text: str, tools: list[dict[str, Any]], beginning: Beginning = Beginning.FRESH, **options: bool
) -> tuple[str, str, list[tuple[str, Any]]]:
    """Content, reasoning and calls: the same whole, a character at a time and from any cut."""
    cuts = [[text], list(text), *(cut(text, random.Random(seed)) for seed in range(20))]
    found = [summary(read(format.parser(beginning, tools, **options), pieces)) for pieces in cuts]
    assert all(each == found[0] for each in found)
    return found[0]


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.NAME <|constrain|>json",
        "<|channel|>commentary to=functions.NAME<|constrain|>json",
        "<|channel|>commentary to=functions.NAME json",
        "<|channel|>analysis to=functions.NAME code",
        "<|channel|>commentary to=NAME <|constrain|>json",
        " to=functions.NAME<|channel|>commentary json",
        " to=functions.NAME<|channel|>commentary <|constrain|>json",
    ],
)
@pytest.mark.parametrize("name", ["get_weather", "mcp.search", "a-b.c_d-2", "functions.x", "analysis", "to", "final"])
def test_harmony_calls_have_their_whole_name_wherever_the_recipient_stands(header: str, name: str) -> None:
    message = f"{header.replace('NAME', name)}<|message|>{WEATHER}<|call|>"
    assert told(HARMONY, ANALYSIS + message, [tool(name)]) == ("", "Let me see.", [(name, {"city": "Rome"})])
    assert told(HARMONY, message, [tool("other"), tool(name)]) == ("", "", [(name, {"city": "Rome"})])


@pytest.mark.parametrize("recipient", ["python", "browser.search", "functions.unknown", "functions.get", "assistant"])
def test_a_message_to_somebody_who_is_no_tool_is_what_it_says(recipient: str) -> None:
    message = f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{WEATHER}<|call|>"
    assert told(HARMONY, ANALYSIS + message, [TOOL]) == (WEATHER, "Let me see.", [])
    assert told(HARMONY, message, []) == (WEATHER, "", [])
    thought = f"<|channel|>analysis to={recipient} code<|message|>print(1)<|call|>"
    assert told(HARMONY, thought, [TOOL]) == ("", "print(1)", [])


def test_harmonys_commentary_to_nobody_is_content_before_the_call() -> None:
    preamble = "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
    call = f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{WEATHER}<|call|>"
    found = told(HARMONY, ANALYSIS + preamble + call, [TOOL])
    assert found == ("I will look.", "Let me see.", [("get_weather", {"city": "Rome"})])


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("<|channel|>final<|message|>Hello", "Hello", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}", ""),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>a <|en",
            "a <|en",
            "Hm.",
        ),
        ("<|channel|>analysis<|message|>Hm <|e", "", "Hm <|e"),
        ("<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Yes", "Yes", "Hm."),
        ("<|channel|>analysis<|message|>to=functions.get_weather {}<|end|>", "", "to=functions.get_weather {}"),
        ("<|channel|>fin", "", ""),
        (" to=functions.get_w", "", ""),
        ("Hello, tom", "Hello, tom", ""),
        ("to", "to", ""),
        ("tomorrow <|end|>", "tomorrow ", ""),
        ("  \n", "  \n", ""),
        ("<|message|>Hello", "Hello", ""),
    ],
)
def test_harmony_messages_cut_short_or_without_a_header_lose_nothing_they_say(
    text: str, content: str, reasoning: str
) -> None:
    assert told(HARMONY, text, [TOOL]) == (content, reasoning, [])


def arguments(text: str, tools: list[dict[str, Any]], natural: bool = False) -> str:
    """The only call's arguments, the same however the text is cut."""
    found = set[str]()
    for size in (1, 3, len(text)):
        parser = HARMONY.parser(Beginning.FRESH, tools)
        events = [event for at in range(0, len(text), size) for event in parser.feed(text[at : at + size])]
        events += parser.finish(natural)
        assert sum(isinstance(event, CallStart) for event in events) == 1
        found.add("".join(event.text for event in events if isinstance(event, CallArguments)))
    [only] = found
    return only


CALL = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", "{}"),
        (" \n", "{}"),
        ("null", "{}"),
        ('"null"', "{}"),
        ("[]", "{}"),
        ('"{\\"city\\": \\"Rome\\"}"', '{"city": "Rome"}'),
        ('  {"city": "Rome"}', '{"city": "Rome"}'),
        ('{"city": "Ro', '{"city": "Ro'),
        # No object in any way: the client sees what was written.
        ("[1, 2]", "[1, 2]"),
        ("print(1)", "print(1)"),
    ],
)
def test_harmonys_arguments_are_an_object_whatever_they_are_written_as(text: str, value: str) -> None:
    assert arguments(f"{CALL}{text}<|call|>", [TOOL]) == value
    assert arguments(f"{CALL}{text}", [TOOL], natural=True) == value


def test_arguments_that_were_cut_off_are_no_more_than_what_came() -> None:
    assert arguments(CALL, [TOOL]) == ""
    assert arguments(CALL + '"{\\"city\\": \\"Ro', [TOOL]) == '{"city": "Ro'
    assert arguments(CALL, [{"type": "function", "function": {"name": "get_weather"}}]) == "{}"


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("<|start|>user<|message|>Hi<|end|><|start|>assistant", Beginning.FRESH),
        ("<|start|>user<|message|>Hi<|end|>", Beginning.FRESH),
        ("<|start|>assistant<|channel|>final<|message|>", Beginning.ANSWER),
        ("<|start|>assistant<|channel|>analysis<|message|>", Beginning.THOUGHTS),
        ("<|start|>user<|message|>", Beginning.FRESH),
    ],
)
def test_harmony_begins_where_its_prompt_ends(prompt: str, beginning: Beginning) -> None:
    assert HARMONY.beginning(prompt) is beginning
    if beginning is Beginning.ANSWER:
        assert HARMONY.beginning(prompt + "to be<|start|>", "to be<|start|>") is Beginning.ANSWER
        assert told(HARMONY, ", or not<|return|>", [], beginning) == (", or not", "", [])
    if beginning is Beginning.THOUGHTS:
        text = "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes"
        assert told(HARMONY, text, [], beginning) == ("Yes", "Hm.", [])


def test_harmonys_thoughts_are_counted_with_their_header() -> None:
    parser = HARMONY.parser(Beginning.FRESH, [])
    for text in [*_pieces(ANALYSIS), *_pieces("<|channel|>final<|message|>Yes, I do.")]:
        parser.feed(text, (1,))
    assert parser.reasoning_tokens == len(_pieces("<|channel|>analysis<|message|>Let me see.<|end|>"))


def _pieces(text: str) -> list[str]:
    """The text in its marks and single characters, as tokens might be."""
    for mark in MARKS:
        text = text.replace(mark, f"\0{MARKS.index(mark)}")
    pieces: list[str] = []
    for part in text.split("\0"):
        pieces += [MARKS[int(part[0])], *part[1:]] if pieces or part[:1].isdigit() else list(part)
    return pieces


words = st.text("ab <>/think[]\n|", max_size=12)


@settings(max_examples=300)
@given(
    marks=st.sampled_from(THINKING),
    frame=st.sampled_from([None, Marks("<|R|>", "<|/R|>"), Marks("<response>", "</response>")]),
    thoughts=words,
    answer=words,
    inside=st.booleans(),
    luck=st.randoms(use_true_random=False),
)
def test_thoughts_are_split_from_the_answer_from_any_cut(
    marks: Marks, frame: Marks | None, thoughts: str, answer: str, inside: bool, luck: random.Random
) -> None:
    if marks.end in thoughts or (frame is None and marks.end in answer):
        return
    said = answer if frame is None else f"{frame.start}\n{answer}\n{frame.end}\n"
    text = ("" if inside else f"\n{marks.start}") + f"\n{thoughts}\n{marks.end}\n\n{said}"
    beginning = Beginning.THOUGHTS if inside else Beginning.FRESH
    parser = ChatFormat(marks, frame=frame).parser(beginning, [])
    content, reasoning, _ = summary(read(parser, cut(text, luck)))
    assert (reasoning, content) == (thoughts.strip(), answer.lstrip() if frame is None else answer.strip())


THINK = Marks("<think>", "</think>")
RESPONSE = Marks("<response>", "</response>")


@given(answer=words, luck=st.randoms(use_true_random=False), bound=st.booleans())
def test_an_answer_without_thoughts_is_untouched(answer: str, luck: random.Random, bound: bool) -> None:
    if answer.lstrip().startswith("<think>"):
        return
    parser = ChatFormat(THINK).parser(Beginning.FRESH, [], bound=bound)
    assert summary(read(parser, cut(answer, luck)))[0] == answer


@pytest.mark.parametrize("frame", [None, RESPONSE])
def test_a_bound_answer_keeps_the_white_space_that_its_grammar_asks_for(frame: Marks | None) -> None:
    text = "<think>Hm.</think>" + ("  yes \n" if frame is None else "<response>  yes \n</response>")
    assert told(ChatFormat(THINK, frame=frame), text, [], bound=True) == ("  yes \n", "Hm.", [])
    assert told(ChatFormat(THINK), "</think>  yes", [], Beginning.THOUGHTS, bound=True)[0] == "  yes"


def test_a_bound_answer_that_begins_with_white_space_has_begun() -> None:
    assert told(ChatFormat(THINK), " <think>", [], bound=True) == (" <think>", "", [])
    assert told(ChatFormat(THINK, frame=RESPONSE), "</think> <response>", [], Beginning.THOUGHTS, bound=True)[0] == (
        " <response>"
    )


def test_later_marks_are_part_of_the_answer() -> None:
    text = '<response>{"a": "</response> <think>b</think>"}</response>'
    assert told(ChatFormat(THINK, frame=RESPONSE), text, []) == (text[10:-11], "", [])
    assert told(ChatFormat(THINK), "Hi <think>b</think>", [TOOL]) == ("Hi <think>b</think>", "", [])
    assert told(ChatFormat(THINK), "<think>b", [], Beginning.ANSWER) == ("<think>b", "", [])


def test_the_mark_that_ends_the_thoughts_may_be_the_one_that_begins_the_answer() -> None:
    format = ChatFormat(Marks("Steps:", "[BEGIN]"), frame=Marks("[BEGIN]", "[END]"))
    for beginning, opening in [(Beginning.FRESH, "Steps:"), (Beginning.THOUGHTS, "")]:
        assert told(format, f"{opening} Hm.\n[BEGIN]\nYes.\n[END]\n", [], beginning) == ("Yes.", "Hm.", [])
    assert told(format, "[BEGIN] Yes.[END]", []) == ("Yes.", "", [])


def test_a_call_after_a_framed_answer_is_a_call_and_one_in_the_thoughts_is_not() -> None:
    format = ChatFormat(
        Marks("<|START_THINKING|>", "<|END_THINKING|>"),
        FORMATS["command_r"],
        frame=Marks("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    )
    call = '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Rome"}}]'
    call += "<|END_ACTION|>"
    thoughts = f"<|START_THINKING|>{call}<|END_THINKING|>"
    wanted = ("get_weather", {"city": "Rome"})
    assert told(format, thoughts + call, [TOOL]) == ("", call, [wanted])
    framed = "<|START_RESPONSE|>I will look.<|END_RESPONSE|>"
    assert told(format, thoughts + framed + call, [TOOL]) == ("I will look.", call, [wanted])
    assert told(format, thoughts + framed, [TOOL]) == ("I will look.", call, [])


def test_what_follows_the_only_call_is_not_told() -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    once = told(ChatFormat(tools=FORMATS["hermes"]), f"Look.\n{call}{call} and more", [TOOL], once=True)
    assert once == ("Look.", "", [("get_weather", {"city": "Rome"})])
    header = f"<|channel|>commentary to=functions.get_weather json<|message|>{WEATHER}<|call|><|start|>assistant"
    assert told(HARMONY, header * 2, [TOOL], once=True)[2] == [("get_weather", {"city": "Rome"})]


@pytest.mark.parametrize("start", [("<think>",), ("<", "think", ">"), (" ", "<think>")])
def test_the_tokens_of_thoughts_are_counted_with_their_marks(start: tuple[str, ...]) -> None:
    parser = ChatFormat(THINK).parser(Beginning.FRESH, [])
    for text in [*start, "a", "b", "</think>", "c", "d"]:
        parser.feed(text, (1,))
    assert parser.reasoning_tokens == len([text for text in start if text.strip()]) + 3
    plain = ChatFormat(THINK).parser(Beginning.FRESH, [])
    for text in ["<", "thing", ">"]:
        plain.feed(text, (1,))
    assert plain.reasoning_tokens == 0


SIZE = 20_000


@pytest.mark.parametrize(
    ("format", "opening", "piece"),
    [
        (ChatFormat(THINK), "<think>", "a"),
        (ChatFormat(THINK), "<think>", " "),
        (ChatFormat(THINK), "", "\n"),
        (ChatFormat(THINK, frame=RESPONSE), "<response>", "</response> "),
        (HARMONY, "", "a"),
        (HARMONY, "", " "),
        (HARMONY, "<|channel|>", "a"),
        (HARMONY, "<|channel|>analysis<|message|>", "<|en"),
    ],
)
def test_no_text_makes_a_parser_hold_more_than_a_mark(format: ChatFormat, opening: str, piece: str) -> None:
    """What is held is looked through again with every token: a long hold would take quadratic time."""
    parser = format.parser(Beginning.FRESH, [])
    parser.feed(opening)
    for _ in range(SIZE):
        parser.feed(piece)
        parts: tuple[Any, ...] = (parser._reasoning, parser._calls)
        for part in parts:
            assert part is None or len(part._held) < 40


@pytest.mark.parametrize(
    ("name", "thinking", "frame"),
    [
        ("mistral", "[THINK]", None),
        ("command_r", "<|START_THINKING|>", "<|START_RESPONSE|>"),
        ("gemma4", "<|channel>thought", None),
        ("minimax_m2", "<think>", None),
        ("thinking", "<think>", None),
        ("deepseek_v31", "<think>", None),
        ("deepseek_v32", "<think>", None),
        ("glm47", "<think>", None),
        ("kimi_k2", "<think>", None),
        ("nemotron", "<think>", None),
        ("hermes", None, None),
        ("llama3_json", None, None),
        ("without_tools", None, None),
        ("strict", None, None),
        published("mistralai-Ministral-3-14B-Reasoning-2512", "[THINK]", None),
        published("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "<|START_THINKING|>", "<|START_RESPONSE|>"),
        published("google-gemma-4-31B-it", "<|channel>thought", None),
        published("MiniMax-M2", "<think>", None),
        published("Qwen-Qwen3-0.6B", "<think>", None),
        published("deepseek-ai-DeepSeek-V3.2", "<think>", None),
        published("GLM-4.7-Flash", "<think>", None),
        published("Kimi-K2-Thinking", "<think>", None),
        published("NVIDIA-Nemotron-Nano-v2", "<think>", None),
        published("Qwen-Qwen2.5-7B-Instruct", None, None),
        published("meta-llama-Llama-3.3-70B-Instruct", None, None),
        published("google-gemma-2-2b-it", None, None),
    ],
)
def test_marks_are_known_by_the_chat_template(name: str, thinking: str | None, frame: str | None) -> None:
    text = source(name)
    marks = thinking_marks(text, {})
    assert (marks.start if marks is not None else None) == thinking
    around = answer_marks(
        text, lambda: _past(text) if frame is not None or name in ("MiniMax-M2", "minimax_m2") else ""
    )
    assert (around.start if around is not None else None) == frame


def _past(template: str) -> str:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Hi")]
    conversation = [{"role": role, "content": text} for role, text in said]
    rendered, _ = render_jinja_template(conversations=[conversation], chat_template=template, bos_token="")
    return str(rendered[0])


@pytest.mark.parametrize("marks", THINKING, ids=[marks.start for marks in THINKING])
def test_marks_are_known_by_the_vocabulary_where_the_template_has_none(marks: Marks) -> None:
    assert thinking_marks("{{ messages }}", {marks.start: 1, marks.end: 2}) == marks
    assert thinking_marks("{{ messages }}", {marks.start: 1}) is None
    assert thinking_marks(f"{marks.start}{{x}}{marks.end}", {"<think>": 1, "</think>": 2}) == marks


def test_an_answer_goes_on_where_the_message_before_it_was_left() -> None:
    format = ChatFormat(THINK)
    assert format.beginning("<assistant>\n<think>\n") is Beginning.THOUGHTS
    assert format.beginning("<assistant>\n<think>\n\n</think>\n\n") is Beginning.FRESH
    assert format.beginning("<assistant>\n<think>\nHm", "<think>\nHm") is Beginning.THOUGHTS
    assert format.beginning("<assistant>\n<think>\nHm", "Hm") is Beginning.THOUGHTS
    assert format.beginning("<assistant>\nHm", "Hm") is Beginning.ANSWER
    assert format.beginning("<user>say <think><assistant>Hm", "Hm") is Beginning.ANSWER
    assert format.beginning("<assistant>\n<think>a</think>b", "<think>a</think>b") is Beginning.ANSWER
    framed = ChatFormat(THINK, frame=RESPONSE)
    assert framed.beginning("<assistant><response>Hm", "Hm") is Beginning.ANSWER
    assert told(framed, "! </response>", [], Beginning.ANSWER)[0] == "!"


def test_the_demo_model_thinks_as_its_template_says() -> None:
    format = Tokenizer(demo_target().tokenizer, demo_target().vocab_size).chat_format
    assert (format.thinking, format.frame) == (THINK, None)
