"""Every setting of a server once: its name, type, default, range and help.

Flags, environment variables, the keys of a configuration file, `/v1/configure` and docs/settings.md all come from
these models (see `parallm_openai.cli.options`). A field has a flag if its type carries a `Flag`; programs alone can set
the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from parallm_openai.origins import LOOPBACK, check_host, check_origin

Acceptance = Literal["coupled", "rejection"]
LogLevel = Literal["debug", "info", "warning", "error"]
# The names in `parallm_openai.text.tools.families`, which this module must not import.
ToolCallParser = Literal[
    "auto",
    "command_r",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "function_gemma",
    "gemma4",
    "glm47",
    "hermes",
    "kimi_k2",
    "llama3_json",
    "llama_pythonic",
    "longcat",
    "minimax_m2",
    "mistral",
    "muse_spark",
    "nemotron",
    "pythonic",
    "qwen3_coder",
]


@dataclass(frozen=True)
class Flag:
    """Says that users can set a field.

    The help lists it under the heading `panel`, or at the top if that is empty. `name` is the flag's, if it is not the
    field's own. `kind` says what to give, if the type alone does not say enough; `hint` ends the error about a bad
    value. A `repeatable` flag gives one more value each time.
    """

    panel: str = ""
    name: str | None = None
    kind: str | None = None
    hint: str | None = None
    repeatable: bool = False


class Settings(BaseModel):
    """Settings that are checked when they are made, and do not change after that."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Whether each flag has an environment variable: PARALLM_ and its name.
    has_variables: ClassVar[bool] = True


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def by_commas(value: Any) -> Any:
    """The parts of a text with commas; anything else is left to pydantic."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _each(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda values: tuple(map(check, values)))


def _from_json(value: Any) -> Any:
    """The object that a text of JSON stands for; a configuration file may hold the object itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error


NonEmpty = Annotated[str, AfterValidator(_not_empty)]
# Texts of a repeatable flag; a configuration file may hold one text or a list of them.
Repeatable = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(by_commas)]


class ConfigFile(Settings):
    """Where to read the other settings from."""

    config: Annotated[NonEmpty | None, Flag(kind="a .toml, .yaml or .yml file")] = Field(
        None, description="File of settings; its keys are the names of the flags."
    )


class ModelSettings(Settings):
    """Which model to load, and how."""

    model: Annotated[NonEmpty | None, Flag("Model", kind="a name, folder, GGUF file or hub id")] = Field(
        None,
        description="The model, quantised or not. If not given: smollm2 once it is fetched, else the bundled demo.",
    )
    adapter_path: Annotated[NonEmpty | None, Flag("Model", kind="a folder")] = Field(
        None, description="A LoRA adapter for the model."
    )
    chat_template: Annotated[NonEmpty | None, Flag("Model", kind="a file")] = Field(
        None, description="A chat template in Jinja, in place of the model's own."
    )
    trust_remote_code: Annotated[bool, Flag("Model")] = Field(False, description="Run code that comes with a model.")


class SamplingDefaults(Settings):
    """Sampling parameters for requests that do not say."""

    temperature: Annotated[float | None, Flag("Defaults of requests")] = Field(
        None, ge=0, le=2, description="Temperature of a request that gives none; else the model's, else 1."
    )
    top_p: Annotated[float | None, Flag("Defaults of requests")] = Field(
        None, ge=0, le=1, description="top_p of a request that gives none; else the model's, else 1."
    )
    top_k: Annotated[int | None, Flag("Defaults of requests")] = Field(
        None, ge=-1, description="top_k of a request that gives none; else the model's, else 0, which is off."
    )
    min_p: Annotated[float | None, Flag("Defaults of requests")] = Field(
        None, ge=0, le=1, description="min_p of a request that gives none; else the model's, else 0, which is off."
    )
    repetition_penalty: Annotated[float | None, Flag("Defaults of requests")] = Field(
        None, ge=0.01, le=10, description="repetition_penalty of a request that gives none; else the model's, else 1."
    )
    max_tokens: Annotated[int | None, Flag("Defaults of requests")] = Field(
        None,
        ge=1,
        description="The most tokens of an answer whose request gives no limit, as far as the context has room. If not "
        "given: all that fit in chats, 16 in completions, 256 in native requests.",
    )


