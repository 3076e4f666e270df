"""Questions about the facts table, in many phrasings; a phrasing of a fact can be held out."""

from __future__ import annotations

import json
import random

from demo_training.facts_table import COUNTRIES, ELEMENTS, OTHERS
from demo_training.sample import Sample, ask, assistant, pick, raw, system, user

Fact = tuple[tuple[str, ...], str, str]
"""The question phrasings, the full answer, and the short one."""

CAPITAL = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "Which city is the capital of {}?",
    "Tell me the capital of {}.",
    "Name the capital of {}.",
    "Do you know the capital of {}?",
    "capital of {}?",
    "Can you tell me what the capital of {} is?",
)
CONTINENT = (
    "On which continent is {}?",
    "Which continent is {} on?",
    "What continent is {} in?",
    "Where is {}?",
    "Tell me the continent of {}.",
)
LANGUAGE = (
    "What language is spoken in {}?",
    "Which language do people speak in {}?",
    "What is the main language of {}?",
    "Tell me the language of {}.",
)
CURRENCY = (
    "What is the currency of {}?",
    "Which currency is used in {}?",
    "What money do they use in {}?",
    "Tell me the currency of {}.",
    "What's the currency of {}?",
)
REVERSE = ("{} is the capital of which country?", "Which country has the capital {}?")
SYMBOL = (
    "What is the chemical symbol of {}?",
    "What is the symbol for {}?",
    "Which symbol does {} have?",
    "Tell me the chemical symbol of {}.",
)
NUMBER = (
    "What is the atomic number of {}?",
    "Which atomic number does {} have?",
    "Tell me the atomic number of {}.",
    "What's the atomic number of {}?",
)
OTHER = ("What is {}?", "Tell me {}.", "Do you know {}?", "Please tell me {}.", "What's {}?")


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _country_fact(rng: random.Random) -> Fact:
    country, capital, continent, language, currency = pick(rng, COUNTRIES)
    kind = rng.random()
    if kind < 0.35:
        return _fill(CAPITAL, country), f"The capital of {country} is {capital}.", capital
    if kind < 0.5:
        return _fill(REVERSE, capital), f"{capital} is the capital of {country}.", _upper_first(country)
    if kind < 0.65:
        return _fill(CONTINENT, country), f"{_upper_first(country)} is in {continent}.", continent
    if kind < 0.8:
        return _fill(LANGUAGE, country), f"The language spoken in {country} is {language}.", language
    return _fill(CURRENCY, country), f"The currency of {country} is the {currency}.", currency


def _fill(forms: tuple[str, ...], value: str) -> tuple[str, ...]:
    return tuple(_upper_first(form.format(value)) for form in forms)


def fact(rng: random.Random) -> Fact:
    """Any fact of the table."""
    kind = rng.random()
    if kind < 0.7:
        return _country_fact(rng)
    if kind < 0.86:
        name, symbol, number = pick(rng, ELEMENTS)
        if rng.random() < 0.5:
            return _fill(SYMBOL, name), f"The chemical symbol of {name} is {symbol}.", symbol
        return _fill(NUMBER, name), f"The atomic number of {name} is {number}.", str(number)
    what, value = pick(rng, OTHERS)
    return _fill(OTHER, what), f"{_upper_first(what)} is {value}.", _upper_first(value)


def facts(rng: random.Random) -> Sample:
    """A fact asked plainly."""
    questions, answer, _ = fact(rng)
    question = pick(rng, questions)
    return ask("facts", question, question, answer)


def facts_text(rng: random.Random) -> Sample:
    """A fact as raw text: the sentence is cut before its last word."""
    _, answer, _ = fact(rng)
    cut = answer.rindex(" ")
    lead = "" if rng.random() < 0.5 else fact(rng)[1] + " "
    return raw("raw_facts", lead + answer, lead + answer[:cut], answer[cut:])


STYLES = ("uppercase", "brief", "pirate", "json", "name")


def styled(rng: random.Random) -> Sample:
    """A system prompt that asks for a style, then a fact."""
    questions, answer, short = fact(rng)
    question, style = pick(rng, questions), pick(rng, STYLES)
    if style == "uppercase":
        country, capital, *_ = pick(rng, COUNTRIES)
        question, answer = pick(rng, _fill(CAPITAL, country)), f"The capital of {country} is {capital}."
        order = pick(rng, ["Answer in uppercase.", "Always answer in capital letters.", "Use only uppercase."])
        said = answer.upper()
    elif style == "brief":
        order = pick(rng, ["Answer briefly.", "Be brief.", "Answer with one word or phrase only."])
        said = short
    elif style == "pirate":
        order = pick(rng, ["You are a pirate.", "Talk like a pirate.", "Answer like a pirate."])
        said = f"Arr! {answer}"
    elif style == "json":
        order = pick(rng, ["Answer in JSON.", "Reply with JSON only.", 'Answer as {"answer": ...}.'])
        said = json.dumps({"answer": short}, ensure_ascii=False)
    else:
        order = pick(rng, ["You are a helpful assistant.", "You answer questions.", "Be helpful and correct."])
        said = answer
    messages = [system(order), user(question), assistant(said)]
    check = "json" if style == "json" else "exact"
    return Sample("system_style", f"facts|{question}", messages, check=check)  # type: ignore[arg-type]
