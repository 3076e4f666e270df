"""The flags of `parallm-openai bench`, besides those of the model that it can make."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from parallm_openai.bench.load import STANDARD, Load, Sampling
from parallm_openai.bench.targets import Way
from parallm_openai.setting_types import Flag, NonEmpty, Repeatable, Settings, by_commas, flag_of

PLOT_NEEDS = "needs matplotlib: pip install '.[bench]'"
SAMPLING_FIELDS = {field.name for field in fields(Sampling)}
ByCommas = BeforeValidator(by_commas)


class TargetSettings(Settings):
    """Which servers to measure."""

    has_variables: ClassVar[bool] = False

    model: Annotated[NonEmpty | None, Flag("Servers", kind="a folder, GGUF file or hub id")] = Field(
        None, description="The model to serve; if not given, the one that serve takes."
    )
    draft_model: Annotated[NonEmpty | None, Flag("Servers", kind="a folder, GGUF file or hub id")] = Field(
        None, description="A draft model with the same tokenizer."
    )
    url: Annotated[NonEmpty | None, Flag("Servers", kind="a URL")] = Field(
        None, description="Measure our server that runs there, instead of starting one."
    )
    peers: Annotated[Repeatable, Flag("Servers", name="peer", kind="NAME=URL or NAME=URL#MODEL", repeatable=True)] = (
        Field((), description="Another server to measure as well, which must be running; repeatable.")
    )
    ways: Annotated[tuple[Way, ...], ByCommas, Flag("Servers", kind="streamed, whole, in-process, by commas")] = Field(
        ("streamed",),
        min_length=1,
        description="How answers come: streamed or whole over HTTP, or streamed by an engine in this process.",
    )
    make_model: Annotated[Path | None, Flag("Servers", kind="a folder")] = Field(
        None, description="Write a random-weight pair of models there, and measure it if no other model is given."
    )
    make_only: Annotated[bool, Flag("Servers")] = Field(False, description="Make the model and stop.")

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        # Its import is slow, and `--help` needs none.
        import httpx

        try:
            parsed = None if url is None else httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r:.80} is no URL: {error}") from error
        if parsed is not None and not (parsed.scheme in ("http", "https") and parsed.host):
            raise ValueError(f"must be a URL such as http://127.0.0.1:8080, not {url!r:.80}")
        return url

    @model_validator(mode="after")
    def _one_model(self) -> TargetSettings:
        if self.url is not None and "in-process" in self.ways and self.model is None and self.make_model is None:
            raise ValueError("--ways in-process: with --url, needs the same model as --model")
        return self


class LoadSettings(Settings):
    """What to send, and how often."""

    has_variables: ClassVar[bool] = False

    concurrency: Annotated[tuple[int, ...], ByCommas, Flag("Load", kind="whole numbers, by commas")] = Field(
        (1, 8, 16), min_length=1, description="How many requests to have running at a time."
    )
    requests: Annotated[int, Flag("Load")] = Field(
        2, ge=1, description="Requests per round, for each one that runs at a time."
    )
    max_tokens: Annotated[int, Flag("Load")] = Field(
        Load.max_tokens, ge=2, description="Tokens to generate per request."
    )
    prompt_words: Annotated[tuple[int, int], ByCommas, Flag("Load", kind="two whole numbers, by a comma")] = Field(
        Load.prompt_words, description="The least and the most words of a prompt."
    )
    long_prompts: Annotated[int, Flag("Load")] = Field(
        Load.long_prompts,
        ge=0,
        description="So many of the requests have long prompts, and the others run beside them.",
    )
    long_words: Annotated[int, Flag("Load")] = Field(
        Load.long_words, ge=1, description="Words of a long prompt; a word takes one to four tokens."
    )
    temperature: Annotated[float, Flag("Load")] = Field(
        Sampling.temperature, ge=0, le=2, description="Temperature of the requests."
    )
    top_p: Annotated[float | None, Flag("Load")] = Field(
        None, ge=0.01, le=1, description="Their top-p; not sent if not given, as with the next three."
    )
    top_k: Annotated[int | None, Flag("Load")] = Field(None, ge=1, description="Their top-k.")
    min_p: Annotated[float | None, Flag("Load")] = Field(None, ge=0, le=1, description="Their min-p.")
    logprobs: Annotated[int | None, Flag("Load")] = Field(
        None, ge=0, le=20, description="Log-probabilities to ask for, of so many tokens in each place."
    )
    standard: Annotated[bool, Flag("Load")] = Field(
        False, description=f"Sample in {len(STANDARD)} ways and compare: {'; '.join(map(str, STANDARD))}."
    )
    rate: Annotated[float | None, Flag("Load")] = Field(
        Load.rate, ge=0.01, description="Send so many requests per second, however many are running (an open loop)."
    )
    rounds: Annotated[int, Flag("Load")] = Field(3, ge=1, description="How often to measure everything, in turn.")

    @field_validator("concurrency")
    @classmethod
    def _some(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if min(levels) < 1:
            raise ValueError("at least one request must run at a time")
        return levels

    @field_validator("prompt_words")
    @classmethod
    def _ordered(cls, words: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= words[0] <= words[1]:
            raise ValueError("the first number must be at least 1, and the second no smaller than the first")
        return words

    @model_validator(mode="after")
    def _fits(self) -> LoadSettings:
        if self.long_prompts >= min(self.concurrency) and self.long_prompts:
            raise ValueError(
                f"--long-prompts: must be fewer than run at a time (--concurrency), which is {min(self.concurrency)}"
            )
        if self.standard and (given := self.model_fields_set & SAMPLING_FIELDS):
            flags = ", ".join(map(flag_of, sorted(given)))
            raise ValueError(f"--standard: says how to sample; leave out {flags}")
        return self

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """Each way of sampling that is to be measured."""
        return STANDARD if self.standard else (Sampling(**self.model_dump(include=SAMPLING_FIELDS)),)

    def load(self, seed: int) -> Load:
        """What all runs have in common."""
        shared = {"rate", "max_tokens", "prompt_words", "long_prompts", "long_words"}
        return Load(0, seed=seed, **self.model_dump(include=shared))


class OutputSettings(Settings):
    """Where to write the results, besides the table."""

    has_variables: ClassVar[bool] = False

    json_file: Annotated[Path | None, Flag("Output", name="json", kind="a file")] = Field(
        None, description="Write all figures there."
    )
    plot_file: Annotated[Path | None, Flag("Output", name="plot", kind="a .svg or .png file")] = Field(
        None, description=f"Draw the throughput there; {PLOT_NEEDS}."
    )

    @field_validator("plot_file")
    @classmethod
    def _is_a_picture(cls, file: Path | None) -> Path | None:
        if file is not None and file.suffix.lower() not in (".svg", ".png"):
            raise ValueError(f"must be a .svg or .png file, not {str(file)!r:.80}")
        return file