NO_DEFAULTS = SamplingDefaults()


class RequestDefaults(SamplingDefaults):
    """What holds for requests that do not say."""

    generation_config: Annotated[
        NonEmpty, Flag("Defaults of requests", kind="auto, none or a folder with generation_config.json")
    ] = Field(
        "auto",
        description="Where the model's sampling parameters come from: auto is the model itself, none leaves them out.",
    )
    chat_template_args: Annotated[
        dict[str, Any] | None, BeforeValidator(_from_json), Flag("Defaults of requests", kind="a JSON object")
    ] = Field(
        None,
        description='Variables of the chat template, such as {"enable_thinking": false}; those of a request go before.',
    )


class DraftSettings(Settings):
    """What guesses tokens for the model to verify."""

    draft_model: Annotated[NonEmpty | None, Flag("Speculation", kind="a name, folder, GGUF file or hub id")] = Field(
        None,
        description="A smaller model with the same tokenizer, which drafts. demo has one of its own.",
    )
    draft: Annotated[Literal["ngram", "none"] | None, Flag("Speculation", hint="a draft model is --draft-model")] = (
        Field(
            None,
            description="How to draft without a draft model: ngram copies from the text so far, none does not draft. "
            "smollm2 drafts by ngram unless told otherwise.",
        )
    )

    @model_validator(mode="after")
    def _one_of_the_two(self) -> DraftSettings:
        if self.draft_model is not None and self.draft is not None:
            raise ValueError("give either --draft or --draft-model, not both")
        return self


class EngineConfig(Settings):
    """What the engine does. `/v1/configure` changes it while the engine runs."""

    use_speculative_decoding: Annotated[bool, Flag("Speculation", name="use_speculative")] = Field(
        True, description="Draft and verify, if there is something that can draft."
    )
    max_draft_tokens: Annotated[int, Flag("Speculation")] = Field(
        7, ge=0, le=32, description="The most tokens to draft per row and step."
    )
    draft_length: Annotated[Annotated[int, Field(ge=0, le=32)] | Literal["auto"], Flag("Speculation")] = Field(
        "auto",
        description="Tokens to draft per row and step. auto adapts to what pays, and on Apple GPUs stays within the "
        "reach of MLX's attention kernel for few queries.",
    )
    speculative_acceptance: Annotated[Acceptance, Flag("Speculation")] = Field(
        "coupled",
        description="How sampled drafts are accepted. With coupled, a seed gives the same tokens whatever is drafted; "
        "rejection accepts more at temperatures of 1 and above.",
    )
    max_batch_size: Annotated[int, Flag("Batching")] = Field(
        16, ge=1, le=1024, description="The most rows to decode together."
    )
    batch_timeout_ms: Annotated[float, Flag("Batching")] = Field(
        4.0,
        ge=0,
        le=10_000,
        description="Batching window in milliseconds: an idle engine starts once no request has arrived for this long.",
    )
    max_batch_tokens: Annotated[int, Flag("Batching")] = Field(
        65_536,
        ge=1,
        description="Budget of the KV cache in tokens: rows times the longest row's prompt and output.",
    )
    prefix_cache_tokens: Annotated[int, Flag("Batching")] = Field(
        32_768,
        ge=0,
        description="Tokens of past sequences to keep for requests that begin alike, besides the budget of the KV "
        "cache; 0 keeps none.",
    )
    prefill_chunk: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Flag("Batching")] = Field(
        "auto", description="The most prompt tokens to read in a step. auto is as many as the device reads efficiently."
    )
    max_prefill_ms: Annotated[float, Flag("Batching")] = Field(
        150.0,
        gt=0,
        le=60_000,
        description="Milliseconds by which reading prompts may delay the next tokens of other requests, in each step; "
        "as long as their own step takes, if that is longer. Some 32 tokens are read in any case.",
    )
    max_queue: Annotated[int, Flag("Batching")] = Field(
        1024, ge=0, description="Requests that may wait; one more is refused with status 429."
    )


