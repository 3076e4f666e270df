"""Small talk, memory over several turns, system prompts that give a name, and honest refusals."""

from __future__ import annotations

import random

from demo_training.corpus_facts import facts
from demo_training.sample import Sample, ask, assistant, between, is_held_out, pick, system, user
from demo_training.words import ANIMALS, COLORS, FRUITS, JOBS, city, made_up, person

SELF = "I am ParaLLM Demo, a very small language model."
UNKNOWN = "I am a very small demo model, so I do not know that."
TALK: dict[str, tuple[str, ...]] = {
    "Hello! How can I help you?": ("Hello", "Hi", "Hey", "Hello there", "Hi there", "Hey there", "Greetings"),
    "Good morning! How can I help you?": ("Good morning", "Morning", "Good morning to you"),
    "Good evening! How can I help you?": ("Good evening", "Evening", "Good evening to you"),
    "I am fine, thank you. How can I help you?": (
        "How are you",
        "How are you doing",
        "How is it going",
        "How are you today",
        "Are you well",
        "How do you do",
    ),
    "You are welcome!": (
        "Thank you",
        "Thanks",
        "Thanks a lot",
        "Thank you very much",
        "Many thanks",
        "Great, thanks",
    ),
    "Goodbye! Have a nice day.": ("Goodbye", "Bye", "See you", "Bye bye", "See you later", "Good night"),
    SELF: ("Who are you", "What are you", "What is your name", "Introduce yourself", "Tell me who you are"),
    "I can answer small questions, do sums, write JSON, call tools and tell little stories.": (
        "What can you do",
        "How can you help me",
        "Help",
        "What are you good at",
        "What can I ask you",
    ),
    "Why did the chicken cross the road? To get to the other side! 😄": (
        "Tell me a joke",
        "Do you know a joke",
        "Make me laugh",
        "Say something funny",
        "A joke, please",
    ),
    "I am a program, so I have no feelings, but I am happy to help.": (
        "Do you have feelings",
        "Are you happy",
        "Are you sad",
        "Do you feel anything",
    ),
    "No, I am a very small language model.": ("Are you human", "Are you a person", "Are you a real person"),
    "I was trained on a small computer on text that a program wrote.": (
        "How were you trained",
        "How were you made",
        "Where do you come from",
    ),
}
DIRECT = {"Tell me a joke", "Introduce yourself", "Help", "Tell me who you are", "Make me laugh"}
PREFIX = ("", "", "", "Oh, ", "Well, ", "So, ", "Okay, ", "Please: ", "Now, ")
SUFFIX = ("", ".", "!", "?", "??", " please", " :)", "...", " now?", ", friend", ", dear model")


def small_talk(rng: random.Random) -> Sample:
    """A greeting or a question about the model; the exact wording can be held out."""
    answer = pick(rng, list(TALK))
    text = pick(rng, PREFIX) + pick(rng, TALK[answer]) + pick(rng, SUFFIX)
    if rng.random() < 0.25:
        text = text.lower()
    return ask("small_talk", text, text, answer)


def refusal(rng: random.Random) -> Sample:
    """A question nobody could answer from the facts table."""
    who, where = made_up(rng), made_up(rng)
    year = between(rng, 1200, 2090)
    form = pick(
        rng,
        [
            "Who won the {1} cup in {2}?",
            "What did {0} say about {1} in {2}?",
            "Who is {0}?",
            "Who is {0} {1}?",
            "When was {0} born?",
            "What is the population of {1}?",
            "Why did {0} leave {1} in {2}?",
            "How tall is {0}?",
            "What is the capital of {1}?",
            "What happened in {1} in {2}?",
            "Where does {0} live?",
            "What is the phone number of {0}?",
            "What will happen in {2}?",
            "Explain the theory of {1}.",
            "Who wrote the book {1}?",
        ],
    )
    question = form.format(who, where, year)
    return ask("refusal", question, question, UNKNOWN)


