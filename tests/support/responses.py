"""Requests to `/v1/responses` through the openai SDK."""

from __future__ import annotations

from typing import Any

import openai

from support.servers import RunningServer

# OpenAI sends these too; the SDK's type has them only as extra fields.
BEYOND_THE_SDK = {"presence_penalty", "frequency_penalty", "store"}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def create(server: RunningServer, input: Any, **options: Any) -> Any:
    defaults: dict[str, Any] = {"temperature": 0, "max_output_tokens": 100}
    return client(server).responses.create(model=server.model.name, input=input, **(defaults | options))
