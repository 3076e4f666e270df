"""Generation in this process: `LLM(model).generate(prompts)` continues texts, `LLM(model).chat(messages)` answers."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import index
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from parallm_openai.cpu import prepare
from parallm_openai.engine.request import Output, SamplingParams
from parallm_openai.models.loading import LoadedModel, load
from parallm_openai.results import ChatResult, GenerationResult, GrowingAnswer, Stream
from parallm_openai.settings import EngineConfig
from parallm_openai.text.answer import ToolCall
from parallm_openai.text.call_ids import Message
from parallm_openai.text.defaults import Defaults, asked
from parallm_openai.text.description import AnswerFormat, ChatDescription, Prompt, TextDescription, Tool, ToolChoice
from parallm_openai.text.events import Event
from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.prepare import Prepared, Preparer
from parallm_openai.text.request_error import RequestError, invalid_value
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.workers import Inline, run_inline

if TYPE_CHECKING:
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.engine.worker import Engine

__all__ = ["LLM", "ChatResult", "GenerationResult", "RequestError", "SamplingParams", "Stream", "ToolCall"]

Conversation = Sequence[Message]
"""Messages as OpenAI's clients write them: `{"role": "user", "content": "Hello"}` and so on."""


@dataclass(frozen=True)
class _Limits:
    context_length: int
    engine: Engine

    @property
    def capacity(self) -> int:
        return self.engine.capacity


