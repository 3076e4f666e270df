"""Writes docs/settings.md from the settings models: `python -m parallm_openai.cli.settings_page > docs/settings.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from parallm_openai.bench.shape import PairShape
from parallm_openai.cli.bench_settings import LoadSettings, OutputSettings, TargetSettings
from parallm_openai.cli.chat import ChatSettings
from parallm_openai.cli.generate import PromptSettings
from parallm_openai.cli.options import Option, options_of
from parallm_openai.cli.sampling import ChatSampling, PromptSampling
from parallm_openai.cli.simulation_settings import SimulationSettings
from parallm_openai.scaling_settings import RankSettings, ReplicaSettings
from parallm_openai.setting_types import Settings
from parallm_openai.settings import (
    ConfigFile,
    DraftSettings,
    EngineConfig,
    ModelSettings,
    RequestDefaults,
    ServerSettings,
    SpeculationConfig,
    TlsSettings,
)

SERVE: list[type[Settings]] = [
    ModelSettings,
    DraftSettings,
    EngineConfig,
    RequestDefaults,
    ServerSettings,
    TlsSettings,
    ReplicaSettings,
    RankSettings,
]
GENERATE: list[type[Settings]] = [PromptSettings, PromptSampling]
CHAT: list[type[Settings]] = [ChatSettings, ChatSampling]
BENCH: list[type[Settings]] = [TargetSettings, LoadSettings, OutputSettings, PairShape, SimulationSettings]


def _flags(*models: type[Settings]) -> str:
    return ", ".join(f"`{option.flag}`" for model in models for option in options_of(model))


MODEL_FLAGS = _flags(ModelSettings, DraftSettings)
ENGINE_FLAGS = _flags(ModelSettings, DraftSettings, SpeculationConfig)

INTRODUCTION = """\
# Settings

<!-- Made from the settings models by `python -m parallm_openai.cli.settings_page`: change those, not this page. -->

`parallm-openai serve` takes each setting as a flag, as an environment variable, or as a key of the file that `--config`
(or `PARALLM_CONFIG`) names. A flag wins over a variable, a variable over the file, and the file over the default.

```sh
PARALLM_MAX_QUEUE=64 parallm-openai serve --config serve.toml --port 8000
```

The file is TOML (`.toml`) or YAML (`.yaml`, `.yml`), and flat: its keys are the names of the flags, with `-` or `_`.
A repeatable setting takes one text or a list, and so does one that a flag takes by commas. Paths are relative to the
folder that the command is started in.

```toml
model = "mlx-community/Qwen3-8B-4bit"
draft-model = "mlx-community/Qwen3-0.6B-4bit"
max-batch-size = 32
use-speculative = true
api-key = ["one", "two"]
```

Many settings have further names, those that vLLM, mlx_lm and llama.cpp have for the same thing: the column "also". They
are flags, and those with `--` are keys of the file as well. The model may stand without its flag:
`parallm-openai serve mlx-community/Qwen3-8B-4bit`.

In a variable, several keys or names stand with spaces between them. A variable that is empty counts as not set, but
`PARALLM_API_KEY` and `PARALLM_ADMIN_KEY` must hold a key if they are set. An unknown key in the file or a bad value
ends the command with exit status 2.
"""

CONFIGURE = """\
## While the server runs

`POST /v1/configure` changes these settings of the running engine, as query parameters: {names}.
"""


def settings_page() -> str:
    """The whole page, as Markdown."""
    changeable = ", ".join(f"`{name}`" for name in EngineConfig.model_fields)
    parts = [
        INTRODUCTION,
        "## `serve`\n",
        *_tables([ConfigFile, *SERVE]),
        CONFIGURE.format(names=changeable),
        "## `generate`\n",
        f"{ENGINE_FLAGS} as for `serve`, and:\n",
        *_tables(GENERATE),
        "## `chat`\n",
        f"{ENGINE_FLAGS} as for `serve`, and:\n",
        *_tables(CHAT),
        "## `doctor`\n",
        f"{MODEL_FLAGS} as for `serve`.\n",
        "## `bench`\n",
        *_tables(BENCH),
    ]
    return "\n".join(parts)


def _tables(models: Iterable[type[Settings]]) -> Iterable[str]:
    """A table for each heading, in the order of the headings' first settings."""
    panels: dict[str, list[Option]] = {}
    for model in models:
        for option in options_of(model):
            panels.setdefault(option.panel, []).append(option)
    for panel, options in panels.items():
        if panel:
            yield f"### {panel}\n"
        yield _table(options)


def _table(options: Iterable[Option]) -> str:
    options = list(options)
    with_variables = any(option.variable for option in options)
    names = ["flag", "variable", "key in the file"] if with_variables else ["flag"]
    with_aliases = any(option.aliases for option in options)
    lines = [[*names, *(["also"] if with_aliases else []), "default", "takes", "what it does"]]
    lines.append(["---"] * len(lines[0]))
    for option in options:
        flags = ", ".join(f"`{flag}`" for flag in (option.flag, option.short, option.opposite) if flag)
        also = [", ".join(f"`{alias}`" for alias in option.aliases)] if with_aliases else []
        # The file cannot name itself.
        key = "" if option.name in ConfigFile.model_fields else f"`{option.key}`"
        name = [flags, f"`{option.variable}`", key] if with_variables else [flags]
        lines.append([*name, *also, _default(option), option.kind, re.sub(r"([*|<])", r"\\\1", option.help)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _default(option: Option) -> str:
    if option.is_switch:
        return "on" if option.default else "off"
    if isinstance(option.default, int) and option.default and option.default % 2**20 == 0:
        return f"{option.default} ({option.default >> 20} MiB)"
    return option.default_text or ""


if __name__ == "__main__":
    print(settings_page(), end="")
