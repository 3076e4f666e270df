"""A model's properties and its need of memory, in words. Importing this imports mlx."""

from __future__ import annotations

from parallm_openai.catalog.drafters import drafters_for
from parallm_openai.catalog.header import Header, read_header
from parallm_openai.catalog.listing import place_of
from parallm_openai.catalog.sizes import in_bytes
from parallm_openai.models.named import NAMED
from parallm_openai.models.weights import on_plain_cpu

Facts = list[tuple[str, str]]

# A row of this many tokens is an example.
ROW_LENGTH = 4096


def describe(name_or_path: str, length: int | None = None) -> Facts:
    """Name and value of what matters before a model is served; memory of a row is for `length` tokens.

    Raises CatalogError.
    """
    header = read_header(place_of(name_or_path))
    length = min(length or ROW_LENGTH, header.context_length)
    device = "in float32 on this CPU" if on_plain_cpu() else "on this device"
    return [
        ("model", f"{name_or_path} ({header.path})"),
        ("architecture", str(header.config.get("model_type"))),
        ("parameters", f"{header.parameters / 1e6:,.1f}M"),
        ("quantisation", header.quantisation),
        ("context, vocabulary", f"{header.context_length}, {len(header.vocabulary)}"),
        ("memory of the weights", f"{in_bytes(header.weight_bytes)} {device}"),
        (f"memory of a row of {length} tokens", _row(header, length)),
        ("speculation", "yes" if header.speculates else "no: its state cannot be rolled back"),
        ("could draft for it", _drafters(name_or_path, header)),
    ]


def _row(header: Header, length: int) -> str:
    if header.token_bytes is None:
        return "not known: its cache is not plain keys and values"
    return f"{in_bytes(header.token_bytes * length)} ({in_bytes(header.token_bytes)} a token)"


def _drafters(name: str, header: Header) -> str:
    if not header.speculates:
        return "nothing"
    own = NAMED[name].draft if name in NAMED else None
    default = f" (its default: {own})" if own is not None else ""
    return ", ".join(["--draft ngram", *(f"--draft-model {each}" for each in drafters_for(header))]) + default
