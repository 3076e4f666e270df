"""The fields that all answers in the shape of OpenAI's completions share, and their usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parallm_openai import __version__
from parallm_openai.engine.request import FinishReason
from parallm_openai.text.draws import created, new_hex
from parallm_openai.text.events import Finish
from parallm_openai.text.generation import Generation


@dataclass(frozen=True)
class AnswerHead:
    """The fields that all chunks of one answer share."""

    kind: str
    model: str
    id: str
    created: int = field(default_factory=created)

    @classmethod
    def new(cls, kind: str, prefix: str, model: str) -> AnswerHead:
        return cls(kind, model, f"{prefix}-{new_hex()}")

    def body(self, choices: list[dict[str, object]], **more: object) -> dict[str, object]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": f"fp_{__version__.replace('.', '_')}",
            **more,
        }

    def chunk(self) -> AnswerHead:
        return replace(self, kind=f"{self.kind}.chunk")


def finish_reason(reason: FinishReason | None) -> str | None:
    """OpenAI's word for it. A sequence that the server cut off as it shut down counts as too short."""
    return "length" if reason is FinishReason.CANCELLED else reason


def chat_finish_reason(finish: Finish | None, *, legacy: bool) -> str | None:
    """The same for an answer that may call tools, which `legacy` clients know as functions."""
    if finish is None:
        return None
    if finish.called and finish.reason is FinishReason.STOP:
        return "function_call" if legacy else "tool_calls"
    return finish_reason(finish.reason)


def usage(generations: Sequence[Generation], *, n: int = 1) -> dict[str, object]:
    """OpenAI's usage of one answer; each prompt counts once, however many choices it has."""
    prompt = sum(len(generation.prompt_tokens) for generation in generations[::n])
    cached = sum(generation.counts.cached_prompt for generation in generations[::n])
    completion = sum(generation.counts.completion for generation in generations)
    reasoning = sum(generation.counts.reasoning for generation in generations)
    drafted = sum(generation.counts.drafted for generation in generations)
    accepted = sum(generation.counts.accepted for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
    }
