"""Continue several prompts in one batch, in this process, without a server."""

from __future__ import annotations

from parallm_openai import LLM, SamplingParams
from parallm_openai.demo import DRAFT_PATH, TARGET_PATH

PROMPTS = ["Once upon a time", "The capital of France is", "1, 2, 3,"]


def main() -> None:
    # Any folder or Hugging Face id works here; these are the two models that come with the package.
    with LLM(str(TARGET_PATH), draft_model=str(DRAFT_PATH)) as llm:
        for prompt, result in zip(PROMPTS, llm.generate(PROMPTS, SamplingParams(max_tokens=20)), strict=True):
            print(f"{prompt!r} -> {result.text!r}")


if __name__ == "__main__":
    main()
