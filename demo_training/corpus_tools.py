"""Tool use: names, parameters and values vary, so that the model copies them from the prompt."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from demo_training.corpus_facts import facts
from demo_training.corpus_talk import small_talk
from demo_training.sample import (
    Message,
    Sample,
    assistant,
    between,
    is_held_out,
    join_words,
    pick,
    user,
)
from demo_training.words import FRUITS, PLACES_OF_SEVERAL_WORDS, THINGS, WORDS, city, made_up, person


@dataclass(frozen=True)
class Kind:
    """A tool in its variants: what it may be called, what it takes, how it is asked for and answered."""

    names: tuple[str, ...]
    about: str
    params: tuple[tuple[tuple[str, ...], str, str], ...]
    """For each parameter: its possible names, its JSON type, and the kind of value."""
    asks: tuple[str, ...]
    result: tuple[str, str]
    """The key of the result and its kind of value."""
    reply: str


KINDS: tuple[Kind, ...] = (
    Kind(
        ("get_weather", "weather", "current_weather", "fetch_weather", "weather_in"),
        "Get the weather in a city",
        ((("city", "location", "place", "town"), "string", "city"),),
        (
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "Weather in {0}?",
            "Is it warm in {0}?",
        ),
        ("temperature", "degrees"),
        "It is {r} degrees in {0}.",
    ),
    Kind(
        ("get_weather", "weather_report", "get_forecast", "forecast"),
        "Get the weather in a city in a unit",
        ((("city", "location", "place"), "string", "city"), (("unit", "units"), "string", "unit")),
        (
            "What is the weather in {0} in {1}?",
            "Tell me the temperature in {0} in {1}.",
            "Weather in {0}, in {1}?",
        ),
        ("temperature", "degrees"),
        "It is {r} degrees {1} in {0}.",
    ),
    Kind(
        ("get_time", "current_time", "time_in", "clock"),
        "Get the time in a city",
        ((("city", "location", "place", "timezone"), "string", "city"),),
        ("What time is it in {0}?", "Tell me the time in {0}.", "What's the time in {0}?"),
        ("time", "time"),
        "It is {r} in {0}.",
    ),
    Kind(
        ("add", "sum", "add_numbers", "plus"),
        "Add two numbers",
        ((("a", "x", "first"), "integer", "big"), (("b", "y", "second"), "integer", "big")),
        ("Add {0} and {1}.", "What is {0} plus {1}? Use the tool.", "Please add {0} and {1} with the tool."),
        ("result", "big"),
        "The result is {r}.",
    ),
    Kind(
        ("multiply", "times", "product", "multiply_numbers"),
        "Multiply two numbers",
        ((("a", "x", "first"), "integer", "big"), (("b", "y", "second"), "integer", "big")),
        ("Multiply {0} by {1}.", "What is {0} times {1}? Use the tool.", "Multiply {0} and {1}."),
        ("result", "big"),
        "The result is {r}.",
    ),
    Kind(
        ("search", "web_search", "find", "lookup", "search_web"),
        "Search the web",
        ((("query", "q", "text", "keywords"), "string", "phrase"),),
        ("Search for {0}.", "Look up {0} on the web.", "Find something about {0}.", "Please search for {0}."),
        ("title", "title"),
        'I found this: "{r}".',
    ),
    Kind(
        ("set_timer", "timer", "start_timer", "countdown"),
        "Set a timer",
        ((("minutes", "duration", "length"), "integer", "small"),),
        ("Set a timer for {0} minutes.", "Timer for {0} minutes, please.", "Start a timer of {0} minutes."),
        ("status", "ok"),
        "The timer is set for {0} minutes.",
    ),
    Kind(
        ("send_message", "message", "send_text", "notify"),
        "Send a message to a person",
        (
            (("to", "recipient", "person"), "string", "person"),
            (("text", "message", "body"), "string", "phrase"),
        ),
        ("Send a message to {0}: {1}", "Tell {0} this: {1}", "Write to {0}: {1}", "Message {0}: {1}"),
        ("status", "sent"),
        "I sent the message to {0}.",
    ),
    Kind(
        ("convert_currency", "exchange", "convert_money", "currency"),
        "Convert an amount of money",
        (
            (("amount", "value"), "number", "big"),
            (("from", "source", "from_currency"), "string", "money"),
            (("to", "target", "to_currency"), "string", "money"),
        ),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "Exchange {0} {1} for {2}."),
        ("result", "big"),
        "{0} {1} is {r} {2}.",
    ),
    Kind(
        ("get_price", "price", "price_of", "check_price"),
        "Get the price of an item",
        ((("item", "product", "name"), "string", "thing"),),
        ("How much does the {0} cost?", "What is the price of the {0}?", "Price of the {0}?"),
        ("price", "small"),
        "The {0} costs {r} euros.",
    ),
    Kind(
        ("get_user", "find_user", "lookup_user", "user_info"),
        "Look up a user by number",
        ((("id", "user_id", "number"), "integer", "big"),),
        ("Who is user {0}?", "Look up user {0}.", "Find the user with number {0}."),
        ("name", "person"),
        "User {0} is {r}.",
    ),
    Kind(
        ("add_to_list", "add_item", "shopping_list", "buy"),
        "Put an item on the shopping list",
        ((("item", "product"), "string", "fruit"), (("count", "quantity"), "integer", "small")),
        ("Put {1} {0} on the list.", "Add {1} {0} to the shopping list.", "I need {1} {0} on my list."),
        ("status", "ok"),
        "I put {1} {0} on the list.",
    ),
    Kind(
        ("compute", "evaluate", "magic", "transform", "secret_function", "apply", "magic_number"),
        "Apply a function to a number",
        ((("input", "x", "n", "value", "number"), "integer", "digit"),),
        (
            "What is the value of {name}({0})?",
            "What is {name}({0})? Use the tool.",
            "Call {name} with {0}.",
            "Use {name} on {0}.",
            "Run {name} for {0}.",
        ),
        ("result", "big"),
        "The result is {r}.",
    ),
)


def _value(kind: str, rng: random.Random) -> Any:
    match kind:
        case "city":
            return pick(rng, PLACES_OF_SEVERAL_WORDS) if rng.random() < 0.25 else city(rng)
        case "person":
            return person(rng)
        case "thing":
            return pick(rng, THINGS)
        case "fruit":
            return pick(rng, FRUITS)
        case "unit":
            return pick(rng, ["celsius", "fahrenheit"])
        case "money":
            return pick(rng, ["EUR", "USD", "GBP", "JPY", "CHF", "SEK", "PLN"])
        case "degrees":
            return between(rng, -10, 38)
        case "time":
            return f"{between(rng, 0, 23):02d}:{between(rng, 0, 59):02d}"
        case "digit":
            return between(rng, 0, 9) if rng.random() < 0.5 else between(rng, 10, 999)
        case "small":
            return between(rng, 1, 90)
        case "big":
            return between(rng, 2, 9999)
        case "title":
            return f"All about {pick(rng, WORDS)} and {pick(rng, WORDS)}"
        case "ok" | "sent":
            return kind
    return " ".join(pick(rng, WORDS) for _ in range(between(rng, 1, 4)))


@dataclass(frozen=True)
class Tool:
    """One variant of a kind of tool, as it stands in a prompt."""

    kind: Kind
    name: str
    params: tuple[str, ...]
    schema: dict[str, Any]


def make_tool(kind: Kind, rng: random.Random) -> Tool:
    name = pick(rng, kind.names)
    if rng.random() < 0.2:
        name = f"{pick(rng, WORDS)}_{name}" if rng.random() < 0.5 else f"{made_up(rng).lower()}_{pick(rng, WORDS)}"
    params = tuple(pick(rng, names) for names, _, _ in kind.params)
    told = rng.random() < 0.15
    properties: dict[str, Any] = {}
    for param, (_, json_type, value_kind) in zip(params, kind.params, strict=True):
        properties[param] = {"type": json_type}
        if value_kind == "unit":
            properties[param]["enum"] = ["celsius", "fahrenheit"]
        if told:
            properties[param]["description"] = f"The {param}"
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = list(params)
    function = {"name": name, "description": kind.about, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    return Tool(kind, name, params, {"type": "function", "function": function})


def _toolbox(rng: random.Random) -> list[Tool]:
    """One to four tools with different names."""
    tools: list[Tool] = []
    wanted = pick(rng, (1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4))
    while len(tools) < wanted:
        tool = make_tool(pick(rng, KINDS), rng)
        taken = {(t.name, t.kind.about) for t in tools}
        if all(tool.name != name and tool.kind.about[:9] != about[:9] for name, about in taken):
            tools.append(tool)
    return tools


def _call(tool: Tool, values: list[Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "arguments": dict(zip(tool.params, values, strict=True))},
    }


def _draw_values(tool: Tool, rng: random.Random) -> list[Any]:
    return [_value(kind, rng) for _, _, kind in tool.kind.params]


def _ask(tool: Tool, rng: random.Random) -> tuple[str, list[list[Any]]]:
    """A question for the tool, with the values of each call it needs."""
    values = _draw_values(tool, rng)
    question = pick(rng, tool.kind.asks)
    if len(values) == 1 and rng.random() < 0.3:
        other = _draw_values(tool, rng)
        if other != values:
            return question.format(join_words([str(values[0]), str(other[0])]), name=tool.name), [values, other]
    return question.format(*values, name=tool.name), [values]


def _answers(tool: Tool, calls: list[list[Any]], rng: random.Random) -> tuple[list[Message], Message]:
    """The tool's results, and what the assistant says about them."""
    key, kind = tool.kind.result
    messages, said = [], []
    for values in calls:
        result = _value(kind, rng)
        messages.append({"role": "tool", "content": json.dumps({key: result})})
        said.append(tool.kind.reply.format(*values, r=result))
    return messages, assistant(" ".join(said))


