"""A chat answer in OpenAI's shapes: the deltas of a stream, and whole messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallm_openai.api.logprobs import chat_content
from parallm_openai.api.server import Answer, Server, usage
from parallm_openai.api.streaming import frame, merged
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.call_ids import CallIds
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning
from parallm_openai.text.generation import Generation, TextDelta


@dataclass
class _Call:
    name: str
    id: str
    arguments: list[str] = field(default_factory=list)


class ChatChoice:
    """One choice as it grows. `legacy` answers with `function_call`."""

    def __init__(self, server: Server, ids: CallIds, *, logprobs: bool, legacy: bool) -> None:
        self._server = server
        self._ids = ids
        self._with_logprobs = logprobs
        self._legacy = legacy
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._scored: list[dict[str, Any]] = []
        self._finish_reason: FinishReason | None = None

    def read(self, delta: TextDelta) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """The deltas in OpenAI's shape, and the log-probabilities that come with the first of them."""
        self._finish_reason = delta.finish_reason
        scored = chat_content(delta.logprobs, self._server.tokenizer) if self._with_logprobs else []
        self._scored += scored
        deltas = [self._shaped(event) for event in delta.events]
        if scored and not deltas:
            deltas = [{"content": ""}]
        return deltas, {"content": scored, "refusal": None} if scored else None

    def _shaped(self, event: Event) -> dict[str, Any]:
        match event:
            case Reasoning(text):
                self._reasoning.append(text)
                return {"reasoning_content": text, "reasoning": text}
            case Content(text):
                self._content.append(text)
                return {"content": text}
            case CallStart(index, name):
                self._calls.append(_Call(name, self._ids.new(index, name)))
                return self._call_delta(index, start=True)
            case CallArguments(index, text):
                self._calls[index].arguments.append(text)
                return self._call_delta(index, text)

    def _call_delta(self, index: int, arguments: str = "", start: bool = False) -> dict[str, Any]:
        call = self._calls[index]
        function = {"name": call.name, "arguments": arguments} if start else {"arguments": arguments}
        if self._legacy:
            return {"function_call": function}
        head = {"id": call.id, "type": "function"} if start else {}
        return {"tool_calls": [{"index": index, **head, "function": function}]}

    @property
    def finish_reason(self) -> str | None:
        if self._calls and self._finish_reason is FinishReason.STOP:
            return "function_call" if self._legacy else "tool_calls"
        # A sequence that the server itself cut short, on its way down, ended before its time.
        return "length" if self._finish_reason is FinishReason.CANCELLED else self._finish_reason

    def message(self) -> dict[str, Any]:
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not self._calls else None,
            "refusal": None,
            "annotations": [],
        }
        if self._reasoning:
            message["reasoning_content"] = message["reasoning"] = "".join(self._reasoning)
        functions = [{"name": call.name, "arguments": "".join(call.arguments)} for call in self._calls]
        if functions and self._legacy:
            message["function_call"] = functions[0]
        elif functions:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function}
                for call, function in zip(self._calls, functions, strict=True)
            ]
        return message

    def body(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": self.message(),
            "logprobs": {"content": self._scored, "refusal": None} if self._with_logprobs else None,
            "finish_reason": self.finish_reason,
        }


async def frames(
    answer: Answer, generations: Sequence[Generation], choices: Sequence[ChatChoice], counted: bool
) -> AsyncIterator[dict[str, str]]:
    """OpenAI's order for each choice: the role, what it says, the reason; then the usage where asked for."""
    more: dict[str, object] = {"usage": None} if counted else {}

    def chunk(
        index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, str]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return frame(answer.body([choice], **more))

    for index in range(len(generations)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, delta in merged(generations):
        choice = choices[index]
        deltas, logprobs = choice.read(delta)
        for shaped in deltas:
            yield chunk(index, shaped, logprobs)
            logprobs = None
        if delta.finish_reason is not None:
            yield chunk(index, {}, reason=choice.finish_reason)
    if counted:
        yield frame(answer.body([], usage=usage(generations, n=len(generations))))


async def whole(answer: Answer, generations: Sequence[Generation], choices: Sequence[ChatChoice]) -> dict[str, object]:
    async for index, delta in merged(generations):
        choices[index].read(delta)
    bodies = [choice.body(index) for index, choice in enumerate(choices)]
    return answer.body(bodies, usage=usage(generations, n=len(generations)))
