"""The sizes of the pair of models that the benchmark can make."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from parallm_openai.setting_types import Flag, Settings

# Every byte is an entry, and so are the special tokens and a few merges.
LEAST_VOCABULARY = 300
# The largest of well-known models; the made-up words last for more.
MOST_VOCABULARY = 262_144


class PairShape(Settings):
    """Sizes of a target and its draft, how often the draft guesses its greedy token, and how sure the target is."""

    has_variables: ClassVar[bool] = False

    family: Annotated[Literal["llama", "qwen3_next"], Flag("Made model")] = Field(
        "llama",
        description="Family of both models: llama has attention in every layer, qwen3_next in every other one, and a "
        "recurrent state in the rest.",
    )
    hidden: Annotated[int, Flag("Made model")] = Field(768, ge=1, description="Hidden size of both models.")
    layers: Annotated[int, Flag("Made model")] = Field(12, ge=1, description="Layers of the target.")
    ffn: Annotated[int, Flag("Made model")] = Field(2048, ge=1, description="Size of the feed-forward layers.")
    heads: Annotated[int, Flag("Made model")] = Field(12, ge=1, description="Attention heads.")
    vocab: Annotated[int, Flag("Made model")] = Field(
        4096, ge=LEAST_VOCABULARY, le=MOST_VOCABULARY, description="Entries of the vocabulary."
    )
    draft_layers: Annotated[int, Flag("Made model")] = Field(
        2, ge=1, description="Layers of the draft; fewer than the target's."
    )
    agreement: Annotated[float, Flag("Made model")] = Field(
        0.9, ge=0, le=1, description="The share of greedy tokens that the draft is to guess."
    )
    sharpness: Annotated[float, Flag("Made model")] = Field(
        0.5, ge=0.01, le=0.95, description="The mean probability that the target's likeliest token is to have."
    )
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], Flag("Made model")] = Field(
        "float32", description="Type of the numbers that are written."
    )
    seed: Annotated[int, Flag("Made model")] = Field(
        0, description="Seed of the weights, of the prompts, and of what is simulated."
    )

    @model_validator(mode="after")
    def _fits(self) -> PairShape:
        if self.draft_layers >= self.layers:
            raise ValueError(f"--draft-layers: must be less than --layers ({self.layers}), not {self.draft_layers}")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"--hidden: must be an even multiple of --heads ({self.heads}), not {self.hidden}")
        if self.family != "llama" and self.draft_layers % 2:
            raise ValueError(f"--draft-layers: must be even with --family {self.family}, not {self.draft_layers}")
        return self
