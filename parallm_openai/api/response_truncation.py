"""`truncation: "auto"`: a conversation that is too long for the context goes on without its oldest turns."""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.api.chat import rendered
from parallm_openai.api.response_input import ChatMessage, chat_request
from parallm_openai.api.schemas.responses import ConversationFields, ResponsesRequest
from parallm_openai.api.server import Server
from parallm_openai.api.tools import tool_use

# Of the context, what is left for an answer whose length the request does not limit.
ROOM = 8

Cut = tuple[range, range]
NOTHING = range(0)


async def prompt_length(server: Server, body: ConversationFields, messages: Sequence[ChatMessage], model: str) -> int:
    """The tokens of the prompt that these messages make."""
    chat = chat_request(body, messages, model)
    prompt = await rendered(server, chat, tool_use(server, chat))
    return len(await server.tokens(prompt.text, "messages", special=False))


async def fitting(
    server: Server, body: ConversationFields, messages: Sequence[ChatMessage], model: str
) -> list[ChatMessage]:
    """The messages without as few of the oldest as leaves room for an answer; all that may go are gone if none does."""
    wanted = body.max_output_tokens if isinstance(body, ResponsesRequest) else None
    limit = server.engine.context_length
    room = limit - (wanted or limit // ROOM)
    cuts = possible_cuts(messages)
    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        if await prompt_length(server, body, without(messages, cuts[middle]), model) <= room:
            high = middle
        else:
            low = middle + 1
    return without(messages, cuts[high])


def possible_cuts(messages: Sequence[ChatMessage]) -> list[Cut]:
    """Which places may go, from nothing to all but the last question and what was called last.

    Whole turns go first, from a user's message to the next one's. Then, within the last turn, calls with their outputs.
    """
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    last = users[-1] if users else -1
    answers = [place for place, message in enumerate(messages) if place > last and message["role"] == "assistant"]
    whole_turns: list[Cut] = [(range(start), NOTHING) for start in users]
    within = [(range(max(last, 0)), range(last + 1, start)) for start in answers[1:]]
    return [*whole_turns, *within] or [(NOTHING, NOTHING)]


def without(messages: Sequence[ChatMessage], cut: Cut) -> list[ChatMessage]:
    """The messages but for those at these places; instructions stay."""
    return [
        message
        for place, message in enumerate(messages)
        if message["role"] in ("system", "developer") or not any(place in gone for gone in cut)
    ]