class LLM:
    """A model with an engine of its own.

    `model` and `draft_model` are folders, GGUF files, hub ids or loaded models. `draft_model` may also be "suffix", or
    "mtp" for the model's own head, or "auto" for that if there is one. Further keywords are fields of `EngineConfig`.
    Raises ModelLoadError or UnsupportedModelError. Use it as a context manager, or `close` it, to free the engine's
    thread.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        draft_model: str | Path | DraftSource = None,
        config: EngineConfig | None = None,
        **settings: Any,
    ) -> None:
        prepare()
        # These import mlx, which must not come before.
        from parallm_openai.engine.build import build_core
        from parallm_openai.engine.worker import Engine

        self.model = model if isinstance(model, LoadedModel) else load(model)
        draft: Any = draft_model
        if isinstance(draft, str | Path) and draft not in ("auto", "mtp", "suffix"):
            draft = load(draft)
        if config is None:
            # A queue without an end: everything comes from one caller.
            settings = {"max_queue": 10**9, **settings}
        config = (config or EngineConfig()).model_copy(update=EngineConfig(**settings).model_dump(include={*settings}))
        self.tokenizer = Tokenizer(self.model.tokenizer, self.model.vocab_size)
        self._outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        self._engine = Engine(partial(build_core, self.model, config, draft), self._outputs.put)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: str | Sequence[str] = (),
        use_tqdm: bool = True,
    ) -> list[GenerationResult]:
        """Continue every prompt (text or token ids), batched; the results are in the prompts' order.

        Without sampling parameters, those hold that the model's makers recommend, and an answer has 16 tokens at most.
        Raises RequestError, which is a ValueError, for a prompt that is empty, too long or has an unknown id, before
        anything starts. Raises GenerationError if the engine fails.
        """
        listed = _as_list(prompts)
        params = _one_each(sampling_params, len(listed), asked(max_tokens=16), "prompts")
        prepared = [
            self._prepared_text(prompt, each, _stops(stop)) for prompt, each in zip(listed, params, strict=True)
        ]
        sequences = self._run(prepared, use_tqdm)
        return [
            GenerationResult(prompt=prompt, text=sequence.answer.content, **sequence.counts)
            for prompt, sequence in zip(listed, sequences, strict=True)
        ]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        json_schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        reasoning_effort: str | None = None,
        thinking_budget: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
        stop: str | Sequence[str] = (),
        use_tqdm: bool = False,
    ) -> list[ChatResult]:
        """Answer one conversation or several, batched; the results are in the order of the conversations.

        Messages and `tools` are as OpenAI's clients write them. `tool_choice` is "auto", "none", "required" or a
        tool's name. An answer that calls no tool follows `json_schema`, `regex` or `grammar` (Lark), of which there
        may be one. Without sampling parameters an answer may be as long as the context allows, and is sampled as the
        model's makers recommend.

        Raises RequestError, which is a ValueError, before anything starts, and GenerationError if the engine fails.
        """
        wanted = {"json_schema": json_schema, "regex": regex, "lark": grammar}
        description = ChatDescription(
            messages=(),
            tools=tools,
            tool_choice=_tool_choice(tool_choice),
            parallel_tool_calls=parallel_tool_calls,
            formats=tuple(_format(kind, value) for kind, value in wanted.items() if value is not None),
            reasoning_effort=reasoning_effort,
            thinking_budget=thinking_budget,
            chat_template_kwargs=chat_template_kwargs or {},
            continue_final_message=continue_final_message,
            stops=_stops(stop),
        )
        conversations = _as_conversations(messages)
        params = _one_each(sampling_params, len(conversations), asked(), "conversations")
        prepared = [
            run_inline(self._preparer.chat(replace(description, messages=each, **_lengths(own))))
            for each, own in zip(conversations, params, strict=True)
        ]
        return [
            ChatResult(
                content=sequence.answer.content,
                reasoning=sequence.answer.reasoning,
                tool_calls=sequence.answer.calls,
                **sequence.counts,
            )
            for sequence in self._run(prepared, use_tqdm)
        ]

    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
    ) -> Stream:
        """Continue a prompt (text or token ids), or answer a conversation (messages), event by event.

        Parameters and errors are those of `generate` and `chat`. One thread may have one stream open at a time.
        """
        if isinstance(prompt, str) or not any(isinstance(each, Mapping) for each in prompt):
            prepared = self._prepared_text(prompt, sampling_params or asked(max_tokens=16), _stops(stop))  # type: ignore[arg-type]
        else:
            description = ChatDescription(
                messages=prompt,  # type: ignore[arg-type]
                chat_template_kwargs=chat_template_kwargs or {},
                stops=_stops(stop),
                **_lengths(sampling_params or asked()),
            )
            prepared = run_inline(self._preparer.chat(description))
        sequence = GrowingAnswer(prepared.requests()[0], prepared.processor())
        return Stream(sequence, self._events_of(sequence))

    def _events_of(self, sequence: GrowingAnswer) -> Iterator[Event]:
        unfinished = {sequence.request.id: sequence}
        self._engine.submit(sequence.request)
        try:
            while unfinished:
                for output in self._outputs.get():
                    yield from self._take(output, unfinished)
        finally:
            for identity in unfinished:
                self._engine.cancel(identity)

    def _prepared_text(self, prompt: Prompt, params: SamplingParams, stops: tuple[str, ...]) -> Prepared:
        try:
            text = prompt if isinstance(prompt, str) else [index(token) for token in prompt]
        except TypeError as error:
            raise invalid_value("prompts", "expected text, or token ids.") from error
        description = TextDescription(prompts=[text], stops=stops, empty_is_start=False, **_lengths(params))
        [prepared] = run_inline(self._preparer.text(description))
        if isinstance(prepared, RequestError):
            raise prepared
        return prepared

    def _run(self, prepared: Sequence[Prepared], use_tqdm: bool) -> list[GrowingAnswer]:
        """Generate from all that is prepared, a choice each, to the end."""
        sequences = [GrowingAnswer(each.requests()[0], each.processor()) for each in prepared]
        unfinished = {sequence.request.id: sequence for sequence in sequences}
        for sequence in sequences:
            self._engine.submit(sequence.request)
        try:
            with tqdm(total=len(sequences), desc="Generating", unit="prompt", disable=not use_tqdm) as progress:
                while unfinished:
                    for output in self._outputs.get():
                        self._take(output, unfinished)
                    progress.update(len(sequences) - len(unfinished) - progress.n)
        finally:
            for identity in unfinished:
                self._engine.cancel(identity)
        return sequences

    def _take(self, output: Output, unfinished: dict[int, GrowingAnswer]) -> tuple[Event, ...]:
        """Note what came for a sequence, and return its events."""
        sequence = unfinished.get(output.request_id)
        if sequence is None:
            return ()
        delta = sequence.processor.process(output)
        sequence.answer.add(delta.events)
        sequence.tokens += delta.tokens
        if delta.finish_reason is not None:
            # A stop string or a completed call ends the sequence before the engine knows of it.
            self._engine.cancel(output.request_id, delta.finish_reason)
            del unfinished[output.request_id]
        return delta.events

    @cached_property
    def _grammars(self) -> Grammars:
        return self.tokenizer.grammars(self.model.eos_token_ids)

    @cached_property
    def _preparer(self) -> Preparer:
        limits = _Limits(self.model.context_length, self._engine)
        return Preparer(
            self.tokenizer, self._grammars, self.model.eos_token_ids, limits, Inline(), Defaults.of(self.model)
        )

    def stats(self) -> dict[str, Any]:
        """The engine's numbers, as `/v1/stats` gives them."""
        return self._engine.stats()

    def close(self) -> None:
        """End the engine's thread; running requests are cancelled."""
        self._engine.stop()
        if "_grammars" in self.__dict__:
            self._grammars.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    if isinstance(messages, (str, Mapping)) or any(isinstance(each, str) for each in messages):
        raise invalid_value("messages", "expected a list of messages, or a list of such lists.")
    if messages and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams, what: str
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} sampling parameters for {count} {what}")
    return list(params)


def _lengths(params: SamplingParams) -> dict[str, Any]:
    """The parameters as a description has them: their `max_tokens` gives way to the context."""
    return {"sampling": replace(params, max_tokens=None), "default_max_tokens": params.max_tokens}


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string, or several."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(each, str) for each in stops):
        raise invalid_value("stop", "expected a text or several.")
    return stops


def _tool_choice(choice: str) -> ToolChoice:
    if not isinstance(choice, str):
        raise invalid_value("tool_choice", "expected auto, none, required, or the name of a tool.")
    match choice:
        case "auto" | "none" | "required" as mode:
            return ToolChoice(mode)
        case name:
            return ToolChoice("named", (name,))


def _format(kind: str, value: Any) -> AnswerFormat:
    match kind:
        case "json_schema":
            return AnswerFormat("json_schema", value, "json_schema")
        case "regex":
            return AnswerFormat("regex", value, "regex")
        case _:
            return AnswerFormat("lark", value, "grammar")
