"""Get an answer that always fits a JSON schema, as an object of a Pydantic model.

Start the server first: ./docker-less-run.sh
"""

from __future__ import annotations

import os

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def main() -> None:
    client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"), api_key="none")
    answer = client.chat.completions.parse(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "JSON: Anna is 7 years old."}],
        response_format=Person,
        temperature=0,
    )
    print(repr(answer.choices[0].message.parsed))


if __name__ == "__main__":
    main()
