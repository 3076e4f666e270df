"""`parallm-openai serve | bench | generate | doctor`. Heavy imports wait for the command that needs them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from parallm_openai import __version__, logs
from parallm_openai.bench.command import bench
from parallm_openai.config import EngineConfig

if TYPE_CHECKING:
    from parallm_openai.api.settings import ServerSettings
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.models.loading import LoadedModel

log = logging.getLogger("parallm_openai")
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="An OpenAI-compatible server for MLX: speculative decoding inside a continuous batch.",
)

DEFAULTS = EngineConfig()


def _fail(message: str, status: int = 1) -> NoReturn:
    typer.echo(f"parallm-openai: {message}", err=True)
    raise typer.Exit(status)


def _not_empty(option: typer.CallbackParam, value: str | None) -> str | None:
    if value is not None and not value.strip():
        _fail(f"{option.opts[0]}: must not be empty", 2)
    return value


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="PARALLM_MODEL",
        help="Folder or hub id; the bundled demo model if not given.",
        callback=_not_empty,
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter-path", envvar="PARALLM_ADAPTER_PATH", help="Folder of a LoRA adapter.", callback=_not_empty
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", envvar="PARALLM_TRUST_REMOTE_CODE", help="Run code that a model brings along."),
]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def serve(
    model: Model = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            envvar="PARALLM_DRAFT_MODEL", help="Smaller model of the same tokenizer that drafts.", callback=_not_empty
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(envvar="PARALLM_DRAFT", help="How to draft without a draft model: ngram, or none."),
    ] = None,
    use_speculative: Annotated[
        bool, typer.Option(envvar="PARALLM_USE_SPECULATIVE", help="Speculate where something can draft.")
    ] = DEFAULTS.use_speculative_decoding,
    speculative_acceptance: Annotated[
        str, typer.Option(envvar="PARALLM_SPECULATIVE_ACCEPTANCE", help="coupled or rejection.")
    ] = DEFAULTS.speculative_acceptance,
    max_draft_tokens: Annotated[
        int, typer.Option(envvar="PARALLM_MAX_DRAFT_TOKENS", help="Tokens drafted per row and step at most.")
    ] = DEFAULTS.max_draft_tokens,
    draft_length: Annotated[
        str, typer.Option(envvar="PARALLM_DRAFT_LENGTH", help="auto, or a fixed number of drafted tokens.")
    ] = str(DEFAULTS.draft_length),
    max_batch_size: Annotated[
        int, typer.Option(envvar="PARALLM_MAX_BATCH_SIZE", help="Requests decoded together at most.")
    ] = DEFAULTS.max_batch_size,
    batch_timeout_ms: Annotated[
        float,
        typer.Option(envvar="PARALLM_BATCH_TIMEOUT_MS", help="How long an idle engine waits for more company."),
    ] = DEFAULTS.batch_timeout_ms,
    max_batch_tokens: Annotated[
        int, typer.Option(envvar="PARALLM_MAX_BATCH_TOKENS", help="KV cache budget: rows times longest row.")
    ] = DEFAULTS.max_batch_tokens,
    prefix_cache_tokens: Annotated[
        int,
        typer.Option(
            envvar="PARALLM_PREFIX_CACHE_TOKENS", help="Tokens of past sequences kept for requests that begin alike."
        ),
    ] = DEFAULTS.prefix_cache_tokens,
    prefill_chunk: Annotated[
        int, typer.Option(envvar="PARALLM_PREFILL_CHUNK", help="Prompt tokens read between two decode steps.")
    ] = DEFAULTS.prefill_chunk,
    max_queue: Annotated[
        int, typer.Option(envvar="PARALLM_MAX_QUEUE", help="Requests that may wait; one more gets a 429.")
    ] = DEFAULTS.max_queue,
    host: Annotated[
        str, typer.Option(envvar="PARALLM_HOST", help="Address to listen on.", callback=_not_empty)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PARALLM_PORT", help="Port to listen on.", min=0, max=65535)] = 8080,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(envvar="PARALLM_SERVED_MODEL_NAME", help="Further name of the model; repeatable."),
    ] = None,
    adapter_path: Adapter = None,
    trust_remote_code: Trust = False,
    tool_call_parser: Annotated[
        str,
        typer.Option(
            envvar="PARALLM_TOOL_CALL_PARSER", help="Format of tool calls; auto: as the chat template has it."
        ),
    ] = "auto",
    stored_responses: Annotated[
        int, typer.Option(envvar="PARALLM_STORED_RESPONSES", help="Answers of /v1/responses kept to go on from.")
    ] = 1000,
    stored_responses_bytes: Annotated[
        int, typer.Option(envvar="PARALLM_STORED_RESPONSES_BYTES", help="Memory that those answers may take.")
    ] = 64 * 2**20,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="PARALLM_API_KEY", help="Accepted API key; repeatable.")
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PARALLM_ADMIN_KEY", help="API key that may also change the server's configuration; repeatable."
        ),
    ] = None,
    cors_origins: Annotated[
        str,
        typer.Option(
            envvar="PARALLM_CORS_ORIGINS",
            help="Origins whose pages may call the server, by commas: loopback (pages of this machine), "
            "https://page.example, https://*.page.example, app://name, null or *; empty for none.",
        ),
    ] = "loopback",
    allowed_hosts: Annotated[
        str,
        typer.Option(
            envvar="PARALLM_ALLOWED_HOSTS",
            help="Accepted Host names besides localhost, by commas. Default: only loopback names on a loopback "
            "address, any name otherwise.",
        ),
    ] = "",
    request_timeout: Annotated[
        float, typer.Option(envvar="PARALLM_REQUEST_TIMEOUT", help="Seconds that one request may take.")
    ] = 600.0,
    graceful_timeout: Annotated[
        float,
        typer.Option(envvar="PARALLM_GRACEFUL_TIMEOUT", help="Seconds that requests may go on after a stop signal."),
    ] = 30.0,
    max_body_size: Annotated[
        int, typer.Option(envvar="PARALLM_MAX_BODY_SIZE", help="Bytes of a request's body at most.")
    ] = 16 * 2**20,
    log_level: Annotated[str, typer.Option(envvar="PARALLM_LOG_LEVEL", help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve a model over HTTP."""
    from parallm_openai.api.settings import ServerSettings
    from parallm_openai.listener import ListenError, exposed, listen

    _set_up_logging(log_level)
    try:
        config = EngineConfig(
            max_batch_size=max_batch_size,
            batch_timeout_ms=batch_timeout_ms,
            max_batch_tokens=max_batch_tokens,
            prefix_cache_tokens=prefix_cache_tokens,
            prefill_chunk=prefill_chunk,
            max_queue=max_queue,
            use_speculative_decoding=use_speculative,
            max_draft_tokens=max_draft_tokens,
            draft_length=draft_length,
            speculative_acceptance=speculative_acceptance,
        )
        settings = ServerSettings(
            served_model_names=tuple(served_model_name or ()),
            api_keys=_keys("--api-key", api_key),
            admin_keys=_keys("--admin-key", admin_key),
            cors_origins=_by_commas(cors_origins),
            allowed_hosts=_by_commas(allowed_hosts),
            request_timeout=request_timeout,
            graceful_timeout=graceful_timeout,
            max_body_size=max_body_size,
            tool_call_parser=tool_call_parser,
            stored_responses=stored_responses,
            stored_responses_bytes=stored_responses_bytes,
        )
    except ValidationError as error:
        _fail(_explanation(error), 2)
    # The port is taken before the model is loaded, so that a busy one is known at once.
    try:
        listener = listen(host, port)
    except ListenError as error:
        _fail(str(error))
    settings = exposed(listener, settings)
    target = _load(model, adapter_path=adapter_path, trust_remote_code=trust_remote_code)
    drafter = _drafter(model, draft_model, draft, trust_remote_code)
    _run(target, drafter, config, settings, listener, log_level)


