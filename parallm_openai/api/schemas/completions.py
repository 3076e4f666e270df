"""`POST /v1/completions` and the native bodies: a prompt is text or tokens."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from parallm_openai.api.schemas.sampling import Body, Metadata, SamplingFields, StreamOptions

# Without this, a long list of wrong items would make an error for each item and each type that it might have.
FAIL_FAST = Field(fail_fast=True)
TokenIds = Annotated[list[int], FAIL_FAST]
TextOrTokens = str | TokenIds


class CompletionRequest(SamplingFields):
    model: str | None = None
    prompt: str | TokenIds | Annotated[list[str], FAIL_FAST] | Annotated[list[TokenIds], FAIL_FAST] | None = None
    max_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=128)
    best_of: int | None = Field(None, ge=1, le=128)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    # Cannot change the answer.
    user: str | None = None
    metadata: Metadata | None = None

    def prompts(self) -> list[TextOrTokens]:
        """The prompts one by one. As for OpenAI, null is an empty prompt."""
        if self.prompt is None:
            return [""]
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class NativeFields(SamplingFields):
    max_tokens: int | None = Field(None, ge=1)


class GenerateRequest(NativeFields):
    """One prompt, text or token ids, as it is: no chat template."""

    prompt: TextOrTokens
    stream: bool | None = None


class GenerateBatchRequest(NativeFields):
    """Several prompts, answered in order. Each is checked by itself, so that a bad one fails alone."""

    prompts: list[Any] = Field(min_length=1)


__all__ = ["Body", "CompletionRequest", "GenerateBatchRequest", "GenerateRequest", "NativeFields"]
