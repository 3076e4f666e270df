"""`parallm-openai serve --launch`: two processes share a model, and clients see one server."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support import families
from support.ports import free_ports
from support.processes import COMMAND, Served
from support.servers import RunningServer

pytestmark = pytest.mark.slow

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# Longer than a block of the prefix cache.
SYSTEM = "You are a kind assistant who answers questions about countries and their capitals in one sentence. " * 3
QUESTIONS = [f"What is the capital of {country}?" for country in ("France", "Spain", "Italy", "Peru")]
Start = Callable[..., Served]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Start]:
    started: list[Served] = []

    def start(model: str, *arguments: str) -> Served:
        ports = ("--port", "0", "--starting-port", str(free_ports(2)))
        started.append(Served(model, "--launch", "-n", "2", *ports, *arguments))
        return started[-1]

    yield start
    for each in started:
        for process in psutil.Process(each.process.pid).children(recursive=True) if each.process.poll() is None else []:
            process.kill()
        each.process.kill()


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Sixteen streams that differ in everything that a row has of its own."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for seed, question in enumerate(QUESTIONS):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        chat = {"messages": messages, "max_tokens": 24, "stream": True}
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        asked += [
            ("/v1/chat/completions", {**chat, "temperature": 0}),
            ("/v1/chat/completions", {**chat, "temperature": 1, "seed": seed, "logprobs": True, "top_logprobs": 2}),
            ("/v1/chat/completions", {**chat, "temperature": 0.8, "seed": seed, "response_format": schema}),
            (
                "/v1/completions",
                {"prompt": question, "max_tokens": 30, "stream": True, "seed": seed, "n": 2, "stop": ["."]},
            ),
        ]
    return asked


def streamed(url: str, path: str, body: dict[str, Any]) -> list[str]:
    """The text of each choice of a stream."""
    texts: dict[int, str] = {}
    with httpx.stream("POST", url + path, json=body, timeout=240) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    piece = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                    texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return [text for _, text in sorted(texts.items())]


def all_streamed(url: str) -> list[list[str]]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda asked: streamed(url, *asked), requests()))


def rank_of(served: Served, rank: int) -> psutil.Process:
    every = psutil.Process(served.process.pid).children(recursive=True)
    return next(each for each in every if each.environ().get("MLX_RANK") == str(rank))


def test_sixteen_streams_at_a_time_are_those_of_one_process(shared: Start, server: RunningServer) -> None:
    served = shared("demo")
    expected = all_streamed(server.url)
    assert all_streamed(served.url) == expected
    # Once more, with prompts that are in the prefix cache now.
    assert all_streamed(served.url) == expected
    stats = httpx.get(f"{served.url}/v1/stats", timeout=60).json()
    assert stats["prefix_cache"]["hits"] > 0
    assert stats["speculative_stats"]["accepted_tokens"] > 0
    changed = httpx.post(f"{served.url}/v1/configure", params={"use_speculative_decoding": "false"}, timeout=60)
    assert changed.json()["use_speculative_decoding"] is False
    assert all_streamed(served.url) == expected
    assert "ranks" in served.output
    # Requests that run are finished first, and both processes end.
    body = {"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=240) as answer:
        lines = answer.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        assert '"finish_reason":"length"' in "".join(lines)
    assert served.process.wait(60) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_if_a_process_is_killed_the_service_ends(shared: Start, rank: int) -> None:
    served = shared("demo")
    body = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=240) as answer:
        lines = answer.iter_lines()
        next(lines)
        rank_of(served, rank).kill()
        if rank:
            assert any("rank 1 of the model has ended" in line for line in lines)
    assert served.process.wait(60) == 1
    assert f"rank {rank} of the model has ended" in served.output
    assert "Traceback" not in served.output


@pytest.mark.parametrize(
    ("family", "flags"), [("qwen3_5", ["--shard-draft", "--draft-model"]), ("qwen3_next", ["--pipeline"])]
)
def test_hybrid_models_are_shared(shared: Start, tmp_path: Path, family: str, flags: list[str]) -> None:
    folder = families.write(family, tmp_path / "model")
    if flags[-1] == "--draft-model":
        flags = [*flags, str(folder)]
    served = shared(str(folder), *flags)
    body = {"prompt": "abcabcabc", "max_tokens": 30, "temperature": 0, "stream": True}
    alone = Served("--model", str(folder), "--port", "0", "--draft", "none")
    try:
        expected = streamed(alone.url, "/v1/completions", body)
    finally:
        alone.process.kill()
    assert streamed(served.url, "/v1/completions", body) == expected


def refused(*arguments: str) -> str:
    command = [*COMMAND, "serve", "--launch", "--port", "0", "--starting-port", str(free_ports(4)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_model_that_cannot_be_shared_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert refused("demo").startswith("parallm-openai: --launch: needs --hosts, --hostfile or -n")
    assert "it has 4 attention heads" in refused("demo", "-n", "3")
    folder = families.write("qwen3_next", tmp_path / "model")
    assert "cannot split the layers of qwen3_next; --pipeline can" in refused(str(folder), "-n", "2")


def test_a_killed_launcher_takes_the_processes_along(shared: Start) -> None:
    served = shared("demo")
    ranks = [rank_of(served, rank) for rank in (0, 1)]
    served.process.kill()
    assert psutil.wait_procs(ranks, timeout=120)[1] == []