def _keys(flag: str, given: list[str] | None) -> tuple[str, ...]:
    """The keys of a repeatable flag, or of its variable by white space; one that is there but empty is a mistake."""
    variable = "PARALLM_" + flag.removeprefix("--").replace("-", "_").upper()
    if not given and variable in os.environ:
        _fail(
            f"{variable} is set but holds no key: the server would be open to everybody; unset it if that is meant", 2
        )
    return tuple(given or ())


def _by_commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _explanation(error: ValidationError) -> str:
    """The first of pydantic's errors, by the flag that it came from."""
    first = error.errors()[0]
    field = str(first["loc"][0])
    flag = {"served_model_names": "served_model_name", "api_keys": "api_key", "admin_keys": "admin_key"}.get(
        field, field
    )
    said = f"--{flag.replace('_', '-')}: {first['msg'].removeprefix('Value error, ')}"
    # Our own messages repeat what was given, unless it is a secret.
    return said if first["type"] == "value_error" else f"{said}, not {first['input']!r}"


def _load(model: str | None, **options: Any) -> LoadedModel:
    """The model of that name, or the bundled one; ends the command with a sentence where it cannot be loaded."""
    from parallm_openai import demo
    from parallm_openai.models.loading import load

    with _explained():
        if model is None:
            return load(demo.TARGET_PATH, name=demo.MODEL_ID, **options)
        return load(model, **options)


