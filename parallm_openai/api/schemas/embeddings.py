"""The body of `POST /v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from parallm_openai.api.schemas.completions import FAIL_FAST, TextOrTokens, TokenIds
from parallm_openai.api.schemas.sampling import Body

# As many as OpenAI takes.
MOST_INPUTS = 2048


class EmbeddingRequest(Body):
    model: str | None = None
    input: str | TokenIds | Annotated[list[str], FAIL_FAST] | Annotated[list[TokenIds], FAIL_FAST]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    # Cannot change the answer.
    user: str | None = None

    def inputs(self) -> list[TextOrTokens]:
        """The inputs one by one; an empty list is an input without tokens."""
        if isinstance(self.input, str):
            return [self.input]
        tokens = [token for token in self.input if isinstance(token, int)]
        return [tokens] if tokens or not self.input else [each for each in self.input if not isinstance(each, int)]
