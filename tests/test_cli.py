"""The command line: flags, their environment variables, what goes wrong, and a real server's start."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main
from support import families
from support.processes import COMMAND, ROOT, Served
from typer.testing import CliRunner

from parallm_openai import __version__, cli, demo
from parallm_openai.cli.listener import exposed
from parallm_openai.settings import EngineConfig, ServerSettings


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), env=environment)


def serve_flags() -> dict[str, Any]:
    """The options of `serve` by their first flag."""
    command: Any = typer.main.get_command(cli.app)
    params = command.commands["serve"].params
    return {option.opts[0]: option for option in params if option.param_type_name == "option"}


# Help and flags


def test_help_does_not_wait_for_mlx() -> None:
    heavy = {"mlx", "mlx_lm", "fastapi", "numpy", "httpx", "yaml", "huggingface_hub", "rich.table"}
    code = f"import sys; from parallm_openai import cli; assert not {heavy} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, cwd=ROOT)
    assert "--max-batch-size" in run("serve", "--help").stdout


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout.strip() == __version__


@pytest.mark.parametrize("flag", serve_flags())
def test_every_flag_of_serve_has_an_environment_variable_of_its_name(flag: str) -> None:
    assert serve_flags()[flag].envvar == "PARALLM_" + flag.removeprefix("--").replace("-", "_").upper()


@pytest.mark.parametrize("flag", serve_flags())
def test_every_flag_of_serve_is_in_the_docs(flag: str) -> None:
    assert f"`{flag}`" in (ROOT / "docs" / "settings.md").read_text()


def test_every_setting_of_the_engine_is_a_flag_with_the_same_default() -> None:
    flags = {flag.removeprefix("--").replace("-", "_"): option for flag, option in serve_flags().items()}
    flags["use_speculative_decoding"] = flags["use_speculative"]
    for name, default in EngineConfig().model_dump().items():
        assert type(default)(flags[name].default) == default, name


# What goes wrong is one sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--max-batch-size", "0"], 2, "--max-batch-size: must be a whole number from 1 to 1024, not '0'"),
        (["--batch-timeout-ms", "-1"], 2, "--batch-timeout-ms: "),
        (["--draft-length", "many"], 2, "--draft-length: "),
        (["--speculative-acceptance", "all"], 2, "--speculative-acceptance: "),
        (["--request-timeout", "0"], 2, "--request-timeout: "),
        (["--log-level", "loud"], 2, "--log-level: must be one of debug, info, warning or error, not 'loud'"),
        (["--max-draft-tokens", "abc"], 2, "--max-draft-tokens: must be a whole number from 0 to 32, not 'abc'"),
        (["--port", "65536"], 2, "--port: must be a whole number from 0 to 65535"),
        (["--request-timeout", "nan"], 2, "--request-timeout: "),
        (["--graceful-timeout", "inf"], 2, "--graceful-timeout: "),
        (["--graceful-timeout", "-1"], 2, "--graceful-timeout: "),
        (["--batch-timeout-ms", "nan"], 2, "--batch-timeout-ms: "),
        (["--api-key", ""], 2, "--api-key: a key must not be empty"),
        (["--api-key", "good", "--api-key", " "], 2, "--api-key: a key must not be empty"),
        (["--admin-key", "schlüssel"], 2, "--admin-key: a key must not be empty, and only visible ASCII"),
        (["--served-model-name", ""], 2, "--served-model-name: a model's name must not be empty"),
        (["--cors-origins", "localhost:3000"], 2, "--cors-origins: 'localhost:3000' is no origin such as http://"),
        (["--cors-origins", "https://page.example/"], 2, "--cors-origins: 'https://page.example/' is no origin"),
        (["--allowed-hosts", "http://llm.example"], 2, "--allowed-hosts: 'http://llm.example' is no host name"),
        (["--tool-call-parser", "robot"], 2, "--tool-call-parser: must be one of auto, command_r, "),
        (["--model", ""], 2, "--model: must not be empty"),
        (["--draft-model", " "], 2, "--draft-model: must not be empty"),
        (["--adapter-path", ""], 2, "--adapter-path: must not be empty"),
        (["--host", ""], 2, "--host: must not be empty"),
        (["--draft", "model"], 2, "a draft model is --draft-model"),
        (["--draft-revision", "main"], 2, "--draft-revision: needs --draft-model"),
        (["--revision", "main"], 2, "--revision: demo does not come from the hub"),
        (["--context-length", "10000"], 2, "--context-length: parallm-demo was made for 8192 tokens, not 10000"),
        (["--root-path", "llm"], 2, "--root-path: 'llm' is no path such as /llm"),
        (["--api-prefix", "/v1"], 2, "--api-prefix: '/v1' is where the server has routes of its own"),
        (["--ssl-keyfile", "key.pem"], 2, "--ssl-keyfile: needs --ssl-certfile"),
        (["--ssl-cert-reqs", "3"], 2, "--ssl-cert-reqs: must be a whole number from 0 to 2, not '3'"),
        (["--ssl-certfile", "/no/such.pem"], 1, "--ssl-certfile: /no/such.pem: No such file or directory"),
        (["--uds", "/no/such/folder/socket"], 1, "--uds: cannot listen on /no/such/folder/socket: No such file"),
        (["--uds", "/tmp"], 1, "--uds: /tmp is a folder, and no socket"),
        (["--uds", "/tmp/" + "x" * 200], 1, "AF_UNIX path too long"),
        (["--draft", "suffix", "--draft-model", "x"], 2, "give either --draft or --draft-model, not both"),
        (["--model", "/no/such/model"], 1, "there is no model folder or file /no/such/model"),
        (["--draft-model", "/no/such/draft"], 1, "there is no model folder or file /no/such/draft"),
        (["--host", "no-such-host.invalid"], 1, "cannot listen on no-such-host.invalid"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_a_sentence(arguments: list[str], status: int, said: str) -> None:
    answer = run("serve", "--port", "0", *arguments)
    assert answer.exit_code == status
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1, answer.stderr


@pytest.mark.parametrize("variable", ["PARALLM_API_KEY", "PARALLM_ADMIN_KEY"])
@pytest.mark.parametrize("value", ["", "  "])
def test_a_variable_that_is_set_but_holds_no_key_does_not_open_the_server(variable: str, value: str) -> None:
    answer = run("serve", "--port", "0", **{variable: value})
    assert answer.exit_code == 2
    assert f"{variable} is set but holds no key" in answer.stderr


def test_what_is_wrong_with_a_key_is_said_without_the_key() -> None:
    answer = run("serve", "--port", "0", "--api-key", "se cret")
    assert answer.exit_code == 2
    assert "cret" not in answer.stderr


def test_an_unknown_flag_is_refused() -> None:
    answer = run("serve", "--max-batch", "3")
    assert answer.exit_code == 2
    assert "--max-batch" in answer.stderr


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run("serve", "--port", str(port))
    assert answer.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in answer.stderr


def test_a_family_that_cannot_be_batched_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = families.write("gpt_bigcode", tmp_path / "model")
    answer = run("serve", "--port", "0", "--model", str(folder), "--log-level", "error")
    assert answer.exit_code == 1
    assert "cannot be served in a batch" in answer.stderr


def test_a_draft_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = families.write("llama", tmp_path / "model")
    answer = run("serve", "--port", "0", "--draft-model", str(folder), "--log-level", "error")
    assert answer.exit_code == 1
    assert "the draft's tokenizer is not the target's" in answer.stderr


# A real server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Set up by the environment and by a file, but for a port of its own."""
    file = tmp_path / "settings.toml"
    file.write_text("max-batch-size = 5\nmax-queue = 7\n")
    server = Served(
        "--port",
        "0",
        PARALLM_CONFIG=str(file),
        PARALLM_API_KEY="one two",
        PARALLM_ADMIN_KEY="root",
        PARALLM_MAX_BATCH_SIZE="3",
        PARALLM_SERVED_MODEL_NAME="alias",
    )
    yield server
    server.process.kill()


