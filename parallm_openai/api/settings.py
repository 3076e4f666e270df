"""How the HTTP server behaves; what the engine does is in `parallm_openai.config`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from parallm_openai.text.tools.families import FORMATS


class ServerSettings(BaseModel):
    """Fixed for the life of a server. Times in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    served_model_names: tuple[str, ...] = Field((), description="Names that requests may use besides the model's own.")
    api_keys: tuple[str, ...] = Field((), description="Accepted bearer tokens; none means that no key is needed.")
    cors_origins: tuple[str, ...] = Field(("*",), description="Origins whose pages may call this server.")
    max_body_size: int = Field(16 * 2**20, ge=1024)
    request_timeout: float = Field(600.0, gt=0, description="The most that one request may take from its arrival.")
    graceful_timeout: float = Field(30.0, ge=0, description="How long running requests may go on after a stop signal.")
    stored_responses: int = Field(1000, ge=0, description="How many answers of /v1/responses are kept to go on from.")
    stored_responses_bytes: int = Field(64 * 2**20, ge=0, description="How much memory those answers may take.")
    tool_call_parser: str = Field("auto", description="The format of tool calls; auto goes by the chat template.")
    template_timeout: float = Field(10.0, gt=0, description="How long a chat template may work on one conversation.")
    send_timeout: float = Field(60.0, gt=0, description="How long a client may leave a stream's chunk unread.")

    @field_validator("tool_call_parser")
    @classmethod
    def _known_parser(cls, name: str) -> str:
        if name != "auto" and name not in FORMATS:
            raise ValueError(f"must be auto or one of {', '.join(sorted(FORMATS))}")
        return name
