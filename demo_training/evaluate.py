"""Held-out accuracy of the target and acceptance of the draft: `python -m demo_training.evaluate`."""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before the imports below, which import mlx.
    from parallm_openai.cpu import prepare

    prepare()

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import BatchKVCache

from demo_training.chatml import END, END_OF_TEXT, spans
from demo_training.corpus import MIX, sample
from demo_training.sample import Sample
from parallm_openai.demo import DRAFT_PATH, TARGET_PATH

SEED = 1_000_001
MAX_TOKENS = {"stories": 480, "raw_stories": 480, "tool_call": 160}
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass
class Result:
    """What came out for one task."""

    check: str
    right: int = 0
    count: int = 0
    accepted: int = 0
    tokens: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return self.right / max(self.count, 1)

    @property
    def acceptance(self) -> float:
        return self.accepted / max(self.tokens, 1)


def load_model(folder: Path) -> tuple[Any, Any]:
    """A model as float32, which is what the CPU is fast at, and its tokenizer."""
    model, tokenizer, *_ = load(str(folder))
    model.set_dtype(mx.float32)
    return model, tokenizer


def prompt_and_answer(one: Sample) -> tuple[str, str]:
    """The text to go on from, and the answer without its end mark."""
    *given, (answer, _) = spans(one)
    for mark in (END, END_OF_TEXT):
        answer = answer.removesuffix(mark)
    return "".join(text for text, _ in given), answer


def greedy(model: Any, prompts: list[list[int]], ends: set[int], limit: int) -> list[list[int]]:
    """Greedy continuations of a batch, each with its end token if it came to one."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    cache = [BatchKVCache(padding) for _ in model.layers]
    tokens = mx.array([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    outputs: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(limit):
        best = model(tokens, cache=cache)[:, -1].argmax(axis=-1)
        for row, token in enumerate(best.tolist()):
            if row in running:
                outputs[row].append(token)
                if token in ends:
                    running.discard(row)
        if not running:
            break
        tokens = best[:, None]
    return outputs


def agreement(draft: Any, prompts: list[list[int]], outputs: list[list[int]]) -> list[int]:
    """How many of the target's tokens are the draft's first choice after the same text."""
    rows = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    longest = max(map(len, rows))
    best = draft(mx.array([row + [0] * (longest - len(row)) for row in rows])).argmax(axis=-1).tolist()
    agreed = []
    for row, prompt, choices in zip(rows, prompts, best, strict=True):
        agreed.append(sum(choices[i - 1] == row[i] for i in range(len(prompt), len(row))))
    return agreed


def _calls(text: str) -> list[Any]:
    return [json.loads(found) for found in CALL.findall(text)]


def correct(one: Sample, text: str, wanted: str, ended: bool) -> bool:
    """Whether the output counts as right, by the sample's own measure."""
    if one.raw and one.check == "exact":
        # Raw text has no end of its own: what counts is what comes next.
        return (text + "\n").startswith(wanted)
    if not ended or one.check == "ends":
        return ended
    if one.thinking:
        text, wanted = text.rpartition("</think>")[2].strip(), wanted.rpartition("</think>")[2].strip()
    try:
        if one.check == "json":
            return bool(json.loads(text) == json.loads(wanted))
        if one.check == "tool":
            return _calls(text) == _calls(wanted)
    except ValueError:
        return False
    return text.strip() == wanted.strip()


def evaluate_task(task: str, count: int, target: Any, draft: Any, tokenizer: Any, rows: int = 32) -> Result:
    """Greedy answers to held-out samples of one task."""
    rng = random.Random(f"{SEED} {task}")
    samples: dict[str, Sample] = {}
    for _ in range(count * 4):
        one = sample(rng, task, held_out=True)
        samples.setdefault(prompt_and_answer(one)[0], one)
        if len(samples) == count:
            break
    ordered = sorted(samples.items(), key=lambda item: len(item[0]))
    result = Result(ordered[0][1].check)
    ends = {tokenizer.convert_tokens_to_ids(mark) for mark in (END, END_OF_TEXT)}
    for start in range(0, len(ordered), rows):
        part = ordered[start : start + rows]
        prompts = [tokenizer.encode(text) for text, _ in part]
        outputs = greedy(target, prompts, ends, MAX_TOKENS.get(task, 128))
        agreed = agreement(draft, prompts, outputs)
        for (_, one), output, same in zip(part, outputs, agreed, strict=True):
            _count(result, one, tokenizer, output, ends)
            result.accepted += same
            result.tokens += len(output)
    return result


def _count(result: Result, one: Sample, tokenizer: Any, output: list[int], ends: set[int]) -> None:
    ended = output[-1] in ends
    text = tokenizer.decode(output[:-1] if ended else output)
    given, wanted = prompt_and_answer(one)
    right = correct(one, text, wanted, ended)
    result.count += 1
    result.right += right
    if not right:
        result.wrong.append({"prompt": given[-300:], "wanted": wanted, "got": text})


def table(results: dict[str, Result]) -> str:
    """The results as a Markdown table, with totals."""
    lines = ["| task | measure | held-out samples | accuracy | draft acceptance |", "|---|---|---|---|---|"]
    names = {"exact": "exact", "json": "equal JSON", "tool": "equal calls", "ends": "ends properly"}
    for task, one in results.items():
        row = (task, names[one.check], one.count, f"{one.accuracy:.1%}", f"{one.acceptance:.3f}")
        lines.append("| " + " | ".join(map(str, row)) + " |")
    totals = summary(results)
    total = f"{totals['samples']} | {totals['accuracy']:.1%} | {totals['acceptance']:.3f}"
    lines.append(f"| **all** (accuracy without stories) | | {total} |")
    return "\n".join(lines)


def summary(results: dict[str, Result]) -> dict[str, Any]:
    """The totals: exact answers over all tasks that have one, acceptance over all tokens."""
    judged = [one for one in results.values() if one.check != "ends"]
    every = list(results.values())
    return {
        "samples": sum(one.count for one in every),
        "accuracy": sum(one.right for one in judged) / max(sum(one.count for one in judged), 1),
        "acceptance": sum(one.accepted for one in every) / max(sum(one.tokens for one in every), 1),
        "acceptance_mean_of_tasks": sum(one.acceptance for one in every) / max(len(every), 1),
    }


def main() -> None:
    """Evaluate the pair, print the table, write `evaluation.json` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET_PATH)
    parser.add_argument("--draft", type=Path, default=DRAFT_PATH)
    parser.add_argument("--count", type=int, default=100, help="held-out samples of each task")
    parser.add_argument("--tasks", nargs="*", choices=list(MIX), default=list(MIX))
    parser.add_argument("--errors", type=int, default=0, help="wrong answers to print for each task")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("evaluation.json"))
    options = parser.parse_args()
    target, tokenizer = load_model(options.target)
    draft, _ = load_model(options.draft)
    results = {task: evaluate_task(task, options.count, target, draft, tokenizer) for task in options.tasks}
    for task, one in results.items():
        for wrong in one.wrong[: options.errors]:
            print(task, json.dumps(wrong, ensure_ascii=False))
    print(table(results))
    tasks = {
        task: {
            "check": one.check,
            "samples": one.count,
            "accuracy": one.accuracy,
            "acceptance": one.acceptance,
        }
        for task, one in results.items()
    }
    text = json.dumps({"total": summary(results), "tasks": tasks}, indent=2)
    options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
