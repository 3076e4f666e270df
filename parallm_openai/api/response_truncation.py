"""`truncation: "auto"`: a conversation that is too long for the context loses its oldest turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parallm_openai.api.response_input import ChatMessage
from parallm_openai.text.description import ChatDescription
from parallm_openai.text.prepare import Preparer

# The answer gets this fraction of the context, one in so many, if the request does not limit its length.
ROOM = 8

Cut = tuple[range, range]
NOTHING = range(0)


async def fitting(preparer: Preparer, description: ChatDescription, context_length: int) -> ChatDescription:
    """The conversation without its oldest messages: as few are left out as give an answer room.

    If even that is not enough, all are left out that may be.
    """
    room = context_length - (description.sampling.max_tokens or context_length // ROOM)
    cuts = possible_cuts(description.messages)
    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        _, tokens = await preparer.rendered(_cut(description, cuts[middle]))
        if len(tokens) <= room:
            high = middle
        else:
            low = middle + 1
    return _cut(description, cuts[high])


def _cut(description: ChatDescription, cut: Cut) -> ChatDescription:
    return replace(description, messages=without(description.messages, cut))


def possible_cuts(messages: Sequence[ChatMessage]) -> list[Cut]:
    """The places that may be left out: first none, in the end all except the last question and the last calls.

    Whole turns go first, from a user's message to the next one's. Then, within the last turn, calls with their outputs.
    """
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    last = users[-1] if users else -1
    answers = [place for place, message in enumerate(messages) if place > last and message["role"] == "assistant"]
    whole_turns: list[Cut] = [(range(start), NOTHING) for start in users]
    within = [(range(max(last, 0)), range(last + 1, start)) for start in answers[1:]]
    return [*whole_turns, *within] or [(NOTHING, NOTHING)]


def without(messages: Sequence[ChatMessage], cut: Cut) -> list[ChatMessage]:
    """The messages without those at these places; instructions stay."""
    return [
        message
        for place, message in enumerate(messages)
        if message["role"] in ("system", "developer") or not any(place in gone for gone in cut)
    ]
