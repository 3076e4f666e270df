"""The fields that every generating request shares, and how they become `SamplingParams`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from parallm_openai.api.errors import invalid, unsupported
from parallm_openai.engine.request import SamplingParams
from parallm_openai.text.defaults import asked
from parallm_openai.text.description import AnswerFormat

MAX_STOPS = 4
MAX_STOP_LENGTH = 1000
# The most digits of a token id.
MAX_DIGITS = 12
# Each costs a little time in every step.
MAX_BIASES = 1024


def _checked_stop(stop: str | list[str] | None) -> str | list[str] | None:
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
    if any(len(text) > MAX_STOP_LENGTH for text in ([stop] if isinstance(stop, str) else stop or [])):
        raise ValueError(f"a stop string may have {MAX_STOP_LENGTH} characters at most")
    return stop


# Where the protocol has no limit of its own.
MANY_STOPS = 64


def _checked_stops(stops: list[str]) -> list[str]:
    if any(len(text) > MAX_STOP_LENGTH for text in stops):
        raise ValueError(f"a stop string may have {MAX_STOP_LENGTH} characters at most")
    return [text for text in stops if text]


StopList = Annotated[list[str], AfterValidator(_checked_stops), Field(max_length=MANY_STOPS)]


class Body(BaseModel):
    """A request body: unknown fields and wrong types are errors, null is the default."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(metadata) > 16:
        raise ValueError(f"at most 16 pairs are allowed, not {len(metadata)}")
    for key, value in metadata.items():
        if len(key) > 64:
            raise ValueError(f"a key may have 64 characters at most, not {len(key)}")
        if not isinstance(value, str):
            raise ValueError(f"the value of '{key}' must be a string")
        if len(value) > 512:
            raise ValueError(f"the value of '{key}' may have 512 characters at most, not {len(value)}")
    return metadata


# OpenAI's limits.
Metadata = Annotated[dict[str, Any], AfterValidator(_checked_metadata)]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(Body):
    """The fields that all generating endpoints have in common, with the usual extensions."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=MAX_BIASES)
    stop: Annotated[str | list[str] | None, AfterValidator(_checked_stop)] = None
    # Extensions, as other servers name them.
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: list[int] | None = Field(None, max_length=MAX_BIASES, fail_fast=True)
    use_speculative: bool | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | None = None
    grammar: str | None = None

    def stops(self) -> tuple[str, ...]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)

    def sampling(
        self, *, max_tokens: int | None, logprobs: int | None = None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """The engine's parameters. Their token ids may be unknown to the model. Raises ApiError for a malformed one."""
        return asked(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_token_bias(self.logit_bias or {}),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            use_speculative=self.use_speculative,
        )

    def formats(self) -> tuple[AnswerFormat, ...]:
        """The formats that the extensions ask for; more than one is an error of the request."""
        wanted = (
            AnswerFormat("regex", self.guided_regex, "guided_regex"),
            AnswerFormat("json_schema", self.guided_json, "guided_json"),
            AnswerFormat("lark", self.grammar, "grammar"),
        )
        return tuple(format for format in wanted if format.value is not None)


def _token_bias(bias: dict[str, float]) -> dict[int, float]:
    checked: dict[int, float] = {}
    for key, value in bias.items():
        if not key.isascii() or not key.isdigit() or len(key) > MAX_DIGITS:
            raise invalid(f"Invalid key in 'logit_bias': {key[:40]!r} is not a token id.", "logit_bias")
        checked[int(key)] = value
    return checked


def refuse(fields: dict[str, Any]) -> None:
    """Raise ApiError for the first of the fields that is set: OpenAI has them, this server does not support them."""
    for name, value in fields.items():
        if value not in (None, False, [], {}):
            raise unsupported(name)
