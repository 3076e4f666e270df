"""The flags of `generate` and `chat` that say how to sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from parallm_openai.setting_types import Flag, Repeatable, Settings

if TYPE_CHECKING:
    from parallm_openai.engine.request import SamplingParams


class SamplingSettings(Settings):
    """What both have in common. What is not given is as the model's makers recommend."""

    has_variables: ClassVar[bool] = False

    top_p: Annotated[float | None, Flag("Sampling")] = Field(
        None, ge=0, le=1, description="Sample among the likeliest tokens that together are this probable."
    )
    top_k: Annotated[int | None, Flag("Sampling")] = Field(
        None, ge=0, description="Sample among so many of the likeliest tokens; 0 is all."
    )
    min_p: Annotated[float | None, Flag("Sampling")] = Field(
        None, ge=0, le=1, description="Leave out tokens less probable than this share of the likeliest one's."
    )
    repetition_penalty: Annotated[float | None, Flag("Sampling")] = Field(
        None, ge=0.01, le=10, description="Above 1, make tokens less likely that are there already."
    )
    seed: Annotated[int | None, Flag("Sampling")] = Field(
        None, description="The same seed gives the same tokens; without one, every run differs."
    )
    stop: Annotated[Repeatable, Flag("Sampling", kind="a text", repeatable=True)] = Field(
        (), description="End an answer before this text; repeatable."
    )

    @property
    def given(self) -> dict[str, Any]:
        """The parameters of a request, without the stop strings and those that are left to the model."""
        return self.model_dump(exclude_none=True, exclude={"stop"})

    def params(self) -> SamplingParams:
        from parallm_openai.text.defaults import asked

        return asked(**self.given)


class PromptSampling(SamplingSettings):
    """How `generate` samples."""

    max_tokens: Annotated[int, Flag("Sampling", aliases=("--n-predict", "--predict", "-n"))] = Field(
        128, ge=1, description="The most tokens to generate per prompt."
    )
    temperature: Annotated[float, Flag("Sampling", aliases=("--temp",))] = Field(
        0.0, ge=0, le=2, description="Randomness; 0 always takes the most likely token."
    )


class ChatSampling(SamplingSettings):
    """How `chat` samples."""

    max_tokens: Annotated[int | None, Flag("Sampling", aliases=("--n-predict", "--predict", "-n"))] = Field(
        None, ge=1, description="The most tokens of an answer; if not given, all that the context has room for."
    )
    temperature: Annotated[float | None, Flag("Sampling", aliases=("--temp",))] = Field(
        None, ge=0, le=2, description="Randomness; 0 always takes the most likely token."
    )
