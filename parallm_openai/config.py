"""Settings, one frozen object per concern; CLI flags, environment and `/v1/configure` all read these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Acceptance = Literal["coupled", "rejection"]


class EngineConfig(BaseModel):
    """What the engine may be told while it runs (`/v1/configure`) and at its start.

    Every field is checked on construction, so a bad value changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: int = Field(16, ge=1, le=1024, description="Rows decoded together at most.")
    batch_timeout_ms: float = Field(
        4.0,
        ge=0,
        le=10_000,
        description="An idle engine waits for company until none has come for this long, in ms.",
    )
    max_batch_tokens: int = Field(
        65_536,
        ge=1,
        description="KV cache budget: rows times the longest row's prompt and output, in tokens.",
    )
    prefix_cache_tokens: int = Field(
        32_768,
        ge=0,
        description="Tokens of past sequences that are kept for requests that begin alike; 0 keeps none.",
    )
    prefill_chunk: int = Field(256, ge=1, description="Prompt tokens computed between two decode steps.")
    max_queue: int = Field(1024, ge=0, description="Requests that may wait; one more is refused.")
    use_speculative_decoding: bool = Field(True, description="Draft and verify where a drafter is loaded.")
    max_draft_tokens: int = Field(7, ge=0, le=32, description="Tokens drafted per row and step at most.")
    draft_length: Annotated[int, Field(ge=0, le=32)] | Literal["auto"] = Field(
        "auto", description="Tokens drafted per row and step: auto, or a fixed number."
    )
    speculative_acceptance: Acceptance = Field(
        "coupled",
        description="Rule for sampled drafts: coupled (seeds give the same tokens whatever is drafted) or rejection.",
    )
