"""Chat templates: their variables, and how a conversation is to be ended, thought about and gone on with."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.hazards import Hazards
from fuzz.requests import FEW, QUESTIONS, TOOL
from fuzz.session import Plan, Session, sends
from fuzz.values import junk

VARIABLES = ["enable_thinking", "thinking", "reasoning_effort", "custom", "add_vision_id", "date_string", "x" * 300]
# What templates have by themselves, and what renderers and their callers name their own parameters.
OWN_NAMES = [
    *("messages tools documents bos_token eos_token add_generation_prompt continue_final_message".split()),
    *("conversation chat_template tokenize padding truncation max_length return_tensors return_dict".split()),
    *("return_assistant_tokens_mask tokenizer_kwargs self raise_exception strftime_now loop range dict".split()),
    *("namespace cycler joiner lipsum tojson processor kwargs __class__ __init__".split()),
]


@cache
def variables(hazards: Hazards) -> st.SearchStrategy[dict[str, Any]]:
    names = st.one_of(
        st.sampled_from(VARIABLES),
        *hazards.only(template_names=st.sampled_from(OWN_NAMES) | st.text(st.characters(codec="utf-8"), max_size=6)),
    )
    values = st.one_of(st.booleans(), st.text("abc", max_size=3), *hazards.only(template_values=junk(hazards)))
    return st.dictionaries(names, values, max_size=3)


@cache
def messages() -> st.SearchStrategy[list[dict[str, Any]]]:
    roles = st.sampled_from(["user", "assistant", "system", "developer", "tool", "function"])
    message = st.builds(
        lambda role, text: {"role": role, "content": text}, roles, st.sampled_from([*QUESTIONS, "", " "])
    )
    return st.lists(message, min_size=1, max_size=3)


def draw(data: st.DataObject, session: Session, hazards: Hazards) -> Plan:
    efforts = st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max", "", 1, None])
    optional: dict[str, st.SearchStrategy[Any]] = {
        "reasoning_effort": efforts,
        "continue_final_message": st.booleans(),
        "add_generation_prompt": st.booleans(),
        "thinking_budget": st.integers(0, 3),
        "tools": st.just([{"type": "function", "function": TOOL}]),
        "tool_choice": st.sampled_from(["auto", "none", "required"]),
        "stream": st.booleans(),
    }
    path = data.draw(st.sampled_from(["/v1/chat/completions", "/v1/chat/completions/render", "/v1/responses"]))
    body = data.draw(st.fixed_dictionaries({"chat_template_kwargs": variables(hazards)}, optional=optional))
    body["model"] = session.model
    if path == "/v1/responses":
        effort = body.pop("reasoning_effort", None)
        body = {key: body[key] for key in ("model", "chat_template_kwargs", "thinking_budget", "stream") if key in body}
        body |= {
            "input": data.draw(st.sampled_from(QUESTIONS)),
            "max_output_tokens": FEW,
            "reasoning": {"effort": effort},
        }
    else:
        body |= {"messages": data.draw(messages()), "max_tokens": FEW}
    return sends(Case.of("options", path, body))
