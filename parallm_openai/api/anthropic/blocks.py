"""The content blocks of Anthropic's messages, and what each says to the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from parallm_openai.api.errors import unsupported
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.response_items import unsealed
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.statements import Answered, Called, Said, Statement, Thought


class Block(Body):
    """One block. Each kind defines what it says to the model if a message of `role` holds it."""

    # Blocks carry what is for others (cache_control, citations, …).
    model_config = ConfigDict(extra="ignore", strict=True)

    type: str

    def statements(self, role: str) -> Sequence[Statement]:
        """What it says to the model; nothing, unless its kind overrides this."""
        return ()

    def check(self, where: str, ignored: Ignored) -> None:
        """Raise ApiError for what the types do not say."""


class Text(Block):
    type: Literal["text"]
    text: str

    def statements(self, role: str) -> Sequence[Statement]:
        return [Said(role, self.text)]


class Document(Block):
    """A document that is text; others the model cannot read."""

    type: Literal["document"]
    source: dict[str, Any]
    title: str | None = None
    context: str | None = None

    def statements(self, role: str) -> Sequence[Statement]:
        parts = (self.title, self.context, self.source.get("data"))
        return [Said(role, "\n\n".join(part for part in parts if isinstance(part, str) and part))]

    def check(self, where: str, ignored: Ignored) -> None:
        if self.source.get("type") != "text" or not isinstance(self.source.get("data"), str):
            raise unsupported(f"{where}.source", "is a document that is not plain text: this model reads text only")


class Thinking(Block):
    """Thoughts of an earlier answer. Without their text, they are in the `signature`, if this server made it."""

    type: Literal["thinking"]
    thinking: str | None = None
    signature: str | None = None

    def statements(self, role: str) -> Sequence[Statement]:
        text = self.thinking or unsealed(self.signature)
        return [Thought(text)] if text else []


class RedactedThinking(Block):
    """Thoughts that only the server that made them can read."""

    type: Literal["redacted_thinking"]

    def check(self, where: str, ignored: Ignored) -> None:
        ignored.add(where, unsupported(where, "holds thoughts that only the server that made them can read"))


class ToolUse(Block):
    """A call; also one that another server carried out itself."""

    type: Literal["tool_use", "server_tool_use", "mcp_tool_use"]
    id: str
    name: str
    input: dict[str, Any] | None = None

    def statements(self, role: str) -> Sequence[Statement]:
        return [Called(self.id, self.name, _json(self.input or {}))]


class ToolResult(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Content | None = None
    is_error: bool | None = None

    def statements(self, role: str) -> Sequence[Statement]:
        text = text_of(self.content or "")
        # A chat message has no mark for it.
        return [Answered(self.tool_use_id, f"Error: {text}" if self.is_error else text)]

    def check(self, where: str, ignored: Ignored) -> None:
        check_blocks(self.content or "", f"{where}.content", ignored, TEXTS)


class ServerResult(Block):
    """What another server found when it carried out a call itself."""

    tool_use_id: str
    content: Any = None

    def statements(self, role: str) -> Sequence[Statement]:
        return [Answered(self.tool_use_id, self.content if isinstance(self.content, str) else _json(self.content))]


class Other(Block):
    def check(self, where: str, ignored: Ignored) -> None:
        raise unsupported(f"{where}.type", f"is '{self.type}': this model reads text only")


# Tags that are no identifiers are left out of the paths that errors name (see `errors.path`).
def _form(content: Any) -> str:
    return "form=text" if isinstance(content, str) else "form=blocks"


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        return "type=other"
    if kind.endswith("_tool_result"):
        return "type=server_result"
    return (
        f"type={kind}" if kind in ("text", "document", "thinking", "redacted_thinking", "tool_result") else _rest(kind)
    )


def _rest(kind: str) -> str:
    return "type=tool_use" if kind.endswith("tool_use") else "type=other"


AnyBlock = Annotated[
    Annotated[Text, Tag("type=text")]
    | Annotated[Document, Tag("type=document")]
    | Annotated[Thinking, Tag("type=thinking")]
    | Annotated[RedactedThinking, Tag("type=redacted_thinking")]
    | Annotated[ToolUse, Tag("type=tool_use")]
    | Annotated[ToolResult, Tag("type=tool_result")]
    | Annotated[ServerResult, Tag("type=server_result")]
    | Annotated[Other, Tag("type=other")],
    Discriminator(_kind),
]
Blocks = Annotated[list[AnyBlock], Field(fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("form=text")] | Annotated[Blocks, Tag("form=blocks")],
    Discriminator(_form),
]
ToolResult.model_rebuild()

TEXTS = (Text, Document)
BY_ROLE: dict[str, tuple[type[Block], ...]] = {
    "system": TEXTS,
    "user": (*TEXTS, ToolResult),
    "assistant": (*TEXTS, Thinking, RedactedThinking, ToolUse, ServerResult),
}


def check_blocks(
    content: str | Sequence[Block], where: str, ignored: Ignored, allowed: tuple[type[Block], ...]
) -> None:
    """Raise ApiError for a block that may not stand there, or that the model cannot read."""
    for place, block in enumerate(() if isinstance(content, str) else content):
        name = f"{where}[{place}]"
        if not isinstance(block, (*allowed, Other)):
            raise unsupported(f"{name}.type", f"is '{block.type}', which cannot stand there")
        block.check(name, ignored)


def text_of(content: str | Sequence[Block]) -> str:
    """The text of a content; blocks of text are paragraphs of their own."""
    if isinstance(content, str):
        return content
    said = [statement for block in content for statement in block.statements("user")]
    return "\n".join(statement.text for statement in said if isinstance(statement, Said))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
