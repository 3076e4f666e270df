"""`parallm-openai generate`: a batch of prompts in this process."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from pydantic import Field

from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import BAD_USAGE, explained, fail
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.cli.progress import stage
from parallm_openai.cli.sampling import PromptSampling
from parallm_openai.cpu import prepare
from parallm_openai.models.named import NAMED
from parallm_openai.setting_types import Flag, NonEmpty, Repeatable, Settings
from parallm_openai.settings import DraftSettings, ModelSettings, SpeculationConfig

if TYPE_CHECKING:
    from parallm_openai.llm import LLM

STANDARD_INPUT = "-"


class PromptSettings(Settings):
    """Where further prompts are, and what to do with each."""

    has_variables: ClassVar[bool] = False

    more_prompts: Annotated[
        Repeatable, Flag("Prompts", name="prompt", short="-p", kind="a text, or -", repeatable=True)
    ] = Field((), description="A prompt, as without the flag; repeatable.")
    prompts_file: Annotated[Path | None, Flag("Prompts", kind="a file")] = Field(
        None, description="More prompts: one per line, or JSON lines with a 'prompt' each if the name ends in .jsonl."
    )
    chat: Annotated[bool, Flag("Prompts")] = Field(False, description="Put each prompt through the chat template.")
    system: Annotated[NonEmpty | None, Flag("Prompts", aliases=("--system-prompt", "-sys"), kind="a text")] = Field(
        None, description="A system message before each prompt, which then goes through the chat template."
    )
    jsonl: Annotated[bool, Flag("Prompts")] = Field(False, description="Print a JSON line per prompt instead of text.")
    stats: Annotated[bool, Flag("Prompts", aliases=("--verbose",))] = Field(
        False, description="Say on standard error what answers cost: tokens, time, accepted drafts."
    )

    @property
    def as_chat(self) -> bool:
        return self.chat or self.system is not None

    def conversation(self, prompt: str) -> list[dict[str, Any]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]


@with_settings()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; - reads one from standard input.")] = None,
    *,
    source: PromptSettings,
    sampling: PromptSampling,
    model: ModelSettings,
    drafting: DraftSettings,
    speculation: SpeculationConfig,
) -> None:
    """Continue prompts in this process, without a server, as they are or as chats.

    One answer streams; several are computed together and printed in order.
    """
    wanted = _wanted(prompts or [], source)
    prepare()
    from parallm_openai.llm import LLM

    loaded = load_model(model)
    draft = load_draft(model, drafting)
    with explained():
        with stage("warming up"):
            llm = LLM(loaded, draft_model=draft, **speculation.model_dump())
        with llm:
            try:
                if len(wanted) == 1 and not source.jsonl:
                    _stream(llm, wanted[0], source, sampling)
                else:
                    _print_batch(llm, wanted, source, sampling)
            except ValueError as error:
                fail(str(error), BAD_USAGE)


def _wanted(prompts: list[str], source: PromptSettings) -> list[str]:
    """All prompts, in order. Ends the command if there is none."""
    if len(prompts) > 1 and not source.more_prompts and _is_model(prompts[0]):
        fail(
            f"{prompts[0]} is a model: give it as -m {prompts[0]}, because all words are prompts "
            f"(-p {prompts[0]} is that prompt)",
            BAD_USAGE,
        )
    given = [*prompts, *source.more_prompts]
    if not given and source.prompts_file is None and not sys.stdin.isatty():
        # What is piped in is the prompt, if there is no other.
        piped = _standard_input()
        given = [piped] if piped else []
    elif given.count(STANDARD_INPUT) > 1:
        fail("standard input (-) can be only one of the prompts", BAD_USAGE)
    wanted = [_standard_input() if prompt == STANDARD_INPUT else prompt for prompt in given]
    wanted += _read_prompts(source.prompts_file) if source.prompts_file else []
    if not wanted:
        fail("give a prompt, or --prompts-file", BAD_USAGE)
    return wanted


def _is_model(word: str) -> bool:
    """Whether a word can only be meant as a model: a name, a hub id, or the path of a model."""
    if word in NAMED or re.fullmatch(r"[\w.-]+/[\w.-]+", word):
        return True
    return (Path(word).expanduser() / "config.json").is_file() or (word.endswith(".gguf") and Path(word).is_file())


def _standard_input() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        fail("standard input is not text in UTF-8", BAD_USAGE)


def _stream(llm: LLM, prompt: str, source: PromptSettings, sampling: PromptSampling) -> None:
    from parallm_openai.cli.answers import Cost, Screen, note_counts, stream_pieces, timed

    stream = llm.stream(
        source.conversation(prompt) if source.as_chat else prompt, sampling.params(), stop=sampling.stop
    )
    screen, cost = Screen(sys.stdout, sys.stderr), Cost()
    for piece in timed(stream_pieces(stream), cost):
        screen.show(piece)
    screen.end()
    note_counts(stream.counts, cost)
    if source.stats:
        typer.echo(f"({cost})", err=True)


def _print_batch(llm: LLM, prompts: list[str], source: PromptSettings, sampling: PromptSampling) -> None:
    from parallm_openai.cli.answers import Cost, note_counts

    options: dict[str, Any] = {"stop": sampling.stop, "use_tqdm": sys.stderr.isatty()}
    if source.as_chat:
        chats = llm.chat([source.conversation(prompt) for prompt in prompts], sampling.params(), **options)
        made = [
            {"prompt": prompt, "text": chat.content, **chat.as_dict()}
            for prompt, chat in zip(prompts, chats, strict=True)
        ]
        for each in made:
            del each["content"], each["tool_calls"]
    else:
        made = [result.as_dict() for result in llm.generate(prompts, sampling.params(), **options)]
    for each in made:
        typer.echo(json.dumps(each, ensure_ascii=False) if source.jsonl else each["text"])
        if source.stats:
            cost = Cost()
            note_counts(each, cost)
            typer.echo(f"({cost})", err=True)


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        fail(f"{file}: {error.strerror}", BAD_USAGE)
    except ValueError:
        fail(f"{file} is not in UTF-8", BAD_USAGE)
    if file.suffix != ".jsonl":
        return [line for line in lines if line.strip()]
    return [_prompt_of(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]


def _prompt_of(line: str, file: Path, number: int) -> str:
    try:
        return str(json.loads(line)["prompt"])
    except (ValueError, KeyError, TypeError):
        fail(f"{file} is not JSON lines with a 'prompt' each: line {number} has none", BAD_USAGE)
