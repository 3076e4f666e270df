"""How the HTTP server behaves; what the engine does is in `parallm_openai.config`."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from parallm_openai.api.visitors import LOOPBACK, check_host, check_origin
from parallm_openai.text.tools.families import FORMATS


class ServerSettings(BaseModel):
    """Fixed for the life of a server. Times in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    served_model_names: tuple[str, ...] = Field((), description="Names that requests may use besides the model's own.")
    api_keys: tuple[str, ...] = Field((), description="Accepted API keys; none means that no key is needed.")
    admin_keys: tuple[str, ...] = Field((), description="Keys that may also change the server's configuration.")
    cors_origins: tuple[str, ...] = Field((LOOPBACK,), description="Origins whose pages may call this server.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Names that requests may be for besides this machine's own; * is any."
    )
    max_body_size: int = Field(16 * 2**20, ge=1024)
    request_timeout: float = Field(600.0, gt=0, description="The most that one request may take from its arrival.")
    graceful_timeout: float = Field(30.0, ge=0, description="How long running requests may go on after a stop signal.")
    stored_responses: int = Field(1000, ge=0, description="How many answers of /v1/responses are kept to go on from.")
    stored_responses_bytes: int = Field(64 * 2**20, ge=0, description="How much memory those answers may take.")
    tool_call_parser: str = Field("auto", description="The format of tool calls; auto goes by the chat template.")
    template_timeout: float = Field(10.0, gt=0, description="How long a chat template may work on one conversation.")
    header_timeout: float = Field(15.0, gt=0, description="How long a client may take to send a request's headers.")
    body_timeout: float = Field(60.0, gt=0, description="How long a body may take that keeps to no pace.")
    send_timeout: float = Field(60.0, gt=0, description="How long a client may leave what is sent to it unread.")

    @field_validator("tool_call_parser")
    @classmethod
    def _known_parser(cls, name: str) -> str:
        if name != "auto" and name not in FORMATS:
            raise ValueError(f"must be auto or one of {', '.join(sorted(FORMATS))}, not {name!r}")
        return name

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
    def _named(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() and name.isprintable() for name in names):
            raise ValueError("a model's name must not be empty, and must be printable")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_origin, origins))

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_host, hosts))
