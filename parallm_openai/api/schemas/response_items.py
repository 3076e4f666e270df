"""The items that a conversation of `/v1/responses` is made of, and what each says to the model."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from parallm_openai.api.errors import invalid, unsupported
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.schemas.chat import Arguments
from parallm_openai.api.schemas.response_tools import called_by
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.statements import Answered, Called, Said, Statement, Thought
from parallm_openai.api.unreadable import unreadable, words_for

TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
SEAL = "parallm."


class Open(Body):
    # Clients send the items of an answer back unchanged, with fields that mean nothing in a prompt.
    model_config = ConfigDict(extra="allow", strict=True)


class Part(Open):
    type: str
    text: str | None = None
    refusal: str | None = None

    @property
    def readable(self) -> bool:
        return self.type in TEXT_PARTS

    @property
    def said(self) -> str:
        return self.text or self.refusal or ""

    @property
    def returned(self) -> str:
        """What it says in the output of a tool."""
        return self.said if self.readable else words_for(self.type)

    def check(self, where: str) -> None:
        """Raise ApiError if the model cannot read it."""
        if not self.readable:
            raise unreadable(where, self.type)
        if self.text is None and self.refusal is None:
            param = f"{where}.text"
            raise invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


# Tags that are no identifiers are left out of the paths that errors name (see `errors.path`).
def _form(content: Any) -> str:
    return "form=text" if isinstance(content, str) else "form=parts"


Parts = Annotated[list[Part], Field(fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("form=text")] | Annotated[Parts, Tag("form=parts")],
    Discriminator(_form),
]


class Item(Open):
    """One item. Each kind defines what it says to the model and how it is stored."""

    type: str
    id: str | None = None

    def statements(self) -> Sequence[Statement]:
        """What it says to the model; nothing, unless its kind overrides this."""
        return ()

    def check(self, where: str, ignored: Ignored) -> None:
        """Raise ApiError for what the types do not say."""

    def stored(self) -> dict[str, Any]:
        """The item as it is returned to a client, perhaps without an id."""
        return {"status": "completed", **self.model_dump(exclude_unset=True), "type": self.type}


class Message(Item):
    type: Annotated[Literal["message"], BeforeValidator(lambda kind: kind or "message")] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    def statements(self) -> Sequence[Statement]:
        return [Said(self.role, text_of(self.content))]

    def check(self, where: str, ignored: Ignored) -> None:
        for name, part in _named_parts(self.content, f"{where}.content"):
            part.check(name)

    def stored(self) -> dict[str, Any]:
        parts = [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        return {**super().stored(), "content": [self._stored_part(part) for part in parts]}

    def _stored_part(self, part: Part) -> dict[str, Any]:
        fields = part.model_dump(exclude_unset=True)
        if part.type == "refusal":
            return fields
        if self.role == "assistant":
            return {"annotations": [], "logprobs": [], **fields, "type": "output_text"}
        return {**fields, "type": "input_text"}


class Reasoning(Item):
    type: Literal["reasoning"]
    summary: Parts | None = None
    content: Parts | None = None
    encrypted_content: str | None = None

    def statements(self) -> Sequence[Statement]:
        text = "".join(part.text or "" for part in self.content or [])
        text = text or unsealed(self.encrypted_content) or "\n\n".join(part.text or "" for part in self.summary or [])
        return [Thought(text)] if text else []

    def stored(self) -> dict[str, Any]:
        return {**super().stored(), "summary": [part.model_dump(exclude_unset=True) for part in self.summary or []]}


class FunctionCall(Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: Arguments = "{}"

    def statements(self) -> Sequence[Statement]:
        return [Called(self.call_id, called_by(self.name, self.namespace), self.arguments)]


class CallOutput(Item):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Content

    def statements(self) -> Sequence[Statement]:
        returned = self.output if isinstance(self.output, str) else "".join(part.returned for part in self.output)
        return [Answered(self.call_id, returned)]

    def check(self, where: str, ignored: Ignored) -> None:
        for name, part in _named_parts(self.output, f"{where}.output"):
            if part.readable:
                part.check(name)
            else:
                ignored.add(name, unreadable(name, part.type))


class CustomToolCall(Item):
    """A call whose argument is text. The model sees a function with the single argument `input`."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str

    def statements(self) -> Sequence[Statement]:
        return [Called(self.call_id, self.name, _json({"input": self.input}))]


class ShellCall(Item):
    type: Literal["local_shell_call", "shell_call"]
    call_id: str
    action: dict[str, Any]

    def statements(self) -> Sequence[Statement]:
        return [Called(self.call_id, self.type.removesuffix("_call"), _json(self.action))]


class ShellCallOutput(Item):
    type: Literal["local_shell_call_output", "shell_call_output"]
    # In OpenAI's older shell tool, `id` is the id of the call.
    call_id: str | None = None
    output: str | list[dict[str, Any]]

    def statements(self) -> Sequence[Statement]:
        text = self.output if isinstance(self.output, str) else _json(self.output)
        return [Answered(self.call_id or self.id or "", text)]

    def check(self, where: str, ignored: Ignored) -> None:
        if not (self.call_id or self.id):
            param = f"{where}.call_id"
            raise invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