def _drafter(model: str | None, draft_model: str | None, draft: str | None, trust_remote_code: bool) -> DraftSource:
    """What drafts: the model asked for, or the bundled draft with the bundled model, unless told otherwise."""
    if draft not in (None, "ngram", "none"):
        _fail(f"--draft: {draft!r} is neither ngram nor none; a draft model is --draft-model", 2)
    if draft_model is not None and draft is not None:
        _fail("--draft and --draft-model exclude each other", 2)
    if draft == "ngram":
        return "ngram"
    if draft_model is not None:
        return _load(draft_model, trust_remote_code=trust_remote_code)
    if model is None and draft is None:
        from parallm_openai import demo

        return _load(str(demo.DRAFT_PATH))
    return None


def _run(
    target: LoadedModel,
    draft: DraftSource,
    config: EngineConfig,
    settings: ServerSettings,
    listener: socket.socket,
    log_level: str,
) -> None:
    from parallm_openai.api.app import create_app
    from parallm_openai.api.serving import FORCED, HttpServer, leave
    from parallm_openai.doctor import one_line
    from parallm_openai.engine.worker import AsyncEngine
    from parallm_openai.listener import allow_many_connections, announce

    with _explained():
        engine = AsyncEngine(target, config, draft)
    allow_many_connections()
    log.info("%s", one_line(target))
    speculation = engine.stats()["speculative_stats"]
    log.info("drafter: %s, speculation %s", speculation["drafter"], "on" if speculation["enabled"] else "off")

    class Announcing(HttpServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                announce(listener, target.name, needs_key=bool(settings.api_keys))

    server = Announcing(create_app(engine, target, settings), log_level=log_level, access_log=log_level == "debug")

    def stop_serving() -> None:
        server.should_exit = True

    engine.on_failure = stop_serving
    # uvicorn raises the interrupt again after an orderly end.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.force_exit:
        leave(FORCED)
    if not server.started:
        _fail("the server could not be started; the log above says why")
    if engine.failed:
        typer.echo("parallm-openai: the engine has failed; the log above says why", err=True)
        leave(1)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        leave(0)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """End the command with one sentence where a model is not to be loaded, batched or given these prompts."""
    from parallm_openai.engine.capabilities import UnsupportedModelError
    from parallm_openai.models.loading import ModelLoadError
    from parallm_openai.text.generation import GenerationError
    from parallm_openai.text.templates import TemplateError

    try:
        yield
    except (ModelLoadError, UnsupportedModelError, GenerationError, TemplateError) as error:
        _fail(str(error))


def _set_up_logging(level: str) -> None:
    if level not in ("debug", "info", "warning", "error"):
        _fail(f"--log-level: {level!r} is none of debug, info, warning, error", 2)
    logs.set_up(level)


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to continue, as they are.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A prompt a line, or JSON lines with a 'prompt'.")] = None,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate per prompt at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
    chat: Annotated[bool, typer.Option(help="Put each prompt through the chat template.")] = False,
    jsonl: Annotated[bool, typer.Option(help="Print a JSON line per prompt instead of text.")] = False,
    adapter_path: Adapter = None,
    trust_remote_code: Trust = False,
) -> None:
    """Generate for a batch of prompts in this process, without a server."""
    wanted = [*(prompts or []), *(_read_prompts(prompts_file) if prompts_file else [])]
    if not wanted:
        _fail("give a prompt, or --prompts-file", 2)
    from parallm_openai.llm import LLM, SamplingParams

    loaded = _load(model, adapter_path=adapter_path, trust_remote_code=trust_remote_code)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with _explained(), LLM(loaded, draft_model=_drafter(model, None, None, False)) as llm:
        if chat:
            wanted = [llm.tokenizer.render([{"role": "user", "content": prompt}]) for prompt in wanted]
        try:
            results = llm.generate(wanted, params, use_tqdm=len(wanted) > 1 and sys.stderr.isatty())
        except ValueError as error:
            _fail(str(error), 2)
    for result in results:
        typer.echo(json.dumps(result.as_dict(), ensure_ascii=False) if jsonl else result.text)


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        if file.suffix != ".jsonl":
            return lines
        return [str(json.loads(line)["prompt"]) for line in lines]
    except OSError as error:
        _fail(f"{file}: {error.strerror}", 2)
    except (ValueError, KeyError, TypeError) as error:
        _fail(f"{file} is not JSON lines with a 'prompt' each ({type(error).__name__}: {error})", 2)


@app.command()
def doctor(model: Model = None, trust_remote_code: Trust = False) -> None:
    """Say what this machine and this model can do: BLAS, device, types, batching, speculation."""
    from rich.console import Console
    from rich.table import Table

    from parallm_openai.doctor import describe_machine, describe_model

    table = Table(show_header=False)
    for name, value in describe_machine():
        table.add_row(name, value)
    table.add_section()
    for name, value in describe_model(_load(model, trust_remote_code=trust_remote_code)):
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)


app.command()(bench)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
