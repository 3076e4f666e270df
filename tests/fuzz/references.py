"""Well-behaved neighbours: whatever else goes on, their answers are those that they had alone, byte for byte."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fuzz.case import Case
from fuzz.exchange import Exchange, exchanged

CLIENTS = 3
PAUSE = 0.3

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def _chat(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 24, **more}


def cases(model: str) -> list[Case]:
    """Greedy and seeded, whole and streamed, bound and free, with speculation on."""
    bound = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}}
    wanted = [
        _chat("What is the capital of France?", temperature=0),
        _chat("Tell me a story.", seed=7, temperature=0.8, use_speculative=True),
        _chat("JSON: Anna is 7 years old.", temperature=0, **bound),
        _chat("What is the weather in Paris?", temperature=0, tools=[_WEATHER]),
        _chat("Hello!", temperature=0, stream=True, use_speculative=True),
        _chat("Count from 3 to 9.", seed=3, n=2, frequency_penalty=0.3),
        ("/v1/completions", {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 24, "stop": [" the"]}),
        ("/v1/completions", {"prompt": [[300, 301, 302], [400]], "seed": 5, "max_tokens": 12, "use_speculative": True}),
        ("/v1/responses", {"input": "What is 12 + 30?", "temperature": 0, "max_output_tokens": 24, "store": False}),
    ]
    return [Case.of("reference", path, {"model": model, **body}) for path, body in wanted]


def said(exchange: Exchange) -> str:
    """What an answer says, without its ids, times and costs."""
    if exchange.content_type == "text/event-stream":
        frames = [line[6:] for line in exchange.body.decode().split("\n") if line.startswith("data: {")]
        deltas = [choice for frame in frames for choice in json.loads(frame)["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in deltas)
        return json.dumps([text, [choice["finish_reason"] for choice in deltas if choice["finish_reason"]]])
    body = json.loads(exchange.body)
    if "output" in body:
        return json.dumps([[body["status"]], [item.get("content") for item in body["output"]]])
    choices = body["choices"]
    for choice in choices:
        for call in choice.get("message", {}).get("tool_calls") or []:
            call["id"] = ""
    return json.dumps([choices, body["usage"]["completion_tokens"]])


@dataclass
class References:
    """Sends the same requests over and over from several threads; `port` says where the server is now."""

    model: str
    port: Callable[[], int | None]
    patience: float
    compared: int = 0
    slowest: float = 0.0
    failures: list[tuple[str, Case]] = field(default_factory=list)

    def record(self) -> float:
        """Ask each once, alone; returns how long all of them took."""
        began = time.monotonic()
        self._cases = cases(self.model)
        self._answers = [self._asked(case) for case in self._cases]
        return time.monotonic() - began

    def _asked(self, case: Case) -> str:
        exchange = exchanged(self.port() or 0, case, self.patience)
        assert exchange.status == 200, (exchange.failure, exchange.body)
        return said(exchange)

    def start(self) -> None:
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._go_on, args=(i,), daemon=True) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(self.patience + 5)

    def _go_on(self, turn: int) -> None:
        while not self._stopping.wait(PAUSE):
            port = self.port()
            turn += 1
            index = turn % len(self._cases)
            if port is None:
                continue
            exchange = exchanged(port, self._cases[index], self.patience)
            # An answer that a server's end or restart has cut off says nothing of its own.
            if self.port() == port:
                self._compare(exchange, self._answers[index])

    def _compare(self, exchange: Exchange, expected: str) -> None:
        self.slowest = max(self.slowest, exchange.took)
        if exchange.status != 200:
            told = exchange.failure or f"{exchange.status} {exchange.body[:300]!r}"
            self.failures.append((f"a neighbour's request failed: {told}", exchange.case))
        elif said(exchange) != expected:
            self.failures.append(("a neighbour's answer changed", exchange.case))
        self.compared += 1
