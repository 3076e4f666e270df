"""Images and files that a tool returned to a model that reads text.

Their places get words: the conversation keeps what the tool returned, so that a refusal would end it for good. What a
user attaches is refused instead, because the user can still say it otherwise.
"""

from __future__ import annotations

from parallm_openai.api.errors import ApiError, unsupported


def unreadable(where: str, kind: str) -> ApiError:
    """The error of the part of a message at `where`."""
    return unsupported(f"{where}.type", f"is '{kind}': this model reads text only")


def words_for(kind: str) -> str:
    """What the model gets in the place of a part."""
    return f"[{kind}: left out, because this model reads text only]"
