"""lm-evaluation-harness on tasks of its own: log-likelihoods by `local-completions`, answers by both models for APIs.

It gets its tokenizer from the server, too. Everything is offline: the tasks' documents are in a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LM_EVAL = Path(sys.executable).with_name("lm_eval")
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_text": "The capital of {{country}} is",
    "doc_to_choice": list(CAPITALS.values()),
    "doc_to_target": "{{capital}}",
    "metric_list": [{"metric": "acc"}],
}
SURPRISE = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "The capital of {{country}} is {{capital}}.",
    "metric_list": [{"metric": "byte_perplexity"}],
}
ANSWER = {
    "output_type": "generate_until",
    "doc_to_text": "What is the capital of {{country}}?",
    "doc_to_target": "{{capital}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
    "filter_list": [
        {
            "name": "city",
            "filter": [{"function": "regex", "regex_pattern": "(Paris|Rome|Madrid)"}, {"function": "take_first"}],
        }
    ],
    "metric_list": [{"metric": "exact_match"}],
}


def evaluated(folder: Path, served: Any, task: dict[str, Any], kind: str, path: str, *more: str) -> tuple[Any, Any]:
    """The results of a task, and its samples."""
    documents = folder / "documents.jsonl"
    documents.write_text("\n".join(json.dumps({"country": one, "capital": city}) for one, city in CAPITALS.items()))
    data = {"data_files": {"test": str(documents)}}
    common = {"task": "ours", "dataset_path": "json", "test_split": "test", "dataset_kwargs": data}
    # JSON is YAML.
    (folder / "ours.yaml").write_text(json.dumps(common | task))
    model = f"model={served.model},base_url={served.url}/{path},num_concurrent=3,max_retries=1"
    command = [str(LM_EVAL), "--model", kind, "--model_args", model, "--include_path", str(folder), "--tasks", "ours"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [*command, "--output_path", str(folder / "out"), "--log_samples", *more],
        cwd=folder,
        env=os.environ | offline | {"OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = folder.glob("out/*/results_*.json")
    [samples] = folder.glob("out/*/samples_ours_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["ours"], lines


def test_the_likeliest_choice_is_the_right_one(served: Any, tmp_path: Path) -> None:
    results, samples = evaluated(tmp_path, served, CHOOSE, "local-completions", "completions")
    assert results["acc,none"] == 1
    assert len(samples) == len(CAPITALS)
    for sample in samples:
        likelihoods = [float(answer[0][0]) for answer in sample["resps"]]
        assert all(likelihood < 0 for likelihood in likelihoods)
        assert len(set(likelihoods)) == len(CAPITALS)


def test_a_text_has_a_perplexity(served: Any, tmp_path: Path) -> None:
    results, _ = evaluated(tmp_path, served, SURPRISE, "local-completions", "completions")
    # A byte of a model that knows nothing would have one of 256.
    assert 1 < results["byte_perplexity,none"] < 16


def test_prompts_are_continued_until_a_string(served: Any, tmp_path: Path) -> None:
    task = ANSWER | {"doc_to_text": "The capital of {{country}} is"}
    results, samples = evaluated(tmp_path, served, task, "local-completions", "completions")
    assert results["exact_match,city"] == 1
    assert [sample for sample in samples if "\n" in sample["resps"][0][0]] == []


@pytest.mark.parametrize("batch", ["1", "3"])
def test_chats_are_answered(served: Any, tmp_path: Path, batch: str) -> None:
    chat = ["--apply_chat_template", "--batch_size", batch]
    results, samples = evaluated(tmp_path, served, ANSWER, "local-chat-completions", "chat/completions", *chat)
    assert results["exact_match,city"] == 1
    assert len(samples) == len(CAPITALS)