def test_the_bundled_model_is_served_as_flags_and_environment_say(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=240) as client:
        assert client.get("/v1/models").status_code == 401
        client.headers["Authorization"] = "Bearer two"
        names = {model["id"] for model in client.get("/v1/models").json()["data"]}
        assert {served.model, "alias"} == names
        assert client.post("/v1/configure").status_code == 403
        changed = client.post("/v1/configure", headers={"Authorization": "Bearer root"})
        assert (changed.json()["max_batch_size"], changed.json()["max_queue"]) == (3, 7)
        body = {"model": "alias", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] <= 3
    assert f"curl {served.url}/v1/chat/completions" in served.output
    assert "Authorization: Bearer" in served.output
    assert re.search(r"drafts +by draft, or from the text so far .*, up to 7 tokens a step", served.output)
    assert f"parallm-openai chat --url {served.url} --api-key YOUR_KEY" in served.output
    assert "Traceback" not in served.output


def test_a_listener_that_others_reach_without_a_key_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    def said(host: str, **settings: Any) -> tuple[str, tuple[str, ...]]:
        with socket.socket() as listener:
            listener.bind((host, 0))
            hosts = exposed(listener, ServerSettings(**settings)).allowed_hosts
        return capsys.readouterr().err, hosts

    assert said("127.0.0.1") == ("", ())
    assert said("0.0.0.0", api_keys=("key",)) == ("", ("*",))
    assert said("0.0.0.0", api_keys=("key",), allowed_hosts=("llm.example",)) == ("", ("llm.example",))
    assert "WARNING" in said("0.0.0.0")[0]
    assert "WARNING" in said("0.0.0.0", admin_keys=("root",))[0]


