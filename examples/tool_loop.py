"""Let the model call a Python function, send the result back, and print the answer.

Start the server first: ./docker-less-run.sh
"""

from __future__ import annotations

import json
import os
from typing import Any

from openai import OpenAI

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Get the current weather of a city", "parameters": CITY}


def get_weather(city: str) -> dict[str, Any]:
    return {"city": city, "temperature": 21}


def main() -> None:
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"), api_key="none")
    model = client.models.list().data[0].id
    tools: Any = [{"type": "function", "function": WEATHER}]
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    while True:
        answer = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0)
        message: Any = answer.choices[0].message
        if not message.tool_calls:
            print(message.content)
            return
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = get_weather(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})


if __name__ == "__main__":
    main()
