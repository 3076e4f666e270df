"""What a message must be like, whichever surface it comes from: a role, and text that the model can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parallm_openai.text.history import THOUGHT_PARTS, THOUGHTS
from parallm_openai.text.request_error import Field, RequestError, invalid_value, unsupported

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Whose messages may be without content.
MAY_BE_EMPTY = ("assistant", "tool", "function")


def check_messages(messages: Sequence[Any]) -> None:
    """Raise RequestError for a message that says nothing, or something else than text."""
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, Mapping):
        raise invalid_value(where, "expected a message with a role and content.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise invalid_value(f"{where}.role", f"expected one of {', '.join(ROLES)}.")
    if content is None:
        _check_without_content(message, role, where)
    elif isinstance(content, list):
        for place, part in enumerate(content):
            _check_part(part, role, f"{where}.content[{place}]")
    elif not isinstance(content, str):
        raise invalid_value(f"{where}.content", "expected text, or a list of parts.")


def _check_without_content(message: Mapping[str, Any], role: str, where: str) -> None:
    if role not in MAY_BE_EMPTY:
        raise invalid_value(f"{where}.content", "expected text, got null.")
    # An answer that was cut off in its thoughts has only those; one that was refused has only the refusal.
    said = [message.get(name) for name in ("tool_calls", "function_call", *THOUGHTS, "refusal")]
    if role == "assistant" and not any(said):
        field = f"{where}.content"
        raise RequestError("'{}' has neither content nor tool calls.", Field(where), field=field)


def _check_part(part: Any, role: str, where: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise invalid_value(where, "expected a part with a type.")
    if kind in THOUGHT_PARTS and role == "assistant":
        return
    if kind not in ("text", "refusal"):
        raise unsupported(f"{where}.type", f"is '{kind}': this model reads text only")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise RequestError("Missing required parameter: '{}'.", Field(f"{where}.text"), field=f"{where}.text")
