"""The one way in: a described request becomes what the engine and the parser of its answers need."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from parallm_openai.engine.constraint import Grammar
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.text.call_ids import CallIds
from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.conversation import RenderedPrompt, render_prompt
from parallm_openai.text.defaults import Defaults
from parallm_openai.text.description import ChatDescription, Options, Prompt, TextDescription
from parallm_openai.text.draws import new_seed
from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.grammar.requested import RequestedGrammars
from parallm_openai.text.messages import check_messages
from parallm_openai.text.output import OutputProcessor
from parallm_openai.text.prompt_tokens import Limits, PromptTokens
from parallm_openai.text.request_error import Field, RequestError, unsupported
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.tools.use import ToolUse, tool_use
from parallm_openai.text.workers import Workers

log = logging.getLogger(__name__)

# A model and a server that say nothing.
NO_DEFAULTS = Defaults()
_GENERIC_TOOLS = (
    "The chat template has no form of tool calls that the server reads, so that it describes tools in the instructions "
    "and takes calls as JSON in <tool_call> tags. --tool-call-parser names another form."
)


@dataclass(frozen=True)
class Prepared:
    """One prompt, ready to be generated from: `params` has the sampling parameters of each of its choices.

    `shown` are special tokens that the text of an answer keeps. `new_parser` makes a parser for each choice; None
    means that all text is content. `grammar_field` is the request's field that a failing grammar comes from.
    """

    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    params: tuple[SamplingParams, ...]
    stops: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    new_parser: Callable[[], ChatParser | None] = field(default=lambda: None)
    call_ids: CallIds | None = None
    grammar_field: str | None = None
    salt: str = ""

    def requests(self) -> list[Request]:
        """A request to the engine for each choice."""
        return [Request(self.prompt, params, self.salt) for params in self.params]

    def processor(self) -> OutputProcessor:
        """What reads the outputs of one choice."""
        return OutputProcessor(
            self.tokenizer, self.stops, self.shown, self.new_parser(), self.call_ids, self.grammar_field
        )


class Preparer:
    """Prepares requests to one model. Raises RequestError, always before anything is started."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        grammars: Grammars,
        eos_ids: Iterable[int],
        limits: Limits,
        workers: Workers,
        defaults: Defaults = NO_DEFAULTS,
    ) -> None:
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._workers = workers
        self._grammars = RequestedGrammars(tokenizer, grammars, workers, tuple(sorted(eos_ids)))
        self._prompts = PromptTokens(tokenizer, limits)
        self._told_of_generic_tools = False

    async def chat(self, description: ChatDescription) -> Prepared:
        """A conversation, with its tools, its answer's format and its thoughts."""
        self._prompts.check_sequences(description.n, "n")
        self._prompts.check_messages(len(description.messages))
        check_messages(description.messages)
        format = self._tokenizer.chat_format
        use = tool_use(description, format)
        rendered = await self._rendered(description, use)
        prompt = await self._chat_tokens(rendered)
        length = self._answer_length(prompt, description, "messages")
        grammar = await self._grammars.of_chat(description, use, rendered)
        # A format binds all of an answer that cannot be a call.
        bound = bool(description.formats) and not use.callable
        return Prepared(
            self._tokenizer,
            prompt,
            self._choices(description, length, grammar),
            stops=description.stops,
            shown=format.marks,
            new_parser=partial(format.parser, rendered.beginning, use.callable, bound=bound, once=not use.many),
            call_ids=self._tokenizer.call_ids(description.messages),
            grammar_field=_grammar_field(description) or ("tools" if description.tools else None),
            salt=description.salt,
        )

    async def text(self, description: TextDescription) -> list[Prepared | RequestError]:
        """Prompts as they are; an error stands in the place of a prompt that is at fault by itself."""
        prompts = description.prompts
        if not prompts:
            raise RequestError("'{}' must not be an empty list.", Field("prompts"), field="prompts")
        self._prompts.check_sequences(len(prompts) * description.n, "prompts" if len(prompts) > 1 else "n")
        # What concerns all prompts is an error of the request itself.
        self._check_token_ids(description.sampling)
        grammar = await self._grammars.of_text(description.formats)
        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, (str, list, tuple)))
        read = partial(self._read_prompts, description)
        found: list[Prepared | RequestError] = []
        for index, tokens in enumerate(await self._workers.tokenize(size, read)):
            try:
                if isinstance(tokens, RequestError):
                    raise tokens
                length = self._answer_length(tokens, description, f"prompts[{index}]")
            except RequestError as error:
                found.append(error)
                continue
            choices = self._choices(description, length, grammar)
            field = _grammar_field(description)
            found.append(
                Prepared(
                    self._tokenizer,
                    tokens,
                    choices,
                    stops=description.stops,
                    grammar_field=field,
                    salt=description.salt,
                )
            )
        return found

    async def rendered(self, description: ChatDescription) -> tuple[str, tuple[int, ...]]:
        """The prompt of a conversation as text and as token ids; nothing else of the request is looked at."""
        self._prompts.check_messages(len(description.messages))
        check_messages(description.messages)
        use = tool_use(description, self._tokenizer.chat_format)
        rendered = await self._rendered(description, use)
        return rendered.text, await self._chat_tokens(rendered)

    async def tokenized(self, text: str, field: str, *, special: bool = True) -> list[int]:
        """A text's token ids."""
        return await self._workers.tokenize(len(text), partial(self._prompts.of_text, text, field, special=special))

    async def inputs(self, inputs: Sequence[Prompt], field: str, *, cut: bool = False) -> list[tuple[int, ...]]:
        """The token ids of what is to be embedded, with the special tokens that the model wants.

        The request has them in `field`. One that is too long for the context is cut to it if `cut`, else an error.
        """
        size = sum(map(len, inputs))

        def named(index: int) -> str:
            return f"{field}[{index}]" if len(inputs) > 1 else field

        def read() -> list[tuple[int, ...]]:
            return [self._prompts.of_input(each, named(index), cut=cut) for index, each in enumerate(inputs)]

        return await self._workers.tokenize(size, read)

    async def detokenized(self, tokens: list[int], field: str) -> str:
        """The text of token ids, of which special ones have none."""
        known = self._prompts.known(tokens, field)
        return await self._workers.tokenize(len(known), partial(self._tokenizer.decode, known))

    async def _rendered(self, description: ChatDescription, use: ToolUse) -> RenderedPrompt:
        if use.listed and self._tokenizer.chat_format.generic_tools and not self._told_of_generic_tools:
            self._told_of_generic_tools = True
            log.info(_GENERIC_TOOLS)
        variables = self._defaults.template_variables
        return await render_prompt(self._tokenizer, self._workers, description, use, variables)

    async def _chat_tokens(self, rendered: RenderedPrompt) -> tuple[int, ...]:
        # A template writes the special tokens itself.
        work = partial(self._prompts.of, rendered.text, "messages", special=False)
        return await self._workers.tokenize(len(rendered.text), work)

    def _read_prompts(self, description: TextDescription) -> list[tuple[int, ...] | RequestError]:
        def read(index: int, prompt: Any) -> tuple[int, ...] | RequestError:
            field = f"prompts[{index}]"
            try:
                if description.suffix:
                    prompt = self._infilled(prompt, description.suffix, field)
                return self._prompts.of(prompt, field, empty_is_start=description.empty_is_start)
            except RequestError as error:
                return error

        return [read(index, prompt) for index, prompt in enumerate(description.prompts)]

    def _infilled(self, prompt: Any, suffix: str, field: str) -> list[int]:
        """The prompt that asks for what stands between `prompt` and `suffix`."""
        if not isinstance(prompt, str):
            sentence = "With '{}', '{}' must be text."
            raise RequestError(sentence, Field("suffix"), Field(field), field=field, kind="invalid_type")
        infilled = self._tokenizer.infill(prompt, suffix)
        if infilled is None:
            raise unsupported("suffix", "cannot be used: this model has no tokens to fill in the middle with")
        return infilled

    def _answer_length(self, prompt: tuple[int, ...], options: Options, field: str) -> int:
        wanted, default = options.sampling.max_tokens, self._defaults.sampling.max_tokens or options.default_max_tokens
        if options.cut_to_context and wanted is not None:
            # As a default it gives way to the context.
            wanted, default = None, wanted
        return self._prompts.answer_length(prompt, wanted, default, field)

    def _choices(self, options: Options, length: int, grammar: Grammar | None) -> tuple[SamplingParams, ...]:
        """The sampling parameters of each choice: the same but for the seed."""
        sampling = self._defaults.filled(options.sampling)
        self._check_token_ids(sampling)
        grammar = sampling.grammar if grammar is None else grammar
        seed = new_seed() if sampling.seed is None else sampling.seed
        return tuple(
            replace(sampling, max_tokens=length, grammar=grammar, seed=_seed_of(seed, choice))
            for choice in range(options.n)
        )

    def _check_token_ids(self, sampling: SamplingParams) -> None:
        """Ids from outside never reach an array unchecked: MLX does not look at indices."""
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            if unknown := self._tokenizer.unknown_ids(list(ids)):
                sentence = "Invalid value in '{}': {} is not a token id (0 to {})."
                raise RequestError(sentence, Field(name), unknown[0], self._tokenizer.vocab_size - 1, field=name)


def _grammar_field(options: Options) -> str | None:
    return options.formats[0].field if options.formats else None


def _seed_of(seed: int | None, choice: int) -> int | None:
    """The first choice has the request's own seed; each further one a seed that follows from it."""
    if seed is None or choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
