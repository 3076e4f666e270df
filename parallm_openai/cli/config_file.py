"""Reads the file of `--config`: TOML or YAML, with the names of flags as keys."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class ConfigFileError(Exception):
    """The file cannot be used; the message names it and says why."""


def read_config_file(file: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """Key and value of every setting in the file. Raises ConfigFileError.

    `known` says of each key that there may be which setting's key it stands for. A key may have `_` in place of `-`.
    The values are as the file has them: nobody has checked them.
    """
    settings: dict[str, Any] = {}
    for written, value in _items(file):
        key = known.get(str(written).replace("_", "-"))
        if key is None:
            key = str(written).replace("_", "-")
            similar = difflib.get_close_matches(key, known, n=1)
            raise ConfigFileError(
                f"{file}: there is no setting '{written}'" + (f"; did you mean '{similar[0]}'?" if similar else "")
            )
        if key in settings:
            raise ConfigFileError(f"{file}: '{key}' is given more than once; put several values into one list")
        settings[key] = value
    return settings


def _items(file: Path) -> list[tuple[Any, Any]]:
    parsers = {".toml": _from_toml, ".yaml": _from_yaml, ".yml": _from_yaml}
    parse = parsers.get(file.suffix.lower())
    if parse is None:
        raise ConfigFileError(f"{file}: the name of a configuration file must end in .toml, .yaml or .yml")
    try:
        return parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFileError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"{file}: the file is not text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigFileError(f"{file}: line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{file}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigFileError(f"{file}: the values are nested too deeply") from error
    except ValueError as error:
        raise ConfigFileError(f"{file}: {error}") from error


def _from_toml(text: str) -> list[tuple[Any, Any]]:
    return list(tomllib.loads(text).items())


def _from_yaml(text: str) -> list[tuple[Any, Any]]:
    """Item by item, because a dictionary would hide a key that is there twice."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ValueError("the file must hold settings, such as port: 8080")
        return [
            (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
            for key, value in root.value
        ]
    finally:
        loader.dispose()
