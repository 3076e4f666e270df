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
        (
            "speculation",
            "yes" if header.speculates else "no: it has layers of another kind than attention and recurrent ones",
        ),
        ("could draft for it", _drafters(name_or_path, header)),
    ]


def _row(header: Header, length: int) -> str:
    if header.token_bytes is None or header.state_bytes is None:
        return "not known: it has layers of another kind than attention and recurrent ones"
    parts = [f"{in_bytes(header.token_bytes)} a token"] if header.token_bytes else []
    parts += [f"{in_bytes(header.state_bytes)} of recurrent states"] if header.state_bytes else []
    return f"{in_bytes(header.token_bytes * length + header.state_bytes)} ({', '.join(parts)})"


def _drafters(name: str, header: Header) -> str:
    if not header.speculates:
        return "nothing"
    own = NAMED[name].draft if name in NAMED else None
    models = (f"--draft-model {each}{' (the default)' if each == str(own) else ''}" for each in drafters_for(header))
    return ", ".join(["--draft suffix", *models])
