"""`parallm-openai chat`: a conversation at the terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import explained, fail
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.cli.progress import stage
from parallm_openai.cli.sampling import ChatSampling
from parallm_openai.cpu import prepare
from parallm_openai.setting_types import Flag, NonEmpty, Settings, from_json
from parallm_openai.settings import DraftSettings, ModelSettings, SpeculationConfig

if TYPE_CHECKING:
    from parallm_openai.cli.answers import Source


class ChatSettings(Settings):
    """With whom to chat, and how."""

    has_variables: ClassVar[bool] = False

    url: Annotated[NonEmpty | None, Flag("Chat", kind="a URL")] = Field(
        None,
        description="Chat with a server that runs there, instead of loading a model; --model is then a name of it.",
    )
    api_key: Annotated[NonEmpty | None, Flag("Chat", kind="a key")] = Field(
        None, repr=False, description="The key of that server."
    )
    system: Annotated[NonEmpty | None, Flag("Chat", aliases=("--system-prompt", "-sys"), kind="a text")] = Field(
        None, description="A system message before the conversation."
    )
    chat_template_args: Annotated[
        dict[str, Any] | None,
        BeforeValidator(from_json),
        Flag("Chat", aliases=("--chat-template-kwargs",), kind="a JSON object"),
    ] = Field(None, description='Variables of the chat template, such as {"enable_thinking": false}.')
    stats: Annotated[bool, Flag("Chat", aliases=("--verbose",))] = Field(
        False, description="Say after each answer what it cost: tokens, time, accepted drafts."
    )

    @model_validator(mode="after")
    def _key_for_a_server(self) -> ChatSettings:
        if self.api_key is not None and self.url is None:
            raise ValueError("--api-key: needs --url")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("--url: must begin with http:// or https://")
        return self


@with_settings(positional="model")
def chat(
    settings: ChatSettings,
    sampling: ChatSampling,
    model: ModelSettings,
    drafting: DraftSettings,
    speculation: SpeculationConfig,
) -> None:
    """Chat with a model at the terminal, in this process or by a server.

    /help in the chat lists what else can be entered. Ctrl-C stops an answer,
    Ctrl-D leaves.
    """
    from parallm_openai.cli.answers import AnswerError
    from parallm_openai.cli.repl import Chat, converse

    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(_source(settings, model, drafting, speculation))
        except AnswerError as error:
            fail(str(error))
        converse(Chat(source, sampling, system=settings.system, stats=settings.stats))


@contextlib.contextmanager
def _source(
    settings: ChatSettings, model: ModelSettings, drafting: DraftSettings, speculation: SpeculationConfig
) -> Iterator[Source]:
    """Who answers. Ends the command if it cannot be had."""
    from parallm_openai.cli.answers import LocalSource, ServerSource

    arguments = settings.chat_template_args or {}
    if settings.url is not None:
        # The variable is for commands that load a model; a server may have others.
        wanted = None if model.model == os.environ.get("PARALLM_MODEL") else model.model
        yield ServerSource(settings.url, wanted, settings.api_key, arguments)
        return
    prepare()
    from parallm_openai.llm import LLM

    target = load_model(model)
    draft = load_draft(model, drafting)
    with explained(), stage("warming up"):
        llm = LLM(target, draft_model=draft, max_batch_size=1, **speculation.model_dump())
    with llm:
        yield LocalSource(llm, arguments)
