"""Every setting is set by a flag, a variable and a file alike, and what is wrong with it is said in one sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import typer
from pydantic import Field
from support.processes import ROOT
from typer.testing import CliRunner

from parallm_openai.cli.command import options_of_command, with_settings
from parallm_openai.cli.flags import command_class
from parallm_openai.cli.options import Option, options_of
from parallm_openai.cli.peers import NO_EQUAL
from parallm_openai.cli.settings_page import settings_page
from parallm_openai.scaling_settings import RankSettings, ReplicaSettings
from parallm_openai.setting_types import Flag, Settings
from parallm_openai.settings import (
    DraftSettings,
    EngineConfig,
    ModelSettings,
    RequestDefaults,
    ServerSettings,
    TlsSettings,
    ToolCallParser,
)
from parallm_openai.text.tools.families import FORMATS

MODELS: list[type[Settings]] = [
    ModelSettings,
    DraftSettings,
    EngineConfig,
    RequestDefaults,
    ServerSettings,
    TlsSettings,
    ReplicaSettings,
    RankSettings,
]
OPTIONS = {option.key: option for model in MODELS for option in options_of(model)}
# Values that differ from the default, for settings that are neither switches nor numbers.
SAMPLES = {
    "tool-call-parser": "hermes",
    "draft": "suffix",
    "draft-length": "3",
    "prefill-chunk": "100",
    "speculative-acceptance": "rejection",
    "log-level": "debug",
    "log-format": "json",
    "temperature": "0.5",
    "top-p": "0.5",
    "top-k": "5",
    "min-p": "0.5",
    "repetition-penalty": "1.5",
    "max-tokens": "5",
    "chat-template-args": '{"enable_thinking": false}',
    "cors-origins": "null",
    "context-length": "5",
    "root-path": "/x",
    "replicas": "2",
    "max-replicas": "3",
    "target-ongoing-requests": "5",
    "replica-routing": "least-loaded",
    "backend": "ring",
    "starting-port": "5",
}
# Settings that mean nothing without another.
NEEDED = {
    "max-replicas": ["--replicas", "2"],
    "target-ongoing-requests": ["--replicas", "2", "--max-replicas", "4"],
    "replica-routing": ["--replicas", "2"],
    **{key: ["--launch"] for key in ("hosts", "repeat-hosts", "hostfile", "backend", "starting-port")},
    "draft-revision": ["--draft-model", "y"],
    "ssl-keyfile": ["--ssl-certfile", "y"],
    "ssl-keyfile-password": ["--ssl-certfile", "y"],
    "ssl-ca-certs": ["--ssl-certfile", "y"],
    "ssl-cert-reqs": ["--ssl-certfile", "y", "--ssl-ca-certs", "y"],
}


def invoke(*arguments: str, **environment: str) -> tuple[dict[str, Any], Any]:
    """What a command that takes the settings of `serve` is given, by the names of fields; and the runner's result."""
    seen: dict[str, Any] = {}

    @with_settings(config_file=True, positional="model")
    def command(
        model: ModelSettings,
        drafting: DraftSettings,
        config: EngineConfig,
        defaults: RequestDefaults,
        settings: ServerSettings,
        tls: TlsSettings,
        replicas: ReplicaSettings,
        sharing: RankSettings,
    ) -> None:
        for each in (model, drafting, config, defaults, settings, tls, replicas, sharing):
            seen.update(each.model_dump())

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command(cls=command_class(options_of_command(command)))(command)
    # The tests' own choice of a model is not set here.
    return seen, CliRunner().invoke(app, list(arguments), env={"PARALLM_MODEL": "", **environment})


def given(*arguments: str, **environment: str) -> dict[str, Any]:
    seen, result = invoke(*arguments, **environment)
    assert result.exit_code == 0, result.output
    return seen


def refused(*arguments: str, **environment: str) -> str:
    seen, result = invoke(*arguments, **environment)
    assert (seen, result.exit_code, result.stdout) == ({}, 2, "")
    return str(result.stderr)


def sample(option: Option) -> str:
    if option.is_switch:
        return str(not option.default).lower()
    if isinstance(option.default, int | float):
        return str(option.default + 1)
    return SAMPLES.get(option.key, "x")


# Three ways to set each