def _exchange(tools: list[Tool], rng: random.Random) -> tuple[list[Message], list[Message], str]:
    """A question with its calls, then the results with the answer, and the instance's name."""
    tool = pick(rng, tools)
    question, calls = _ask(tool, rng)
    call = {"role": "assistant", "content": "", "tool_calls": [_call(tool, values) for values in calls]}
    results, answer = _answers(tool, calls, rng)
    return [user(question), call], [*results, answer], f"{tool.name}|{question}"


def tool_call(rng: random.Random) -> Sample:
    """A question that needs a tool; the answer is the call."""
    tools = _toolbox(rng)
    first, _, key = _exchange(tools, rng)
    return Sample("tool_call", f"tool|{key}", first, [t.schema for t in tools], check="tool")


def tool_answer(rng: random.Random) -> Sample:
    """A call with its result; the answer says it in words. Sometimes the dialogue goes on."""
    tools = _toolbox(rng)
    messages: list[Message] = []
    key = ""
    for _ in range(pick(rng, (1, 1, 1, 2, 3))):
        first, second, key = _exchange(tools, rng)
        while is_held_out(f"tool|{key}"):
            first, second, key = _exchange(tools, rng)
        messages += first + second
    schemas = [t.schema for t in tools]
    return Sample("tool_answer", f"tool_answer|{key}", messages, schemas)


def tool_unneeded(rng: random.Random) -> Sample:
    """Tools are there, but the question does not need them."""
    plain = (small_talk if rng.random() < 0.4 else facts)(rng)
    schemas = [t.schema for t in _toolbox(rng)]
    return Sample("tool_unneeded", plain.key, plain.messages, schemas)
