"""What a GGUF file's metadata say of its architecture, with the types that they must have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from parallm_openai.models.gguf.finding import GgufError
from parallm_openai.models.gguf.reading import GgufFile

MOST = 2**31 - 1


class Facts:
    """Access to the keys that begin with the architecture's name, as `llama.context_length`."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = str(file.metadata.get("general.architecture", ""))

    def get(self, *keys: str) -> Any:
        """The value of the first of these keys that is there. Of one value a layer, the value if all are equal."""
        for key in keys:
            name = f"{self.architecture}.{key}"
            value = self.file.metadata.get(name)
            if isinstance(value, np.ndarray | list):
                value = _same_in_all_layers(name, value)
            if value is not None:
                return value
        return None

    def whole(self, *keys: str, default: int | None = None) -> int:
        """A whole number above 0. Raises GgufError if it is missing and there is no default."""
        value = self.get(*keys)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST:
            raise GgufError(f"its {self.architecture}.{keys[0]} is {_shown(value)}, and must be a whole number above 0")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number. Raises GgufError if it is missing and there is no default."""
        value = self.get(*keys)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise GgufError(f"its {self.architecture}.{keys[0]} is {_shown(value)}, and must be a number")
        return float(value)

    def factors(self, name: str, count: int) -> list[float] | None:
        """The numbers of a small float32 tensor; None if the file has no such tensor."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            return None
        if tensor.kind.name != "F32" or tensor.shape != (count,):
            found = f"{list(tensor.shape)} in {tensor.kind.name}"
            raise GgufError(f"its tensor {name} must be {count} numbers in F32, and is {found}")
        numbers = self.file.blocks(tensor).reshape(-1).view(np.float32)
        if not (np.isfinite(numbers).all() and (numbers > 0).all()):
            raise GgufError(f"its tensor {name} holds numbers that are not above 0")
        return [float(number) for number in numbers]


def _same_in_all_layers(name: str, values: Iterable[Any]) -> Any:
    found = {value.item() if isinstance(value, np.generic) else value for value in values}
    if len(found) > 1:
        raise GgufError(f"its {name} differs between layers, which is not supported")
    return found.pop() if found else None


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:100]
