"""The grammar of a sequence: made of the answer's format, the tools that must be called and the budget for thoughts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from parallm_openai.engine.constraint import Grammar
from parallm_openai.text.conversation import RenderedPrompt
from parallm_openai.text.description import AnswerFormat, ChatDescription
from parallm_openai.text.grammar.answer_grammar import AnswerGrammar, Bound
from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.grammar.token_grammar import GrammarBusyError, GrammarError, TokenGrammar
from parallm_openai.text.request_error import Field, RequestError, invalid_value, unsupported
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.tools.call_grammar import (
    Schema,
    SchemaFault,
    ToolsNotEnforceable,
    arguments,
    checked_calls,
    fault,
    forced_calls,
    free_calls,
)
from parallm_openai.text.tools.use import ToolUse
from parallm_openai.text.workers import Workers

CallGrammars = Mapping[str, Grammar | None]
"""Each tool that may be called, with the grammar of its arguments if they are bound by one."""


@dataclass(frozen=True)
class RequestedGrammars:
    """Makes the grammars that requests to one model ask for."""

    tokenizer: Tokenizer
    grammars: Grammars
    workers: Workers
    eos_ids: tuple[int, ...]

    async def of_text(self, formats: Sequence[AnswerFormat]) -> TokenGrammar | None:
        """The grammar of an answer that is nothing but text in one of the formats. Raises RequestError."""
        wanted = _only(formats)
        if wanted is None:
            return None
        return await self._compiled(wanted.field, partial(self._format_grammar, wanted))

    async def of_chat(self, description: ChatDescription, use: ToolUse, prompt: RenderedPrompt) -> Grammar | None:
        """The grammar of a chat answer, thoughts and calls included. Raises RequestError."""
        answer = await self._answer_grammar(description, use)
        calls: CallGrammars = {}
        format = self.tokenizer.chat_format
        if use.callable:
            if format.harmony:
                calls = await self._arguments_grammars(use, enforced=answer is not None)
            else:
                answer = await self._calls_grammar(use, None if use.required else _only(description.formats))
        if description.thinking_budget is not None and not format.reasons:
            raise unsupported("thinking_budget", "cannot be used: this model does not mark its thoughts")
        if answer is None and description.thinking_budget is None and not any(calls.values()):
            return None
        answers, thinks, token_id = not use.required, prompt.may_think, self.tokenizer.token_id
        nodes, start = format.script(prompt.beginning, answer, calls, token_id, answers=answers, thinks=thinks)
        if nodes[start] == Bound(answer):
            return answer
        return AnswerGrammar(
            nodes,
            start,
            await self.workers.tokenize(0, lambda: self.tokenizer.lexicon),
            self.tokenizer.vocab_size,
            self.eos_ids,
            description.thinking_budget,
            must=answer is not None or use.required,
        )

    async def _answer_grammar(self, description: ChatDescription, use: ToolUse) -> TokenGrammar | None:
        """The grammar of the format alone: for an answer without tools, and for Harmony, whose calls stand apart."""
        if use.required:
            return None
        if use.callable and not self.tokenizer.chat_format.harmony:
            if any(format.kind != "json_schema" for format in description.formats):
                sentence = "A regular expression or a Lark grammar cannot be used together with {}."
                raise RequestError(sentence, Field("tools"), field="tools")
            return None
        return await self.of_text(description.formats)

    def _format_grammar(self, format: AnswerFormat) -> TokenGrammar:
        match format.kind:
            case "json_schema":
                return self.grammars.json_schema(format.value)
            case "regex":
                return self.grammars.regex(format.value)
            case "lark":
                return self.grammars.lark(format.value)

    async def _compiled(self, field: str, work: Callable[[], TokenGrammar]) -> TokenGrammar:
        """What `work` compiles. Raises RequestError naming the field."""
        try:
            return await self._compile(work)
        except GrammarError as error:
            raise invalid_value(field, error) from error

    async def _compile(self, work: Callable[[], TokenGrammar]) -> TokenGrammar:
        try:
            return await self.workers.compile(work)
        except GrammarBusyError as error:
            sentence = "The grammar cannot be compiled now: {}. Please try again."
            raise RequestError(sentence, error, kind="busy") from error

    async def _calls_grammar(self, use: ToolUse, answer: AnswerFormat | None) -> TokenGrammar | None:
        """What makes an answer call a tool, or call it as its schema says; None if nothing is enforced.

        With `answer`, an answer that calls no tool is JSON of that schema.
        """
        if not (use.required or use.restricted or answer is not None):
            return None
        answer_field = "tools" if answer is None else answer.field
        field = "tool_choice" if use.required else answer_field
        lark = partial(self._calls_lark, use, None if answer is None else answer.value)
        try:
            return await self._compile(partial(self._lark_grammar, lark, use.callable))
        except ToolsNotEnforceable as error:
            reason = f"cannot be enforced together with this model's way of calling tools ({error})"
            raise unsupported(field, reason) from error
        except SchemaFault as error:
            faulty = answer_field if error.tool is None else use.parameters_field(error.tool)
            raise invalid_value(faulty, error) from error
        except GrammarError as error:
            raise invalid_value(field, error) from error

    def _calls_lark(self, use: ToolUse, answer: Schema | None) -> str:
        format, token_id = self.tokenizer.chat_format.tools, self.tokenizer.token_id
        if format is None:
            raise ToolsNotEnforceable("harmony")
        if answer is not None and format.wording is None and not use.restricted:
            return free_calls(format, token_id, answer)
        if use.required or answer is not None:
            return forced_calls(format, use.callable, use.many, token_id, answer)
        return checked_calls(format, use.callable, use.many, token_id)

    async def _arguments_grammars(self, use: ToolUse, *, enforced: bool) -> CallGrammars:
        """For formats whose calls stand in messages of their own: what binds each tool's arguments, if anything does.

        They are bound if calls are required, restricted, strict or `enforced`.
        """
        names = [tool["function"]["name"] for tool in use.callable]
        if not (enforced or use.required or use.restricted):
            return dict.fromkeys(names)
        return {
            name: await self._compiled(
                use.parameters_field(name), partial(self._lark_grammar, partial(arguments, tool), [tool])
            )
            for name, tool in zip(names, use.callable, strict=True)
        }

    def _lark_grammar(self, write: Callable[[], str], tools: Iterable[Mapping[str, Any]]) -> TokenGrammar:
        """Write a grammar of calls and compile it. Raises GrammarError naming the schema at fault if it can."""
        lark = write()
        try:
            return self.grammars.lark(lark)
        except GrammarError as error:
            raise fault(lark, list(tools), error) from error


def _only(formats: Sequence[AnswerFormat]) -> AnswerFormat | None:
    """The only one of the formats. Raises RequestError if there are several."""
    if len(formats) > 1:
        sentence = " and ".join(["'{}'"] * len(formats)) + " cannot be used together."
        fields = [format.field for format in formats]
        raise RequestError(sentence, *map(Field, fields), field=fields[0])
    return formats[0] if formats else None
