"""`parallm-openai generate`: a batch of prompts in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from pydantic import Field

from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import BAD_USAGE, explained, fail
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.cpu import prepare
from parallm_openai.settings import Flag, ModelSettings, Settings


class PromptSettings(Settings):
    """Where further prompts are, and what to do with each."""

    has_variables: ClassVar[bool] = False

    prompts_file: Annotated[Path | None, Flag("Prompts", kind="a file")] = Field(
        None, description="More prompts: one per line, or JSON lines with a 'prompt' each if the name ends in .jsonl."
    )
    chat: Annotated[bool, Flag("Prompts")] = Field(False, description="Put each prompt through the chat template.")
    jsonl: Annotated[bool, Flag("Prompts")] = Field(False, description="Print a JSON line per prompt instead of text.")


class SamplingSettings(Settings):
    """How to sample. The fields are parameters of `SamplingParams`, whose default holds for one that is None."""

    has_variables: ClassVar[bool] = False

    max_tokens: Annotated[int, Flag("Sampling")] = Field(
        128, ge=1, description="The most tokens to generate per prompt."
    )
    temperature: Annotated[float, Flag("Sampling")] = Field(
        0.0, ge=0, le=2, description="Randomness; 0 always takes the most likely token."
    )
    top_p: Annotated[float | None, Flag("Sampling")] = Field(
        None,
        ge=0,
        le=1,
        description="Sample among the likeliest tokens that together are this probable; among all if not given.",
    )
    seed: Annotated[int | None, Flag("Sampling")] = Field(
        None, description="The same seed gives the same tokens; without one, every run differs."
    )


@with_settings()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to continue, as they are.")] = None,
    *,
    source: PromptSettings,
    sampling: SamplingSettings,
    model: ModelSettings,
) -> None:
    """Generate for a batch of prompts in this process, without a server."""
    wanted = [*(prompts or []), *(_read_prompts(source.prompts_file) if source.prompts_file else [])]
    if not wanted:
        fail("give a prompt, or --prompts-file", BAD_USAGE)
    prepare()
    from parallm_openai.llm import LLM, SamplingParams

    params = SamplingParams(**sampling.model_dump(exclude_none=True))
    loaded = load_model(model)
    with explained(), LLM(loaded, draft_model=load_draft(model)) as llm:
        if source.chat:
            wanted = [llm.tokenizer.render([{"role": "user", "content": prompt}]) for prompt in wanted]
        try:
            results = llm.generate(wanted, params, use_tqdm=len(wanted) > 1 and sys.stderr.isatty())
        except ValueError as error:
            fail(str(error), BAD_USAGE)
    for result in results:
        typer.echo(json.dumps(result.as_dict(), ensure_ascii=False) if source.jsonl else result.text)


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        if file.suffix != ".jsonl":
            return lines
        return [str(json.loads(line)["prompt"]) for line in lines]
    except OSError as error:
        fail(f"{file}: {error.strerror}", BAD_USAGE)
    except (ValueError, KeyError, TypeError) as error:
        fail(f"{file} is not JSON lines with a 'prompt' each ({type(error).__name__}: {error})", BAD_USAGE)