@pytest.mark.server
def test_a_model_of_ones_own_is_served_by_its_folders_name(tmp_path: Path) -> None:
    folder = families.write("lfm2", tmp_path / "own-model")
    server = Served("--port", "0", "--model", str(folder))
    try:
        body = {"model": "own-model", "prompt": "abc", "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=240)
        assert answer.status_code == 200, answer.text
        assert "ragged batching (keys, values and recurrent states" in server.output
    finally:
        server.process.kill()


# Offline generation and the doctor


@pytest.mark.slow
def test_generate_continues_prompts_from_arguments_and_files(tmp_path: Path) -> None:
    texts, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    texts.write_text("Once upon a time\n\nThe capital of France\n")
    lines.write_text('{"prompt": "One\\ntwo"}\n')
    answer = run("generate", "Hello", "--prompts-file", str(texts), "--max-tokens", "4", "--jsonl", "--seed", "1")
    assert answer.exit_code == 0, answer.output
    results = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [result["prompt"] for result in results] == ["Hello", "Once upon a time", "The capital of France"]
    assert all(len(result["token_ids"]) <= 4 for result in results)
    assert sum(len(result["token_ids"]) for result in results) > 4
    answer = run("generate", "--prompts-file", str(lines), "--max-tokens", "4", "--jsonl")
    assert json.loads(answer.stdout)["prompt"] == "One\ntwo"


@pytest.mark.slow
def test_generate_exits_cleanly_as_a_process() -> None:
    answer = subprocess.run(
        [*COMMAND, "generate", "--chat", "Hello", "--max-tokens", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "give a prompt, or --prompts-file"),
        ([""], 2, "must not be empty"),
        (["x" * 40_000], 2, "maximum context length"),
        (["--prompts-file", "/no/such/file"], 2, "/no/such/file"),
        (["--model", "/no/such/model", "x"], 1, "there is no model folder"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(arguments: list[str], status: int, said: str) -> None:
    answer = run("generate", *arguments)
    assert answer.exit_code == status
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("line", ['{"text": "no prompt"}', '"a text"', '{"prompt": '])
def test_a_prompts_file_that_is_not_json_lines_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('\n{"prompt": "Hello"}\n' + line + "\n")
    answer = run("generate", "--prompts-file", str(file))
    assert answer.exit_code == 2
    assert "is not JSON lines with a 'prompt' each: line 3 has none" in answer.stderr


@pytest.mark.slow
def test_the_doctor_says_what_machine_and_model_can_do() -> None:
    said = run("doctor").stdout
    for name in (__version__, "BLAS", "GFLOP/s", "memory", "llama", "ragged", "speculation"):
        assert name in said


def doctor(*arguments: str) -> str:
    """What the doctor says, without the frame and its line breaks."""
    result = run("doctor", *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.slow
def test_the_doctor_tries_a_draft_model() -> None:
    said = doctor("demo", "--draft-model", str(demo.DRAFT_PATH))
    assert "tokenizers the same" in said
    assert re.search(r"memory 13.9 MB and 2.53 MB of weights, [\d.]+ kB and [\d.]+ kB a token in caches", said)
    assert re.search(r"accepted drafts [1-9]\d?% of [1-9]\d+ tokens, drafted 4 at a time \(a fact: ", said)
    assert re.search(r"accepted drafts \d+% of \d+ tokens", doctor("demo", "--draft", "suffix"))


@pytest.mark.slow
def test_the_doctor_says_why_a_model_cannot_draft(tmp_path: Path) -> None:
    other = families.write("llama", tmp_path / "other")
    said = doctor("demo", "--draft-model", str(other))
    assert "tokenizers not the same: " in said
    assert "drafts none: a draft model must have the target's tokenizer" in said
    recurrent = families.write("recurrent_gemma", tmp_path / "recurrent")
    assert "recurrent cannot speculate (served by mlx-lm's batch caches" in doctor(str(recurrent), "--draft", "suffix")
    assert "drafts none: there is nothing to draft with" in doctor("demo", "--draft", "none")


@pytest.mark.slow
def test_the_doctor_says_that_a_family_cannot_be_served(tmp_path: Path) -> None:
    folder = families.write("llama4", tmp_path / "model")
    said = run("doctor", "--model", str(folder)).stdout
    assert "cannot be served" in " ".join(said.replace("│", " ").split())
