"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.chat_answer import ChatChoice, frames, whole
from parallm_openai.api.grammar import grammar_field, requested_grammar, schema_of
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.server import Answer, Server, server_of
from parallm_openai.api.streaming import STREAMED, collected, event_stream
from parallm_openai.api.timed_threads import TooBusy
from parallm_openai.api.tools import CallGrammars, ToolUse, call_grammars, tool_grammar, tool_use
from parallm_openai.engine.constraint import Grammar
from parallm_openai.engine.request import SamplingParams
from parallm_openai.text.generation import Generation
from parallm_openai.text.reasoning import Beginning
from parallm_openai.text.templates import TemplateError
from parallm_openai.text.thinking import AnswerGrammar, Bound

router = body_router()


@router.post("/v1/chat/completions", tags=["OpenAI"], responses=STREAMED)
async def create_chat_completion(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation."""
    server = server_of(request)
    server.check_model(body.model)
    body.check()
    generations, use = await opened(server, body, server.owner(request))
    ids = server.tokenizer.call_ids(message.model_dump(exclude_none=True) for message in body.messages)
    choices = [ChatChoice(server, ids, logprobs=bool(body.logprobs), legacy=use.legacy) for _ in generations]
    answer = Answer.new("chat.completion", "chatcmpl", body.model)
    if body.stream:
        counted = body.stream_options is not None and bool(body.stream_options.include_usage)
        stream = frames(answer.chunk(), generations, choices, counted)
        return event_stream(stream, generations, server.settings)
    work = whole(answer, generations, choices)
    return JSONResponse(await collected(work, generations))


async def opened(server: Server, body: ChatRequest, owner: str) -> tuple[list[Generation], ToolUse]:
    """The sequences of a checked request, under way. Raises ApiError before any starts."""
    server.check_sequences(body.n or 1, "n")
    use = tool_use(server, body)
    prompt = await rendered(server, body, use)
    tokens = await server.tokens(prompt.text, "messages", special=False)
    wanted_param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = server.completion_limit(tokens, body.completion_limit, None, "messages", wanted_param)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    answer = await _answer_grammar(server, body, use)
    grammar = await _grammar(server, body, use, prompt, answer)
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
    bound = answer is not None and not use.callable
    parser = partial(format.parser, prompt.beginning, use.callable, bound=bound, once=not use.many)
    salt = f"{owner} {body.prompt_cache_key or ''}"
    return server.open(wanted, body.stops(), format.marks, parser, salt=salt, grammar_field=grammar_field(body)), use


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, and where its answer begins."""

    text: str
    beginning: Beginning
    may_think: bool


async def rendered(server: Server, body: ChatRequest, use: ToolUse) -> Prompt:
    """The conversation in the model's own format. Raises ApiError where its template refuses it."""
    options = _template_options(server, body)
    continues = _continues(body)
    text = await _rendered_text(server, body, use, continues, options)
    format = server.tokenizer.chat_format
    beginning = format.beginning(text, body.messages[-1].text if continues else None)
    if beginning is Beginning.THOUGHTS:
        return Prompt(text, beginning, may_think=True)
    default = format.harmony or (format.thinking is not None and server.tokenizer.thinks_by_default)
    return Prompt(text, beginning, may_think=bool(options.get("enable_thinking", default)))


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
        raise errors.invalid(f"'{field}' cannot be set: the server sets it itself.", field)
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


async def _answer_grammar(server: Server, body: ChatRequest, use: ToolUse) -> Grammar | None:
    """What binds an answer by itself; a required call leaves none, and `tool_grammar` binds both where it can."""
    if use.required:
        return None
    if use.callable and not server.tokenizer.chat_format.harmony:
        if body.guided_regex is not None or body.grammar is not None:
            raise errors.invalid("A regular expression or a Lark grammar cannot be used together with tools.", "tools")
        return None
    return await requested_grammar(server, body)


def _answer_schema(body: ChatRequest) -> Mapping[str, Any] | None:
    """The schema that an answer follows if it is no call."""
    schema = schema_of(body.response_format)
    if schema is not None and body.guided_json is not None:
        raise errors.invalid("'response_format' and 'guided_json' cannot be used together.", "response_format")
    return body.guided_json if schema is None else schema


async def _grammar(
    server: Server, body: ChatRequest, use: ToolUse, prompt: Prompt, answer: Grammar | None
) -> Grammar | None:
    """What binds a sequence: the `answer` that is asked for, the tools it must call, the budget of its thoughts."""
    calls: CallGrammars = {}
    format = server.tokenizer.chat_format
    if use.callable:
        if format.harmony:
            calls = await call_grammars(server, use, enforced=answer is not None)
        else:
            answer = await tool_grammar(server, use, None if use.required else _answer_schema(body))
    if body.thinking_budget is not None and not format.reasons:
        raise errors.unsupported("thinking_budget", "cannot be used: this model does not mark its thoughts")
    if answer is None and body.thinking_budget is None and not any(calls.values()):
        return None
    answers, thinks, token_id = not use.required, prompt.may_think, server.tokenizer.token_id
    nodes, start = format.script(prompt.beginning, answer, calls, token_id, answers=answers, thinks=thinks)
    if nodes[start] == Bound(answer):
        return answer
    return AnswerGrammar(
        nodes,
        start,
        await server.off_loop(0, lambda: server.tokenizer.lexicon),
        server.tokenizer.vocab_size,
        tuple(sorted(server.model.eos_token_ids)),
        body.thinking_budget,
        must=answer is not None or use.required,
    )
