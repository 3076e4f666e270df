"""The bodies of `POST /api/chat`, `POST /api/generate` and `POST /api/show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from parallm_openai.api.errors import unsupported
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.chat import MAX_MESSAGES, ToolCall
from parallm_openai.api.schemas.sampling import Body, StopList, refuse
from parallm_openai.api.schemas.tools import AnyTool, FunctionTool, ignore_others
from parallm_openai.engine.request import SamplingParams
from parallm_openai.text.defaults import asked
from parallm_openai.text.description import AnswerFormat

OWN_DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
ANY_OBJECT = {"type": "object"}


class Options(Body):
    """How to sample."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=-1)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[StopList | None, BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)] = None
    num_predict: int | None = None
    repeat_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    # How Ollama would load a model: cannot change the answer of one that is loaded.
    num_ctx: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    num_thread: Any = None
    num_keep: Any = None
    numa: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    embedding_only: Any = None

    def sampling(self) -> SamplingParams:
        """What is said. Ollama's own defaults stand in for the rest, as far as the model has none."""
        said = asked(
            # For Ollama, a length or a seed that is not positive is no limit and any seed.
            max_tokens=self.num_predict if (self.num_predict or 0) > 0 else None,
            temperature=self.temperature,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed if (self.seed or 0) > 0 else None,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )
        return replace(said, **{name: value for name, value in OWN_DEFAULTS.items() if name in said.unsaid})


def _no_images(images: list[Any] | None) -> list[Any] | None:
    if images:
        raise ValueError("this model reads text only")
    return images


Images = Annotated[list[Any] | None, AfterValidator(_no_images)]


class Message(Body):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_MESSAGES, fail_fast=True)
    tool_name: str | None = None
    tool_call_id: str | None = None


Think = bool | Literal["low", "medium", "high", "max"]


class GeneratingFields(Body):
    """What `/api/chat` and `/api/generate` share."""

    model: str | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: Think | None = None
    stream: bool | None = None
    # The model is always loaded. 0 asks to unload it, if there is nothing to answer.
    keep_alive: Any = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def chosen(self) -> Options:
        return self.options or Options()

    def formats(self) -> Sequence[AnswerFormat]:
        if not self.format and self.format != {}:
            return ()
        schema = ANY_OBJECT if isinstance(self.format, str) else self.format
        return (AnswerFormat("json_schema", schema, "response_format"),)

    def thinking(self, ignored: Ignored, *, reasons: bool) -> dict[str, Any]:
        """The fields of a description that say how to think. By default the chat template decides."""
        if self.think is None:
            return {}
        if self.think is False:
            return {"reasoning_effort": "none"}
        if not reasons:
            ignored.add("think", unsupported("think", "cannot be used: this model does not reason"))
            return {}
        if self.think is True:
            return {"chat_template_kwargs": {"enable_thinking": True}}
        return {"reasoning_effort": self.think}


class ChatRequest(GeneratingFields):
    messages: list[Message] | None = Field(None, max_length=MAX_MESSAGES, fail_fast=True)
    tools: list[AnyTool] | None = Field(None, max_length=128)

    @property
    def function_tools(self) -> dict[int, FunctionTool]:
        """The tools that the model gets, by their place in the request."""
        return {place: tool for place, tool in enumerate(self.tools or []) if isinstance(tool, FunctionTool)}

    def check(self, ignored: Ignored) -> None:
        """Note what is ignored."""
        ignore_others(self.tools or [], ignored)


class GenerateRequest(GeneratingFields):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Images = None
    # Known to Ollama's clients, not supported.
    template: str | None = None
    context: list[int] | None = Field(None, fail_fast=True)

    def check(self, ignored: Ignored) -> None:
        """Raise ApiError for a template, and note what is ignored."""
        refuse({"template": self.template or None})
        if self.context:
            reason = "is not supported by this server: send the conversation to /api/chat"
            ignored.add("context", unsupported("context", reason))


class ShowRequest(Body):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    # Its older name.
    name: str | None = None
