"""Hold an answer against the openai SDK's own types."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel


def assert_exact(kind: Any, data: Any, where: str = "answer") -> None:
    """`data` has no field that `kind` lacks, all that it requires, and nothing of another type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        assert_exact(args[0], data, where)
    elif origin in (typing.Union, types.UnionType):
        assert any(_fits(option, data, where) for option in args), f"{where}: {data!r} fits nothing of {kind}"
    elif origin is list:
        assert isinstance(data, list), where
        for index, item in enumerate(data):
            assert_exact(args[0], item, f"{where}[{index}]")
    elif origin is dict:
        assert isinstance(data, dict), where
        for key, item in data.items():
            assert_exact(args[1], item, f"{where}.{key}")
    elif origin is typing.Literal:
        assert data in args, f"{where}: {data!r}"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        assert isinstance(data, dict), where
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        assert set(data) <= set(fields), f"{where}: unknown {set(data) - set(fields)}"
        missing = {name for name, field in fields.items() if field.is_required()} - set(data)
        assert not missing, f"{where}: missing {missing}"
        for name, value in data.items():
            assert_exact(fields[name].annotation, value, f"{where}.{name}")
    elif kind is object:
        pass
    elif kind is float:
        assert type(data) in (int, float), f"{where}: {data!r}"
    elif kind is type(None):
        assert data is None, f"{where}: {data!r}"
    else:
        assert type(data) is kind, f"{where}: {data!r} is not {kind}"


def _fits(kind: Any, data: Any, where: str) -> bool:
    try:
        assert_exact(kind, data, where)
    except AssertionError:
        return False
    return True
