"""A model's chat template is found wherever its folder has it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support import families

from parallm_openai.models.loading import ModelLoadError, load
from parallm_openai.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
EXTRA = "additional_chat_templates/tool_use.jinja"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A tiny Llama without a chat template."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def put(folder: Path, files: dict[str, Any]) -> None:
    """Write templates to where they are named; `config` is tokenizer_config.json."""
    for name, template in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if name == "config":
            configure(folder, chat_template=template)
        elif name.endswith(".json"):
            file.write_text(json.dumps({"chat_template": template}))
        else:
            file.write_text(template)


BOTH = [{"name": "default", "template": "DEFAULT"}, {"name": "tool_use", "template": "TOOLS"}]


@pytest.mark.parametrize(
    ("files", "plain", "with_tools"),
    [
        ({"config": "DEFAULT"}, "DEFAULT", "DEFAULT"),
        ({"config": BOTH}, "DEFAULT", "TOOLS"),
        ({"chat_template.jinja": "DEFAULT"}, "DEFAULT", "DEFAULT"),
        ({"chat_template.jinja": "DEFAULT", "config": "OLD", "chat_template.json": "OLDER"}, "DEFAULT", "DEFAULT"),
        ({"chat_template.jinja": "DEFAULT", EXTRA: "TOOLS"}, "DEFAULT", "TOOLS"),
        ({"chat_template.jinja": "DEFAULT", EXTRA: "TOOLS", "config": "OLD"}, "DEFAULT", "TOOLS"),
        ({"chat_template.json": "DEFAULT"}, "DEFAULT", "DEFAULT"),
        ({"chat_template.json": BOTH}, "DEFAULT", "TOOLS"),
        ({"chat_template.json": "OLD", "config": "DEFAULT"}, "DEFAULT", "DEFAULT"),
        ({"chat_template.json": "DEFAULT", EXTRA: "TOOLS"}, "DEFAULT", "TOOLS"),
        ({"config": "DEFAULT", EXTRA: "TOOLS"}, "DEFAULT", "TOOLS"),
        ({"config": BOTH, EXTRA: "NEWER"}, "DEFAULT", "NEWER"),
    ],
)
def test_a_template_is_found_wherever_it_is(folder: Path, files: dict[str, Any], plain: str, with_tools: str) -> None:
    put(folder, files)
    model = load(folder)
    # With a format that is known, the template lists the tools itself.
    tokenizer = Tokenizer(model.tokenizer, model.vocab_size, "hermes")
    assert tokenizer.render(HELLO) == plain
    assert tokenizer.render(HELLO, tools=TOOLS) == with_tools


def test_the_format_of_calls_is_known_by_it(folder: Path) -> None:
    put(folder, {"chat_template.json": "{{ '[TOOL_CALLS]' }}"})
    model = load(folder)
    format = Tokenizer(model.tokenizer, model.vocab_size).chat_format.tools
    assert format is not None
    assert format.name == "mistral"


def test_a_folder_without_one_loads_as_before(folder: Path) -> None:
    model = load(folder)
    assert not model.tokenizer.has_chat_template


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": ')
    with pytest.raises(ModelLoadError, match=r"chat_template\.json cannot be read as JSON"):
        load(folder)


def test_a_text_longer_than_the_tokenizers_limit_is_encoded_without_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(folder, model_max_length=8)
    model = load(folder)
    for name in ("transformers", "transformers.tokenization_utils_base"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    assert len(Tokenizer(model.tokenizer, model.vocab_size).encode("x" * 100)) == 100
    assert "longer" not in caplog.text + "".join(capfd.readouterr())