class ServerSettings(Settings):
    """What the HTTP server does, for as long as it lives. Times are in seconds, sizes in bytes."""

    served_model_names: Annotated[
        Repeatable, Flag("Model", name="served_model_name", kind="a name", repeatable=True)
    ] = Field((), description="Name that requests may use besides the model's own; repeatable.")
    tool_call_parser: Annotated[ToolCallParser, Flag("Model")] = Field(
        "auto", description="Format of tool calls; auto takes the one that the chat template uses."
    )
    host: Annotated[NonEmpty, Flag("Server", kind="an address")] = Field(
        "127.0.0.1", description="Address to listen on."
    )
    port: Annotated[int, Flag("Server")] = Field(
        8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one."
    )
    request_timeout: Annotated[float, Flag("Server")] = Field(
        600.0, gt=0, description="Seconds that one request may take."
    )
    graceful_timeout: Annotated[float, Flag("Server")] = Field(
        30.0, ge=0, description="Seconds that running requests may go on after a stop signal."
    )
    max_body_size: Annotated[int, Flag("Server")] = Field(
        16 * 2**20, ge=1024, description="The most bytes that a request's body may have."
    )
    stored_responses: Annotated[int, Flag("Server")] = Field(
        1000, ge=0, description="Answers of /v1/responses to keep, for requests that continue them."
    )
    stored_responses_bytes: Annotated[int, Flag("Server")] = Field(
        64 * 2**20,
        ge=0,
        description="The most bytes that those answers may take; the one used longest ago goes first.",
    )
    strict: Annotated[bool, Flag("Server")] = Field(
        False,
        description="Refuse what the server does not know or have room for instead of ignoring it: further fields, "
        "tools of other types, answers longer than the context.",
    )
    log_level: Annotated[LogLevel, Flag("Server")] = Field(
        "info", description="What to log: this level and those above it."
    )
    api_keys: Annotated[Repeatable, Flag("Security", name="api_key", kind="a key", repeatable=True)] = Field(
        (), repr=False, description="Accepted API key; repeatable. Without one, no key is needed."
    )
    admin_keys: Annotated[Repeatable, Flag("Security", name="admin_key", kind="a key", repeatable=True)] = Field(
        (), repr=False, description="API key that may also change the server's configuration; repeatable."
    )
    cors_origins: Annotated[CommaSeparated, Flag("Security", kind="origins, by commas"), _each(check_origin)] = Field(
        (LOOPBACK,),
        description="Origins whose pages may call the server: loopback (pages of this machine), https://page.example, "
        "https://*.page.example, app://name, null or *; empty for none.",
    )
    allowed_hosts: Annotated[CommaSeparated, Flag("Security", kind="host names, by commas"), _each(check_host)] = Field(
        (),
        description="Host names that requests may be for, besides localhost: llm.example, *.example or *. If not "
        "given, a server on a loopback address takes only loopback names, and any other server takes every name.",
    )
    template_timeout: float = Field(10.0, gt=0, description="How long a chat template may work on one conversation.")
    header_timeout: float = Field(15.0, gt=0, description="How long a client may take to send a request's headers.")
    body_timeout: float = Field(60.0, gt=0, description="How long a body may take that keeps to no pace.")
    send_timeout: float = Field(60.0, gt=0, description="How long a client may leave what is sent to it unread.")

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _sendable(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        # The message does not repeat the key: it ends up in a log.
        if not all(re.fullmatch(r"[\x21-\x7e]+", key) for key in keys):
            raise ValueError(
                "a key must not be empty, and only visible ASCII characters can be sent as one "
                "(no spaces, no letters beyond a-z)"
            )
        return keys

    @field_validator("served_model_names")
    @classmethod
    def _printable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() and name.isprintable() for name in names):
            raise ValueError("a model's name must not be empty, and must be printable")
        return names
