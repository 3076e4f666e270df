"""The content blocks of Anthropic's messages, and what each says to the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from parallm_openai.api.errors import ApiError, unsupported
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.response_items import unsealed
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.statements import Answered, Called, Said, Statement, Thought
from parallm_openai.api.unreadable import unreadable, words_for


class Block(Body):
    """One block. Each kind defines what it says to the model if a message of `role` holds it."""

    # Blocks carry what is for others (cache_control, citations, …).
    model_config = ConfigDict(extra="ignore", strict=True)

    type: str

    def statements(self, role: str) -> Sequence[Statement]:
        """What it says to the model; nothing, unless its kind overrides this."""
        return ()

    def resolved(self, definitions: dict[str, str]) -> Block:
        """The block with definitions in the place of references to tools. Each is taken out, and so stands once."""
        return self

    def fault(self, where: str) -> ApiError | None:
        """Why the model cannot read it; None if it can."""
        return None

    def check(self, where: str, ignored: Ignored) -> None:
        """Raise ApiError for what the types do not say."""
        if (fault := self.fault(where)) is not None:
            raise fault


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

    def fault(self, where: str) -> ApiError | None:
        if self.source.get("type") == "text" and isinstance(self.source.get("data"), str):
            return None
        return unsupported(f"{where}.source", "is a document that is not plain text: this model reads text only")


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


class ToolReference(Block):
    """A tool that a search has found."""

    type: Literal["tool_reference"]
    tool_name: str

    def resolved(self, definitions: dict[str, str]) -> Block:
        # With its definition in each place, a small request would make a prompt of any size.
        return Text(type="text", text=definitions.pop(self.tool_name, self.tool_name))


class ToolResult(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Content | None = None
    is_error: bool | None = None

    def resolved(self, definitions: dict[str, str]) -> Block:
        if self.content is None or isinstance(self.content, str):
            return self
        return self.model_copy(update={"content": [block.resolved(definitions) for block in self.content]})

    def statements(self, role: str) -> Sequence[Statement]:
        blocks = self.content or ""
        text = blocks if isinstance(blocks, str) else "\n".join(_returned(block) for block in blocks)
        # A chat message has no mark for it.
        return [Answered(self.tool_use_id, f"Error: {text}" if self.is_error else text)]

    def check(self, where: str, ignored: Ignored) -> None:
        for name, block in named_blocks(self.content or "", f"{where}.content", RESULTS):
            if (fault := block.fault(name)) is not None:
                ignored.add(name, fault)


class ServerResult(Block):
    """What another server found when it carried out a call itself."""

    tool_use_id: str
    content: Any = None

    def statements(self, role: str) -> Sequence[Statement]:
        return [Answered(self.tool_use_id, self.content if isinstance(self.content, str) else _json(self.content))]


class Other(Block):
    def fault(self, where: str) -> ApiError | None:
        return unreadable(where, self.type)


# Tags that are no identifiers are left out of the paths that errors name (see `errors.path`).
def _form(content: Any) -> str:
    return "form=text" if isinstance(content, str) else "form=blocks"


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        return "type=other"
    if kind.endswith("_tool_result"):
        return "type=server_result"
    if kind.endswith("tool_use"):
        return "type=tool_use"
    return f"type={kind if kind in OWN_KINDS else 'other'}"


OWN_KINDS = ("text", "document", "thinking", "redacted_thinking", "tool_result", "tool_reference")


AnyBlock = Annotated[
    Annotated[Text, Tag("type=text")]
    | Annotated[Document, Tag("type=document")]
    | Annotated[Thinking, Tag("type=thinking")]
    | Annotated[RedactedThinking, Tag("type=redacted_thinking")]
    | Annotated[ToolUse, Tag("type=tool_use")]
    | Annotated[ToolReference, Tag("type=tool_reference")]
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
RESULTS = (*TEXTS, ToolReference)
BY_ROLE: dict[str, tuple[type[Block], ...]] = {
    "system": TEXTS,
    "user": (*TEXTS, ToolResult),
    "assistant": (*TEXTS, Thinking, RedactedThinking, ToolUse, ServerResult),
}


def check_blocks(
    content: str | Sequence[Block], where: str, ignored: Ignored, allowed: tuple[type[Block], ...]
) -> None:
    """Raise ApiError for a block that may not stand there, or that the model cannot read."""
    for name, block in named_blocks(content, where, allowed):
        block.check(name, ignored)


def named_blocks(
    content: str | Sequence[Block], where: str, allowed: tuple[type[Block], ...]
) -> Iterator[tuple[str, Block]]:
    """The blocks with their names. Raises ApiError for one that may not stand there."""
    for place, block in enumerate(() if isinstance(content, str) else content):
        name = f"{where}[{place}]"
        if not isinstance(block, (*allowed, Other)):
            raise unsupported(f"{name}.type", f"is '{block.type}', which cannot stand there")
        yield name, block


def text_of(content: str | Sequence[Block]) -> str:
    """The text of a content; blocks of text are paragraphs of their own."""
    if isinstance(content, str):
        return content
    said = [statement for block in content for statement in block.statements("user")]
    return "\n".join(statement.text for statement in said if isinstance(statement, Said))


def references(content: str | Sequence[Block]) -> Iterator[str]:
    """The names of the tools that the results of calls in a message refer to."""
    for block in () if isinstance(content, str) else content:
        if isinstance(block, ToolReference):
            yield block.tool_name
        elif isinstance(block, ToolResult):
            yield from references(block.content or "")


def _returned(block: Block) -> str:
    """What a block in the result of a tool says."""
    return text_of([block]) if block.fault("") is None else words_for(block.type)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
