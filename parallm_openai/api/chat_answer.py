"""A chat answer in OpenAI's shapes: the chunks of a stream, and whole messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from parallm_openai.api.answer_head import AnswerHead, chat_finish_reason, usage
from parallm_openai.api.chat_description import is_legacy
from parallm_openai.api.logprobs import chat_content
from parallm_openai.api.running import RunningResponse
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.sse import Chunk, json_chunk
from parallm_openai.text.answer import Answer
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning
from parallm_openai.text.output import OutputDelta
from parallm_openai.text.tokenizer import Tokenizer


class TokenOrigins:
    """Counts what is behind each chunk of one choice: its tokens, and how many of them were drafted."""

    def __init__(self) -> None:
        self._tokens = 0
        self._accepted = 0

    def of(self, delta: OutputDelta) -> list[dict[str, int]]:
        """For each event, the tokens read since the one before, in an earlier delta if need be."""
        counts: list[dict[str, int]] = []
        before = 0
        for read in delta.read:
            self._read(delta, before, read)
            counts.append({"tokens": self._tokens, "accepted": self._accepted})
            self._tokens = self._accepted = 0
            before = read
        self._read(delta, before, len(delta.tokens))
        return counts

    def _read(self, delta: OutputDelta, start: int, end: int) -> None:
        self._tokens += end - start
        self._accepted += min(end, delta.accepted) - min(start, delta.accepted)


class ChatChoice:
    """One choice as it grows. `legacy` answers with `function_call`."""

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool, legacy: bool) -> None:
        self._tokenizer = tokenizer
        self._with_logprobs = logprobs
        self._legacy = legacy
        self.origins = TokenOrigins()
        self._answer = Answer()
        self._logprobs: list[dict[str, Any]] = []

    def read(self, delta: OutputDelta) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """The deltas in OpenAI's shape, and the log-probabilities that come with the first of them."""
        self._answer.add(delta.events)
        logprobs = chat_content(delta.logprobs, self._tokenizer) if self._with_logprobs else []
        self._logprobs += logprobs
        deltas = [self._shaped(event) for event in delta.events if not isinstance(event, Finish)]
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        return deltas, {"content": logprobs, "refusal": None} if logprobs else None

    def _shaped(self, event: Event) -> dict[str, Any]:
        match event:
            case Reasoning(text):
                return {"reasoning_content": text, "reasoning": text}
            case Content(text):
                return {"content": text}
            case CallStart(index, name, id):
                head = {"id": id, "type": "function"}
                return self._call_delta(index, {"name": name, "arguments": ""}, head)
            case CallArguments(index, text):
                return self._call_delta(index, {"arguments": text}, {})
            case Finish():
                return {}

    def _call_delta(self, index: int, function: dict[str, str], head: dict[str, str]) -> dict[str, Any]:
        if self._legacy:
            return {"function_call": function}
        return {"tool_calls": [{"index": index, **head, "function": function}]}

    @property
    def finish_reason(self) -> str | None:
        return chat_finish_reason(self._answer.finish, legacy=self._legacy)

    def message(self) -> dict[str, Any]:
        content, reasoning, calls = self._answer.content, self._answer.reasoning, self._answer.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not calls else None,
            "refusal": None,
            "annotations": [],
        }
        if reasoning:
            message["reasoning_content"] = message["reasoning"] = reasoning
        functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        if functions and self._legacy:
            message["function_call"] = functions[0]
        elif functions:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function}
                for call, function in zip(calls, functions, strict=True)
            ]
        return message

    def body(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": self.message(),
            "logprobs": {"content": self._logprobs, "refusal": None} if self._with_logprobs else None,
            "finish_reason": self.finish_reason,
        }


class ChatAnswer:
    """The answer to one request, with all of its choices."""

    def __init__(self, body: ChatRequest, model: str, running: RunningResponse, tokenizer: Tokenizer) -> None:
        self._running = running
        self._head = AnswerHead.new("chat.completion", "chatcmpl", model)
        self._counted = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._with_origins = bool(body.return_speculative)
        # Before a call, OpenAI sends no text, not even an empty one: clients would show it.
        self._opening = None if body.tools or body.functions else ""
        logprobs, legacy = bool(body.logprobs), is_legacy(body)
        self._choices = [ChatChoice(tokenizer, logprobs=logprobs, legacy=legacy) for _ in running.generations]

    async def stream_chunks(self) -> AsyncIterator[Chunk]:
        """OpenAI's order for each choice: the role, what it says, the reason; at the end the usage if asked for."""
        head = self._head.chunk()
        more: dict[str, object] = {"usage": None} if self._counted else {}

        def chunk(
            index: int,
            delta: dict[str, Any],
            logprobs: dict[str, Any] | None = None,
            reason: str | None = None,
            origin: dict[str, int] | None = None,
        ) -> Chunk:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            if self._with_origins:
                choice["speculative"] = origin or {"tokens": 0, "accepted": 0}
            return json_chunk(head.body([choice], **more))

        for index in range(len(self._choices)):
            yield chunk(index, {"role": "assistant", "content": self._opening, "refusal": None})
        async for index, delta in self._running.deltas():
            choice = self._choices[index]
            deltas, logprobs = choice.read(delta)
            origins = iter(choice.origins.of(delta) if self._with_origins else ())
            for shaped in deltas:
                yield chunk(index, shaped, logprobs, origin=next(origins, None))
                logprobs = None
            if delta.finish_reason is not None:
                yield chunk(index, {}, reason=choice.finish_reason, origin=next(origins, None))
        if self._counted:
            yield json_chunk(head.body([], usage=self._usage()))

    async def collect(self) -> dict[str, object]:
        """The answer as a whole."""
        async for index, delta in self._running.deltas():
            self._choices[index].read(delta)
        bodies = [choice.body(index) for index, choice in enumerate(self._choices)]
        return self._head.body(bodies, usage=self._usage())

    def _usage(self) -> dict[str, object]:
        return usage(self._running.generations, n=len(self._choices))