@pytest.mark.parametrize("key", OPTIONS)
def test_a_flag_a_variable_and_a_file_set_the_same(key: str, tmp_path: Path) -> None:
    option, file, needed = OPTIONS[key], tmp_path / "settings.toml", NEEDED.get(key, [])
    value = sample(option)
    flags = [option.flag if value == "true" else str(option.opposite)] if option.is_switch else [option.flag, value]
    plain = value if isinstance(option.default, int | float) else json.dumps(value)
    file.write_text(f"{key} = {plain}\n")
    by_flag = given(*flags, *needed)
    assert by_flag[option.field] != given()[option.field]
    assert given(*needed, **{str(option.variable): value}) == by_flag
    assert given(*needed, "--config", str(file)) == by_flag


ALIASES = [(key, alias) for key, option in OPTIONS.items() for alias in option.aliases]


@pytest.mark.parametrize(("key", "alias"), ALIASES)
def test_the_name_that_another_program_has_for_a_setting_sets_it(key: str, alias: str, tmp_path: Path) -> None:
    option, file = OPTIONS[key], tmp_path / "settings.yaml"
    value, needed = sample(option), NEEDED.get(key, [])
    expected = given(option.flag, value, *needed)
    assert given(alias, value, *needed) == expected
    if alias.startswith("--"):
        assert given(f"{alias}={value}", *needed) == expected
        file.write_text(f"{alias.removeprefix('--')}: {json.dumps(value)}\n")
        assert given("--config", str(file), *needed) == expected


def test_two_names_of_a_setting_in_one_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("max-batch-size: 3\nmax_num_seqs: 4\n")
    assert "'max-batch-size' is given more than once" in refused("--config", str(file))


def test_what_is_wrong_is_said_under_the_name_that_was_written() -> None:
    assert "--max-num-seqs: must be a whole number from 1 to 1024, not 'x'" in refused("--max-num-seqs", "x")
    assert "-np: must be" in refused("-np", "0")
    assert "--max-batch-size: must be" in refused("--max-batch-size", "0")


def test_what_looks_like_a_flag_is_a_value_if_a_flag_takes_it() -> None:
    seen = given("--chat-template", "--temp", "--temp", "0.5", "--alias", "-np")
    assert (seen["chat_template"], seen["temperature"], seen["served_model_names"]) == ("--temp", 0.5, ("-np",))


def test_the_model_may_stand_without_its_flag() -> None:
    assert given("a/b")["model"] == "a/b"
    assert given("--port", "3", "a/b", "-np", "2") == given("-ma/b", "--port=3", "--max-batch-size", "2")
    assert given("a/b", PARALLM_MODEL="c")["model"] == "a/b"
    assert given("a/b", "-m", "a/b")["model"] == "a/b"
    assert given("--", "-odd")["model"] == "-odd"
    assert "MODEL is 'a', and --model is 'b': give one of the two" in refused("a", "--model", "b")
    assert "MODEL: must not be empty" in refused(" ")


@pytest.mark.parametrize("flag", NO_EQUAL)
def test_a_flag_of_another_program_that_has_no_equal_names_what_comes_nearest(flag: str) -> None:
    said = refused(flag, "1")
    assert f"there is no flag {flag}: " in said
    assert said.count("\n") == 1
    # Whatever is recommended is there.
    own = {each for option in OPTIONS.values() for each in (option.flag, option.opposite)} | {"--chat", "--config"}
    assert set(re.findall(r"--[a-z-]+", NO_EQUAL[flag])) <= own


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("--max-batch", "did you mean --max-batch-size?"),
        ("--ssl-cert", "did you mean --ssl-certfile?"),
        ("--max-num-seq=3", "there is no flag --max-num-seq; did you mean --max-batch-size?"),
        ("--xyzzy", "--help lists those that are"),
        ("-x", "--help lists those that are"),
    ],
)
def test_an_unknown_flag_is_told_which_is_like_it(written: str, said: str) -> None:
    assert said in refused(written)


def test_lists_are_taken_as_vllm_writes_them() -> None:
    assert given("--allowed-origins", '["null", "https://a.example"]')["cors_origins"] == ("null", "https://a.example")
    assert "--allowed-origins: this is no JSON" in refused("--allowed-origins", '["null"')
    assert given("--alias", "one, two", "--alias", "three")["served_model_names"] == ("one", "two", "three")
    assert given("--log-level", "WARNING")["log_level"] == "warning"


