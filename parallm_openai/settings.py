"""Every setting of a server once: its name, type, default, range and help.

Flags, environment variables, the keys of a configuration file, `/v1/configure` and docs/settings.md all come from
these models (see `parallm_openai.cli.options`). A field has a flag if its type carries a `Flag`; programs alone can set
the others. The settings by which several processes serve are in `parallm_openai.scaling_settings`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from parallm_openai.origins import LOOPBACK, check_host, check_origin, check_root_path
from parallm_openai.setting_types import (
    CommaSeparated,
    Flag,
    LowerCase,
    NonEmpty,
    Repeatable,
    Settings,
    flag_of,
    from_json,
    in_each,
)

Acceptance = Literal["coupled", "rejection"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
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


class ConfigFile(Settings):
    """Where to read the other settings from."""

    config: Annotated[NonEmpty | None, Flag(kind="a .toml, .yaml or .yml file")] = Field(
        None, description="File of settings; its keys are the names of the flags."
    )


class ModelSettings(Settings):
    """Which model to load, and how."""

    model: Annotated[NonEmpty | None, Flag("Model", short="-m", kind="a name, folder, GGUF file or hub id")] = Field(
        None,
        description="The model, quantised or not. If not given: smollm2 once it is fetched, else the bundled demo.",
    )
    revision: Annotated[NonEmpty | None, Flag("Model", kind="a branch, tag or commit")] = Field(
        None, description="Which revision of a model of the hub to take; its main branch if not given."
    )
    context_length: Annotated[int | None, Flag("Model", aliases=("--max-model-len",))] = Field(
        None, ge=1, description="The most tokens of prompt and answer together; the model's own length if not given."
    )
    adapter_path: Annotated[NonEmpty | None, Flag("Model", kind="a folder")] = Field(
        None, description="A LoRA adapter for the model."
    )
    chat_template: Annotated[
        NonEmpty | None, Flag("Model", aliases=("--chat-template-file",), kind="a file, or Jinja")
    ] = Field(None, description="A chat template in Jinja, in place of the model's own.")
    trust_remote_code: Annotated[bool, Flag("Model")] = Field(False, description="Run code that comes with a model.")


class SamplingDefaults(Settings):
    """Sampling parameters for requests that do not say."""

    temperature: Annotated[float | None, Flag("Defaults of requests", aliases=("--temp",))] = Field(
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
    max_tokens: Annotated[int | None, Flag("Defaults of requests", aliases=("--n-predict", "--predict"))] = Field(
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
        dict[str, Any] | None,
        BeforeValidator(from_json),
        Flag(
            "Defaults of requests",
            aliases=("--default-chat-template-kwargs", "--chat-template-kwargs"),
            kind="a JSON object",
        ),
    ] = Field(
        None,
        description='Variables of the chat template, such as {"enable_thinking": false}; those of a request go before.',
    )


class DraftSettings(Settings):
    """What guesses tokens for the model to verify."""

    draft_model: Annotated[
        NonEmpty | None,
        Flag(
            "Speculation",
            aliases=("--speculative-model", "--model-draft", "-md", "--spec-draft-model"),
            kind="a name, folder, GGUF file or hub id",
        ),
    ] = Field(
        None,
        description="A smaller model with the same tokenizer, which drafts. demo has one of its own.",
    )
    draft_revision: Annotated[NonEmpty | None, Flag("Speculation", kind="a branch, tag or commit")] = Field(
        None, description="Which revision of a draft model of the hub to take."
    )
    draft: Annotated[
        Literal["mtp", "suffix", "none"] | None,
        Flag("Speculation", hint="a draft model is --draft-model, and a number of tokens --draft-length"),
    ] = Field(
        None,
        description="How to draft without a draft model: suffix copies what followed the last tokens before, in the "
        "text so far and in earlier answers; mtp also has the model's own head for multi-token prediction draft; none "
        "does not draft. The default is mtp if the checkpoint has such a head, else suffix.",
    )

    @model_validator(mode="after")
    def _one_of_the_two(self) -> DraftSettings:
        if self.draft_model is not None and self.draft is not None:
            raise ValueError("give either --draft or --draft-model, not both")
        if self.draft_revision is not None and self.draft_model is None:
            raise ValueError("--draft-revision: needs --draft-model")
        return self


class SpeculationConfig(Settings):
    """Whether and how far the engine drafts."""

    use_speculative_decoding: Annotated[bool, Flag("Speculation", name="use_speculative")] = Field(
        True, description="Draft and verify, if there is something that can draft."
    )
    max_draft_tokens: Annotated[int, Flag("Speculation", aliases=("--spec-draft-n-max", "--draft-max"))] = Field(
        7, ge=0, le=32, description="The most tokens to draft per row and step."
    )
    draft_length: Annotated[
        Annotated[int, Field(ge=0, le=32)] | Literal["auto"],
        Flag("Speculation", aliases=("--num-draft-tokens", "--num-speculative-tokens")),
    ] = Field(
        "auto",
        description="Tokens to draft per row and step. auto adapts to what pays, and on Apple GPUs stays within the "
        "reach of MLX's attention kernel for few queries.",
    )
    suffix_store_tokens: Annotated[int, Flag("Speculation")] = Field(
        65_536,
        ge=0,
        le=1_048_576,
        description="Tokens of earlier answers that suffix drafts may copy from, apart for each API key and cache "
        "salt; 0 keeps none.",
    )
    speculative_acceptance: Annotated[Acceptance, Flag("Speculation")] = Field(
        "coupled",
        description="How sampled drafts are accepted. With coupled, a seed gives the same tokens whatever is drafted; "
        "rejection accepts more at temperatures of 1 and above.",
    )


class EngineConfig(SpeculationConfig):
    """What the engine does. `/v1/configure` changes it while the engine runs."""

    max_batch_size: Annotated[
        int, Flag("Batching", aliases=("--max-num-seqs", "--parallel", "-np", "--decode-concurrency"))
    ] = Field(16, ge=1, le=1024, description="The most rows to decode together.")
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
        Repeatable,
        Flag("Model", name="served_model_name", aliases=("--alias", "-a"), kind="a name", repeatable=True),
    ] = Field((), description="Name that requests may use besides the model's own; several by commas, or repeated.")
    tool_call_parser: Annotated[ToolCallParser, Flag("Model")] = Field(
        "auto", description="Format of tool calls; auto takes the one that the chat template uses."
    )
    host: Annotated[NonEmpty, Flag("Server", kind="an address")] = Field(
        "127.0.0.1", description="Address to listen on."
    )
    port: Annotated[int, Flag("Server")] = Field(
        8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one."
    )
    uds: Annotated[NonEmpty | None, Flag("Server", kind="a path")] = Field(
        None, description="Listen on a Unix domain socket there, instead of an address and port."
    )
    root_path: Annotated[
        Annotated[str, AfterValidator(check_root_path)] | None,
        Flag("Server", aliases=("--api-prefix",), kind="a path such as /llm"),
    ] = Field(
        None, description="The path at which a proxy shows the server. Requests may come with that prefix or without."
    )
    request_timeout: Annotated[float, Flag("Server")] = Field(
        600.0, gt=0, description="Seconds that one request may take."
    )
    graceful_timeout: Annotated[float, Flag("Server", aliases=("--shutdown-timeout",))] = Field(
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
        "tools of other types, answers longer than the context, tools and system messages that the chat template does "
        "not take.",
    )
    log_level: Annotated[LogLevel, LowerCase, Flag("Server", aliases=("--uvicorn-log-level",))] = Field(
        "info", description="What to log: this level and those above it."
    )
    log_format: Annotated[LogFormat, Flag("Server")] = Field(
        "text", description="How to write the log: lines of text, or of one JSON object each."
    )
    api_keys: Annotated[Repeatable, Flag("Security", name="api_key", kind="a key", repeatable=True)] = Field(
        (), repr=False, description="Accepted API key; repeatable. Without one, no key is needed."
    )
    admin_keys: Annotated[Repeatable, Flag("Security", name="admin_key", kind="a key", repeatable=True)] = Field(
        (), repr=False, description="API key that may also change the server's configuration; repeatable."
    )
    cors_origins: Annotated[
        CommaSeparated,
        Flag("Security", aliases=("--allowed-origins",), kind="origins, by commas"),
        in_each(check_origin),
    ] = Field(
        (LOOPBACK,),
        description="Origins whose pages may call the server: loopback (pages of this machine), https://page.example, "
        "https://*.page.example, app://name, null or *; empty for none.",
    )
    allowed_hosts: Annotated[CommaSeparated, Flag("Security", kind="host names, by commas"), in_each(check_host)] = (
        Field(
            (),
            description="Host names that requests may be for, besides localhost: llm.example, *.example or *. If not "
            "given, a server on a loopback address takes only loopback names, and any other server takes every name.",
        )
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
    def _printable(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names = [name for several in given for name in several.split(",")]
        if not all(name.strip() and name.isprintable() for name in names):
            raise ValueError("a model's name must not be empty, and must be printable")
        return tuple(name.strip() for name in names)


class TlsSettings(Settings):
    """Certificates, if the server itself speaks HTTPS."""

    ssl_certfile: Annotated[NonEmpty | None, Flag("Security", aliases=("--ssl-cert-file",), kind="a PEM file")] = Field(
        None, description="The server's certificate: it then speaks HTTPS."
    )
    ssl_keyfile: Annotated[NonEmpty | None, Flag("Security", aliases=("--ssl-key-file",), kind="a PEM file")] = Field(
        None, description="Its private key, unless the file of the certificate holds it."
    )
    ssl_keyfile_password: Annotated[str | None, Flag("Security", kind="a text")] = Field(
        None, repr=False, description="What the private key is encrypted with."
    )
    ssl_ca_certs: Annotated[NonEmpty | None, Flag("Security", kind="a PEM file")] = Field(
        None, description="Whose signatures on certificates of clients count; see --ssl-cert-reqs."
    )
    ssl_cert_reqs: Annotated[int, Flag("Security")] = Field(
        0, ge=0, le=2, description="Whether clients must show a certificate: 0 no, 1 if they have one, 2 yes."
    )

    @model_validator(mode="after")
    def _complete(self) -> TlsSettings:
        given = [name for name in type(self).model_fields if name != "ssl_certfile" and name in self.model_fields_set]
        if given and self.ssl_certfile is None:
            raise ValueError(f"{flag_of(given[0])}: needs --ssl-certfile")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise ValueError("--ssl-cert-reqs: needs --ssl-ca-certs")
        return self