class PatchCall(Item):
    type: Literal["apply_patch_call"]
    call_id: str
    operation: dict[str, Any]

    def statements(self) -> Sequence[Statement]:
        return [Called(self.call_id, "apply_patch", _json(self.operation))]


class PatchCallOutput(Item):
    type: Literal["apply_patch_call_output"]
    call_id: str
    status: str
    output: str | None = None

    def statements(self) -> Sequence[Statement]:
        return [Answered(self.call_id, self.output or self.status)]


class HostedCall(Item):
    """A call that OpenAI itself answered in an earlier turn. The model sees a call and what is known of its result."""

    type: Literal["web_search_call", "file_search_call", "code_interpreter_call", "mcp_call"]
    id: str
    status: str | None = None
    # Each kind has some of these.
    name: str | None = None
    arguments: str | None = None
    action: dict[str, Any] | None = None
    queries: list[str] | None = None
    code: str | None = None
    output: str | None = None
    error: Any = None
    results: Any = None
    outputs: Any = None

    def statements(self) -> Sequence[Statement]:
        asked = {"queries": self.queries, "code": self.code, **(self.action or {})}
        arguments = self.arguments or _json({name: value for name, value in asked.items() if value is not None})
        outcome = next((found for found in (self.output, self.error, self.results, self.outputs) if found), self.status)
        text = outcome if isinstance(outcome, str) else _json(outcome)
        return [Called(self.id, self.name or self.type.removesuffix("_call"), arguments), Answered(self.id, text)]


class McpListTools(Item):
    """The tools that a server had in an earlier turn. They cannot be called here, so that the model sees nothing."""

    type: Literal["mcp_list_tools"]

    def stored(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class Reference(Item):
    """Stands for a stored item."""

    type: Annotated[Literal["item_reference"], BeforeValidator(lambda kind: kind or "item_reference")] = (
        "item_reference"
    )
    id: str


class Other(Item):
    def check(self, where: str, ignored: Ignored) -> None:
        raise unsupported(f"{where}.type", f"is '{self.type}', which this server cannot read")


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else "other"
    if kind is None:
        return "type=item_reference" if "id" in item and not {"role", "content"} & set(item) else "type=message"
    return f"type={KINDS.get(kind, 'other') if isinstance(kind, str) else 'other'}"


# The class that reads each type of item, by the first of its types.
KINDS = {
    kind: kinds[0]
    for kinds in (
        ("message",),
        ("reasoning",),
        ("function_call",),
        ("function_call_output", "custom_tool_call_output"),
        ("custom_tool_call",),
        ("shell_call", "local_shell_call"),
        ("shell_call_output", "local_shell_call_output"),
        ("apply_patch_call",),
        ("apply_patch_call_output",),
        ("mcp_call", "web_search_call", "file_search_call", "code_interpreter_call"),
        ("mcp_list_tools",),
        ("item_reference",),
    )
    for kind in kinds
}

InputItem = Annotated[
    Annotated[Message, Tag("type=message")]
    | Annotated[Reasoning, Tag("type=reasoning")]
    | Annotated[FunctionCall, Tag("type=function_call")]
    | Annotated[CallOutput, Tag("type=function_call_output")]
    | Annotated[CustomToolCall, Tag("type=custom_tool_call")]
    | Annotated[ShellCall, Tag("type=shell_call")]
    | Annotated[ShellCallOutput, Tag("type=shell_call_output")]
    | Annotated[PatchCall, Tag("type=apply_patch_call")]
    | Annotated[PatchCallOutput, Tag("type=apply_patch_call_output")]
    | Annotated[HostedCall, Tag("type=mcp_call")]
    | Annotated[McpListTools, Tag("type=mcp_list_tools")]
    | Annotated[Reference, Tag("type=item_reference")]
    | Annotated[Other, Tag("type=other")],
    Discriminator(_kind),
]
Items = Annotated[list[InputItem], Field(fail_fast=True)]
STORED_ITEMS: TypeAdapter[Sequence[Item]] = TypeAdapter(Items)


def text_of(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.said for part in content)


def _named_parts(content: str | Sequence[Part], where: str) -> Iterator[tuple[str, Part]]:
    return ((f"{where}[{place}]", part) for place, part in enumerate(() if isinstance(content, str) else content))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def sealed(text: str) -> str:
    """Thoughts as `encrypted_content`, for clients that keep nothing else of them. They are encoded, not secret."""
    return SEAL + base64.urlsafe_b64encode(text.encode()).decode()


def unsealed(content: str | None) -> str:
    """The thoughts in an `encrypted_content` that this server made; none if another server made it."""
    if content is None or not content.startswith(SEAL):
        return ""
    try:
        return base64.urlsafe_b64decode(content.removeprefix(SEAL)).decode()
    except (binascii.Error, ValueError):
        return ""