def test_a_flag_wins_over_a_variable_that_wins_over_the_file_that_wins_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nmax_queue: 1\nmax-batch-size: 1\n")
    seen = given("--config", str(file), "--port", "3", PARALLM_PORT="2", PARALLM_MAX_QUEUE="2")
    assert (seen["port"], seen["max_queue"], seen["max_batch_size"]) == (3, 2, 1)
    assert seen["prefill_chunk"] == EngineConfig().prefill_chunk
    assert given(PARALLM_CONFIG=str(file))["port"] == 1


def test_a_switch_that_the_file_turns_on_can_be_turned_off(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("trust-remote-code = true\n")
    assert given("--config", str(file))["trust_remote_code"]
    assert not given("--config", str(file), "--no-trust-remote-code")["trust_remote_code"]
    assert not given("--config", str(file), PARALLM_TRUST_REMOTE_CODE="no")["trust_remote_code"]


def test_several_values_come_in_a_list_of_the_file_by_spaces_or_by_commas(tmp_path: Path) -> None:
    file = tmp_path / "settings.yml"
    file.write_text("api-key: [one, two]\nadmin_key: three\ncors-origins: [null, '*']\nallowed-hosts: a.example, B\n")
    file.write_text(file.read_text().replace("null,", '"null",'))
    seen = given("--config", str(file), PARALLM_SERVED_MODEL_NAME="four five")
    assert (seen["api_keys"], seen["admin_keys"]) == (("one", "two"), ("three",))
    assert (seen["cors_origins"], seen["allowed_hosts"]) == (("null", "*"), ("a.example", "b"))
    assert seen["served_model_names"] == ("four", "five")
    assert given("--cors-origins", "")["cors_origins"] == ()


def test_a_variable_that_is_empty_is_not_set() -> None:
    assert given(PARALLM_PORT="", PARALLM_CORS_ORIGINS="", PARALLM_CONFIG="") == given()


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    for name in ("settings.yaml", "settings.toml"):
        (tmp_path / name).write_text("# nothing\n")
        assert given("--config", str(tmp_path / name)) == given()


# A wrong value gets one sentence, which names the flag, the variable or the file that it came from.


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "max_batch: 3", "there is no setting 'max_batch'; did you mean 'max-batch-size'?"),
        ("a.toml", "[engine]\nport = 3", "there is no setting 'engine'"),
        ("a.yaml", "config: other.yaml", "there is no setting 'config'"),
        ("a.yaml", "max-batch-size: 0", "max-batch-size: must be a whole number from 1 to 1024, not 0"),
        ("a.toml", "max_batch_size = 0", "max-batch-size: must be a whole number from 1 to 1024, not 0"),
        ("a.yaml", "max-batch-size: many", "max-batch-size: must be a whole number from 1 to 1024, not 'many'"),
        ("a.yaml", "draft-length: 33", "draft-length: must be a whole number from 0 to 32 or auto, not 33"),
        ("a.yaml", "draft-length: false", "draft-length: must be a whole number from 0 to 32 or auto, not false"),
        ("a.yaml", "port: yes", "port: must be a whole number from 0 to 65535, not true"),
        ("a.yaml", "port:", "port: must be a whole number from 0 to 65535, not nothing"),
        ("a.yaml", "request-timeout: .nan", "request-timeout: must be a number above 0, not nan"),
        ("a.yaml", "use-speculative: 3", "use-speculative: must be true or false, not 3"),
        ("a.yaml", "log-level: loud", "log-level: must be one of debug, info, warning or error, not 'loud'"),
        (
            "a.yaml",
            "draft: model",
            "draft: must be one of mtp, suffix or none, not 'model'; a draft model is --draft-model",
        ),
        ("a.yaml", "model: 5", "model: must be a name, folder, GGUF file or hub id, not 5"),
        ("a.toml", "host = ' '", "host: must not be empty"),
        ("a.yaml", "api-key: 12345", "api-key: must be a text or a list of texts\n"),
        ("a.yaml", "api-key:", "api-key: must be a text or a list of texts\n"),
        ("a.yaml", "api-key: ''", "api-key: a key must not be empty"),
        ("a.yaml", "cors-origins: [a]", "cors-origins: 'a' is no origin"),
        ("a.yaml", "api-key: a\napi-key: b", "'api-key' is given more than once; put several values into one list"),
        ("a.yaml", "max_queue: 1\nmax-queue: 2", "'max-queue' is given more than once"),
        ("a.yaml", "port: [", "line 1: expected the node content"),
        ("a.yaml", "port: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ("a.yaml", "port: \x01", "unacceptable character"),
        ("a.yaml", "8080", "the file must hold settings, such as port: 8080"),
        ("a.toml", "port = x", "Invalid value (at line 1"),
        ("a.ini", "port = 3", "the name of a configuration file must end in .toml, .yaml or .yml"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_by_file_and_key(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    answer = refused("--config", str(file))
    assert answer.startswith(f"parallm-openai: {file}: {said}")
    assert answer.count("\n") == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/none.toml: No such file" in refused("--config", str(tmp_path / "none.toml"))
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("model: Modèle\n".encode("latin-1"))
    assert f"{latin}: the file is not text in UTF-8" in refused("--config", str(latin))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PARALLM_USE_SPECULATIVE", "maybe", "must be true or false, not 'maybe'"),
        ("PARALLM_PORT", "x", "must be a whole number from 0 to 65535, not 'x'"),
        ("PARALLM_REQUEST_TIMEOUT", "0", "must be a number above 0, not '0'"),
        ("PARALLM_MODEL", " ", "must not be empty"),
        ("PARALLM_LOG_LEVEL", "LOUD", "must be one of debug, info, warning or error, not 'LOUD'"),
    ],
)
def test_what_is_wrong_in_a_variable_is_said_by_its_name(variable: str, value: str, said: str) -> None:
    assert refused(**{variable: value}) == f"parallm-openai: {variable}: {said}\n"
    # A flag that is right takes its place.
    option = next(each for each in OPTIONS.values() if each.variable == variable)
    given(*([option.flag] if option.is_switch else [option.flag, sample(option)]), **{variable: value})


def test_a_draft_model_and_another_draft_are_not_both_taken(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("draft-model: small\n")
    assert "give either --draft or --draft-model, not both" in refused("--config", str(file), "--draft", "none")


def test_no_message_is_pydantics_own() -> None:
    for option in OPTIONS.values():
        if option.kind.startswith("a ") and "number" in option.kind:
            assert "Input should" not in refused(option.flag, "abc")
            assert option.kind in refused(option.flag, "abc")


# One place


class Changed(Settings):
    has_variables: ClassVar[bool] = False

    paws: Annotated[int, Flag("Animals")] = Field(41, ge=2, le=99, description="How many [paws] there are.")


def test_name_default_range_and_help_come_from_the_model() -> None:
    seen: list[int] = []

    @with_settings()
    def count(changed: Changed) -> None:
        """Count."""
        seen.append(changed.paws)

    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command()(count)
    runner = CliRunner()
    told = " ".join(runner.invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    for part in ("Animals", "--paws", "<2..99>", "How many [paws] there are.", "[default: 41]"):
        assert part in told
    assert runner.invoke(app, []).exit_code == 0
    assert runner.invoke(app, ["--paws", "4"]).exit_code == 0
    assert seen == [41, 4]


@pytest.mark.parametrize("key", OPTIONS)
def test_the_help_shows_what_a_flag_takes_and_its_default(key: str) -> None:
    option = OPTIONS[key]
    _, result = invoke("--help", COLUMNS="500")
    [line] = [line for line in result.stdout.splitlines() if f" {option.flag} " in line]
    assert option.help in line
    if not option.is_switch:
        assert f"<{option.brief}>" in line or option.kind in line
    if option.default_text is not None and not option.is_switch:
        assert f"[default: {option.default_text}]" in line


def test_the_page_in_the_repository_is_the_one_that_the_models_make() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run: python -m parallm_openai.cli.settings_page > docs/settings.md"


def test_the_names_of_tool_call_formats_are_those_of_the_families() -> None:
    assert set(typing.get_args(ToolCallParser)) == {"auto", *FORMATS}


def test_keys_are_not_in_what_is_printed() -> None:
    assert "hidden" not in repr(ServerSettings(api_keys=("hidden",), admin_keys=("hidden",)))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", "serve", "chat", "generate", "doctor", "bench", "models", "models show"])
def test_no_help_imports_mlx_or_the_server(command: str) -> None:
    code = (
        "import contextlib, sys\n"
        "from parallm_openai import cli\n"
        f"sys.argv[1:] = {[*command.split(), '--help']!r}\n"
        "with contextlib.suppress(SystemExit):\n"
        "    cli.main()\n"
        "assert not {'mlx', 'mlx_lm', 'numpy', 'transformers', 'fastapi', 'matplotlib'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, cwd=ROOT, stdout=subprocess.DEVNULL)