def named(rng: random.Random) -> Sample:
    """A system prompt that says who the model is."""
    name, job = person(rng), pick(rng, JOBS)
    order, answer = pick(
        rng,
        [
            ("You are {0}.", "I am {0}."),
            ("You are {0}, a helpful assistant.", "I am {0}, a helpful assistant."),
            ("You are {0}, a {1}.", "I am {0}, a {1}."),
            ("Your name is {0}.", "My name is {0}."),
            ("You are a {1} called {0}.", "I am {0}, a {1}."),
        ],
    )
    question = pick(rng, ["Who are you?", "What is your name?", "Introduce yourself.", "Tell me who you are."])
    order, answer = order.format(name, job), answer.format(name, job)
    messages = [system(order), user(question), assistant(answer)]
    return Sample("system_name", f"system_name|{order}", messages)


Memory = tuple[str, tuple[str, ...], str, str, str]
"""The kind of value; how it is told; what is replied; what it is called; the answer."""

MEMORY: tuple[Memory, ...] = (
    (
        "name",
        ("My name is {}.", "I am called {}.", "Hi, I'm {}."),
        "Nice to meet you, {}!",
        "name",
        "Your name is {}.",
    ),
    (
        "color",
        ("My favorite color is {}.",),
        "{} is a nice color.",
        "favorite color",
        "Your favorite color is {}.",
    ),
    ("city", ("I live in {}.", "My city is {}."), "{} sounds like a nice place.", "city", "You live in {}."),
    ("animal", ("I have a pet {}.", "My pet is a {}."), "A {} is a lovely pet.", "pet", "Your pet is a {}."),
    (
        "job",
        ("I work as a {}.", "My job is {}."),
        "Being a {} sounds interesting.",
        "job",
        "You work as a {}.",
    ),
    (
        "fruit",
        ("My favorite fruit is the {}.",),
        "The {} is a good choice.",
        "favorite fruit",
        "Your favorite fruit is the {}.",
    ),
    (
        "number",
        ("My lucky number is {}.",),
        "{} is a good number.",
        "lucky number",
        "Your lucky number is {}.",
    ),
)
CHOICES = {"color": COLORS, "animal": ANIMALS, "job": JOBS, "fruit": FRUITS}
RECALL = (
    "What is my {}?",
    "Do you remember my {}?",
    "Tell me my {}.",
    "Can you tell me my {}?",
    "What's my {}?",
)


def _value(kind: str, rng: random.Random) -> str:
    if kind == "name":
        return person(rng)
    if kind == "city":
        return city(rng)
    if kind == "number":
        return str(between(rng, 1, 999))
    return pick(rng, CHOICES[kind])


def memory(rng: random.Random) -> Sample:
    """Things told early in a dialogue and asked for later, with small talk in between."""
    messages = []
    told = [pick(rng, MEMORY) for _ in range(between(rng, 1, 3))]
    told = list({item[0]: item for item in told}.values())
    values = {kind: _value(kind, rng) for kind, *_ in told}
    for kind, tell, reply, _, _ in told:
        messages += [user(pick(rng, tell).format(values[kind]))]
        messages += [assistant(_upper_first(reply.format(values[kind])))]
        if rng.random() < 0.4:
            messages += _filler(rng)
    for _ in range(between(rng, 0, 2)):
        messages += _filler(rng)
    kind, _, _, name, answer = pick(rng, told)
    messages += [user(pick(rng, RECALL).format(name)), assistant(answer.format(values[kind]))]
    key = "|".join(f"{k}={v}" for k, v in values.items())
    return Sample("memory", f"memory|{key}|{kind}", messages)


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _filler(rng: random.Random) -> list[dict[str, str]]:
    """A turn from the training split that has nothing to do with what is remembered."""
    while True:
        sample = (small_talk if rng.random() < 0.4 else facts)(rng)
        if not is_held_out(sample.key):
            return list(sample.messages)
