"""`POST /v1/chat/completions`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.chat_answer import ChatChoice, frames, whole
from parallm_openai.api.grammar import requested_grammar, schema_of
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.server import Answer, Server, server_of
from parallm_openai.api.streaming import STREAMED, collected, event_stream
from parallm_openai.api.timed_threads import TooBusy
from parallm_openai.api.tools import ToolUse, tool_grammar, tool_use
from parallm_openai.engine.constraint import Grammar
from parallm_openai.engine.request import SamplingParams
from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.generation import Generation
from parallm_openai.text.templates import TemplateError
from parallm_openai.text.thinking import ThinkingGrammar

router = body_router()


@router.post("/v1/chat/completions", tags=["OpenAI"], responses=STREAMED)
async def create_chat_completion(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation."""
    server = server_of(request)
    server.check_model(body.model)
    body.check()
    generations, parsers, use = await opened(server, body)
    ids = server.tokenizer.call_ids(message.model_dump(exclude_none=True) for message in body.messages)
    choices = [
        ChatChoice(parser, server, ids, logprobs=bool(body.logprobs), many=use.many, legacy=use.legacy)
        for parser in parsers
    ]
    answer = Answer.new("chat.completion", "chatcmpl", body.model)
    if body.stream:
        counted = body.stream_options is not None and bool(body.stream_options.include_usage)
        stream = frames(answer.chunk(), generations, choices, counted)
        return event_stream(stream, generations, server.settings)
    work = whole(answer, generations, choices)
    return JSONResponse(await collected(work, generations))


async def opened(server: Server, body: ChatRequest) -> tuple[list[Generation], list[ChatParser], ToolUse]:
    """The sequences of a checked request, under way, and what reads each. Raises ApiError before any starts."""
    server.check_sequences(body.n or 1, "n")
    use = tool_use(server, body)
    prompt = await rendered(server, body, use)
    tokens = await server.tokens(prompt.text, "messages", special=False)
    limit = server.completion_limit(tokens, body.completion_limit, None, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    grammar = await _grammar(server, body, use, prompt)
    wanted: list[tuple[tuple[int, ...], SamplingParams]] = [
        (
            tokens,
            body.sampling_params(
                server.tokenizer.vocab_size, max_tokens=limit, logprobs=logprobs, choice=choice, grammar=grammar
            ),
        )
        for choice in range(body.n or 1)
    ]
    format = server.tokenizer.chat_format
    parsers = [format.parser(prompt.thinking, use.callable) for _ in wanted]
    ending = None if use.many or not use.callable else partial(format.first_call, prompt.thinking, use.callable)
    return server.open(wanted, body.stops(), format.marks, ending), parsers, use


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation; `thinking` says that the answer begins inside its thoughts."""

    text: str
    thinking: bool
    may_think: bool


async def rendered(server: Server, body: ChatRequest, use: ToolUse) -> Prompt:
    """The conversation in the model's own format. Raises ApiError where its template refuses it."""
    options = _template_options(server, body)
    continues = _continues(body)
    text = await _rendered_text(server, body, use, continues, options)
    marks = server.tokenizer.chat_format.thinking
    if marks is None:
        return Prompt(text, thinking=False, may_think=False)
    inside = marks.open_in(text) or (continues and marks.open_after(body.messages[-1].text))
    wanted = options.get("enable_thinking", server.tokenizer.thinks_by_default)
    return Prompt(text, inside, inside or bool(wanted))


async def _rendered_text(
    server: Server, body: ChatRequest, use: ToolUse, continues: bool, options: dict[str, Any]
) -> str:
    most = server.engine.context_length
    if len(body.messages) > most:
        raise errors.context_exceeded(most, len(body.messages), 1, "messages")
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    render = partial(server.tokenizer.render, messages, tools=use.described, continue_final=continues, options=options)
    seconds = server.settings.template_timeout
    try:
        return str(await server.rendering.run(seconds, render))
    except TemplateError as error:
        raise errors.invalid(str(error), "messages", "invalid_messages") from error
    except TimeoutError as error:
        message = f"The chat template was not through with these messages after {seconds:g} seconds."
        raise errors.invalid(message, "messages", "invalid_messages") from error
    except TooBusy as error:
        raise errors.overloaded("The server is busy with other chat templates. Please try again.") from error


def _template_options(server: Server, body: ChatRequest) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    if taken := server.tokenizer.template.reserved & options.keys():
        field = f"chat_template_kwargs.{min(taken)}"
        raise errors.invalid(f"'{field}' is no variable of the chat template: this server sets it itself.", field)
    effort = body.reasoning_effort
    if effort is not None:
        if effort != "none" and not server.tokenizer.chat_format.reasons:
            raise errors.unsupported("reasoning_effort", "cannot be used: this model does not reason")
        options.setdefault("reasoning_effort", effort)
        options.setdefault("enable_thinking", effort != "none")
    return options


def _continues(body: ChatRequest) -> bool:
    """Whether the model goes on with the last message: an assistant's, unless the request says otherwise."""
    if body.continue_final_message is not None:
        return body.continue_final_message
    last = body.messages[-1]
    called = last.tool_calls or last.function_call
    return last.role == "assistant" and not called and not body.add_generation_prompt


async def _grammar(server: Server, body: ChatRequest, use: ToolUse, prompt: Prompt) -> Grammar | None:
    """What binds the answer: its format, the tools it must call, and the budget of its thoughts."""
    bound: Grammar | None = await requested_grammar(server, body)
    if use.callable:
        schema = schema_of(body.response_format)
        if bound is not None and schema is None:
            raise errors.invalid("A grammar for the answer and tools cannot be used together.", "tools")
        if use.required and schema is not None:
            raise errors.invalid("A required call leaves no answer to be in a format.", "response_format")
        bound = await tool_grammar(server, use, schema)
    marks = server.tokenizer.chat_format.thinking
    if body.thinking_budget is not None and marks is None:
        raise errors.unsupported("thinking_budget", "cannot be used: this model does not mark its thoughts")
    if marks is None or not prompt.may_think or (bound is None and body.thinking_budget is None):
        return bound
    eos = tuple(sorted(server.model.eos_token_ids))
    vocab_size = server.tokenizer.vocab_size
    return ThinkingGrammar(marks, prompt.thinking, vocab_size, eos, body.thinking_budget, bound)
